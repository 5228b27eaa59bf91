"""The flagship on this GPU, beside other recipes, on the same text and metric.

    python benchmarks/gpu.py --text DOCS --seconds 60 300 --seeds 2 --other mar8.py

Takes the seconds asked for, times seeds and commands, and a minute for each. --other
takes any number of train.py, each written for the original's prepare.py (its interface
is in `original/`) or for ours (it calls `begin`). The order is reversed from one seed
to the next (A B, B A), so that over an even number of seeds no recipe profits from its
place. Look at the epochs before quoting a result: what wins on text read once may lose
on text read three times.

Scores are those of `python train.py`, measured in the process that trained. With --set
NAME=VALUE,.. constants of ours are changed; with --memory GB ours runs as on a card
with no more than that, with --no-bf16 as on one without bf16. With --quick: the demo
profile for a few seconds on Python's own standard library, which tests the wiring on
any machine, a CPU included.

Not covered: the sandbox and the evaluator's processes; `autoresearch run` times those.

JSON: a list with a record for each run. Its keys:
  command                          `ours`, or the other recipe's name: its file's; its
                                   folder's if the file is train.py; numbered if taken
  seconds                          the budget
  seed                             the seed
  quick                            whether --quick was given: then no number counts
  gpu                              the GPU's name; null: it ran on the CPU
  val_bpb                          bits per byte on the validation tokens
  training_seconds                 time in training
  startup_seconds                  time before it, compiling included: the first seed
                                   fills the cache that the others use
  evaluation_seconds               time to evaluate
  total_seconds                    all of it, by the run's own clock
  wall_seconds                     all of it, by ours
  total_tokens_M                   tokens trained on, millions
  epochs                           the same, divided by the tokens of the training text
  tokens_per_second                throughput of the training
  num_steps                        steps
  num_params_M                     parameters, millions
  depth                            layers
  peak_vram_mb                     peak GPU memory
  health                           samples of the GPU: clock, power, heat, slowdowns
Further JSON keys on a GPU:
  mfu_percent                      model FLOP/s utilisation
  gpu_*                            clock, power, heat and slowdowns while it trained
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.commands import new
from autoresearch.devices import (
    discovery,
    nvml,
)
from benchmarks.step import change_constants

SUMMARY = re.compile(r"^(\w+): *([-\d.]+)", re.MULTILINE)
SAMPLE_SECONDS = 2.0
# As train.py is run, with as much of the card's memory as it is given.
LIMITED = """
import runpy, sys, torch
card = torch.cuda.get_device_properties(0).total_memory / 1e9
torch.cuda.set_per_process_memory_fraction(float(sys.argv.pop(1)) / card)
sys.path.insert(0, "")
runpy.run_path("train.py", run_name="__main__")
"""
HAS_BF16 = "get_device_capability() >= (8, 0)"


def create_prepared_lab(folder, text, profile):
    """A prepared lab `gpt` on this text."""
    new.create_lab(folder, "gpt", text, None, profile)
    words = (sys.executable, "prepare.py")
    subprocess.run(words, cwd=folder, env=build_environment(), check=True, stdout=2)
    return folder


def count_training_tokens(lab):
    """The size of a prepared lab's training text."""
    ask = "import prepare; print(len(prepare.sealed().tokens('train')))"
    words = (sys.executable, "-c", ask)
    done = subprocess.run(
        words, cwd=lab, env=build_environment(), check=True, stdout=subprocess.PIPE
    )
    return int(done.stdout)


def name_recipes(paths):
    """A name for each train.py: its file's, or its folder's; numbered if taken."""
    names = {}
    for path in paths:
        name = path.stem if path.stem != "train" else path.resolve().parent.name
        same = sum(taken.split("#")[0] == name for taken in (*names, "ours"))
        names[f"{name}#{same + 1}" if same else name] = path
    return names


def order_commands(names, nth_seed):
    """The order in which they run: reversed from one seed to the next."""
    return list(names)[:: -1 if nth_seed % 2 else 1]


def build_environment(**more):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **more}


def place(train_py, lab, folder):
    """A folder where this train.py finds the prepare.py it was written for."""
    folder.mkdir()
    shutil.copyfile(train_py, folder / "train.py")
    if "prepare.begin(" in train_py.read_text():
        shutil.copyfile(lab / "prepare.py", folder / "prepare.py")
        return folder
    for path in sorted((ROOT / "benchmarks" / "original").glob("*.py")):
        shutil.copyfile(path, folder / path.name)
    return folder


def apply_options(train_py, options):
    """Change a train.py of ours as the options say."""
    source = change_constants(train_py.read_text(), options.set)
    if options.no_bf16:
        assert HAS_BF16 in source
        source = source.replace(HAS_BF16, "get_device_capability() >= (99, 0)")
    train_py.write_text(source)


def run(folder, lab, seconds, seed, cache, memory_gb=None):
    """One run: its summary, what the GPU did meanwhile, and the wall clock."""
    env = build_environment(
        TORCHINDUCTOR_CACHE_DIR=str(cache),
        BENCHMARK_PACKAGE=str(ROOT),
        BENCHMARK_PREPARE=str(lab / "prepare.py"),
        BENCHMARK_SECONDS=str(seconds),
        BENCHMARK_SEED=str(seed),
    )
    words = (sys.executable, "train.py")
    if memory_gb is not None:
        words = (sys.executable, "-c", LIMITED, str(memory_gb))
    if "prepare.begin(" in (folder / "train.py").read_text():
        words += ("--seconds", str(seconds), "--seed", str(seed))
    ask = discovery.open_nvml(0)
    samples, begun = [], time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(words, cwd=folder, env=env, stdout=output)
        while process.poll() is None:
            if ask is not None:
                samples.append(nvml.read_health(ask))
            time.sleep(SAMPLE_SECONDS if ask is not None else 0.1)
        output.seek(0)
        printed = output.read()
    if process.returncode:
        raise SystemExit(f"{folder}/train.py failed:\n{printed[-2000:]}")
    found = {name: float(value) for name, value in SUMMARY.findall(printed)}
    if found.get("training_seconds"):
        tokens = found.get("total_tokens_M", 0.0) * 1e6
        found["tokens_per_second"] = round(tokens / found["training_seconds"])
    found["wall_seconds"] = round(time.monotonic() - begun, 1)
    # Two thirds in, a run trains: its clocks are not those of start-up.
    return found | nvml.summarize_health(samples[len(samples) // 3 : -2]), samples


def format_runs(name, seconds, rows):
    """A block of lines for one command and budget."""
    lines = [f"{name}, {seconds:g} s, {len(rows)} seeds"]
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        words = "  ".join(f"{value:>12}" for value in values)
        if len(values) > 1 and all(isinstance(value, float) for value in values):
            sd = statistics.stdev(values)
            words += f"   mean {statistics.mean(values):.6g} sd {sd:.2g}"
        lines.append(f"  {key:<20}{words}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="as for `autoresearch new`; required")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0, 300.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1, help="default 1")
    parser.add_argument(
        "--other", type=Path, nargs="+", default=[], help="train.py to run beside ours"
    )
    parser.add_argument("--profile", help="default: the one for this machine")
    parser.add_argument("--set", default="", metavar="NAME=VALUE,..", help="in ours")
    parser.add_argument("--memory", type=float, metavar="GB", help="that ours may take")
    parser.add_argument("--no-bf16", action="store_true", help="ours in fp16")
    parser.add_argument("--quick", action="store_true", help="2 s, the demo profile")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.text, options.profile = options.text or "python", "demo"
        options.seconds, options.seeds = [2.0], 1
    elif options.text is None:
        parser.error("--text is required")
    gpus = discovery.list_visible_gpus()
    gpu_name = gpus[0].name if gpus else None
    folder = Path(tempfile.mkdtemp(prefix="autoresearch-gpu-"))
    lab = create_prepared_lab(folder / "lab", options.text, options.profile)
    commands = {"ours": place(lab / "train.py", lab, folder / "ours")}
    apply_options(folder / "ours" / "train.py", options)
    for name, path in name_recipes(options.other).items():
        commands[name] = place(path, lab, folder / name)
    text_tokens, record = count_training_tokens(lab), []
    for seconds in options.seconds:
        # Seed by seed and side by side: a GPU that grows hot is hot for both.
        rows = {name: [] for name in commands}
        for nth in range(options.seeds):
            seed = options.first_seed + nth
            for name in order_commands(commands, nth):
                memory_gb = options.memory if name == "ours" else None
                found, samples = run(
                    commands[name], lab, seconds, seed, folder / "cache", memory_gb
                )
                tokens = found.get("total_tokens_M", 0.0) * 1e6
                found["epochs"] = round(tokens / text_tokens, 2)
                rows[name].append(found)
                health = [asdict(sample) for sample in samples]
                row = {"command": name, "seconds": seconds, "seed": seed}
                row |= {"quick": options.quick, "gpu": gpu_name}
                record.append(row | found | {"health": health})
                print(f"{name} {seconds:g} s seed {seed}: {found}", file=sys.stderr)
        if not options.json:
            print(
                "\n\n".join(format_runs(name, seconds, rows[name]) for name in commands)
            )
            means = {
                name: statistics.mean(row["val_bpb"] for row in rows[name])
                for name in commands
            }
            for name in list(commands)[1:]:
                ratio = means["ours"] / means[name]
                print(f"\nval_bpb, ours / {name} at {seconds:g} s: {ratio:.4f}")
            print()
    if options.json:
        print(json.dumps(record))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
