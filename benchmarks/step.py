"""One training step of lab `gpt` on this machine, size by size; or serving the model.

    python benchmarks/step.py --json                  (about a minute per size)
    python benchmarks/step.py --set DEPTH=9,ASPECT=64 --set DEPTH=6,ASPECT=170

Runs on a GPU where there is one, else on the CPU. For each --set (constants of
train.py, the rest from the profile) a step on random tokens is timed, and each
optimiser alone. With --serving: a batch of the evaluator's size, eager, compiled as for
a long text, and compiled with the next batch begun before the last is read. With
--kernels a table of the slowest kernels goes to stderr. Each size runs in a process of
its own. With --quick: the demo profile, one step, nothing compiled for serving.

Not covered: what a size learns; `gpu.py` trains it.

JSON: a list with a record for each --set. Its keys:
  constants                        the --set
  quick                            whether --quick was given: then no number counts
  step_ms                          one step, median
  tokens                           tokens of a step
  muon_percent                     share of a step that Muon takes alone
  adam_percent                     the same for Adam
  tokens_per_second                training throughput
  parameters_M                     parameters, millions
  ready_seconds                    time before the first step, compiling included
  attention                        attention implementation by kind of layer
Further JSON keys on a GPU:
  gpu                              its name
  mfu_percent                      model FLOP/s utilisation
  peak_gb                          peak memory
JSON keys with --serving:
  constants                        as above
  quick                            as above
  rows                             rows of a batch
  eager_tokens_per_second          throughput without compiling
  compile_seconds                  time to compile
  compiled_tokens_per_second       throughput after it
  compiled_ahead_tokens_per_second  the same, the next batch begun early
  largest_difference_nats          of two losses, eager and compiled
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.commands import new
from autoresearch.devices import gpu_specs
from autoresearch.guest import standalone
from autoresearch.lab import constants

READY = "gc.collect(), gc.freeze()"  # of train.py: all is compiled, nothing has run
SERVES = "stacks, adam_groups ="  # the model is there


def load_source(profile, changes):
    """(train.py, vocabulary, context) of a lab of this profile, constants changed."""
    with tempfile.TemporaryDirectory() as place:
        new.create_lab(Path(place) / "lab", "gpt", None, None, profile)
        source = (Path(place) / "lab" / "train.py").read_text()
        prepare = (Path(place) / "lab" / "prepare.py").read_text()
    sizes = constants.constant_values(prepare)
    return change_constants(source, changes), sizes["VOCABULARY"], sizes["CONTEXT"]


def change_constants(source, changes):
    """train.py with its constants set by NAME=VALUE,.."""
    parts = [part for part in changes.split(",") if part]
    values = constants.constant_values("\n".join(parts))
    if len(values) != len(parts):
        raise SystemExit(f"--set {changes}: not NAME=VALUE,.. with a number or a word")
    return constants.replace_constants(source, values)


def run_until(source, vocabulary, context, upto):
    """(module, device) of train.py, run up to a line of it."""
    import torch

    run = types.SimpleNamespace(device=standalone.choose_device(), progress=0.1)
    prepare = types.ModuleType("prepare")
    prepare.VOCABULARY, prepare.CONTEXT = vocabulary, context
    prepare.begin = lambda build: run
    sys.modules["prepare"] = prepare
    # A module with a file, for compilers; not called as a library that they skip.
    place = Path(tempfile.mkdtemp()) / "trained.py"
    place.write_text(source[: source.index(upto)])
    spec = importlib.util.spec_from_file_location("trained", place)
    train = sys.modules["trained"] = importlib.util.module_from_spec(spec)
    torch.manual_seed(1)
    spec.loader.exec_module(train)
    return train, run.device


def synchronize(device):
    """Wait until the device is idle; the time then."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def time_median(times, work, device):
    """Median seconds of `work`, the device idle before and after; three warm up."""
    took = []
    for _ in range(3 + times):
        before = synchronize(device)
        work()
        took.append(synchronize(device) - before)
    return statistics.median(took[3:])


def measure_step(options, source, vocabulary, context):
    """Time steps on random tokens."""
    import torch

    start = time.perf_counter()
    train, device = run_until(source, vocabulary, context, READY)
    ready = time.perf_counter() - start
    tokens = torch.randint(vocabulary, (train.rows, context), device=device)

    def gradients():
        for _ in range(train.passes):
            train.learn(tokens, tokens)

    def step():
        gradients()
        train.step(0.1)

    def muon():
        train.muon.step(train.MATRIX_LR, train.MOMENTUM, train.MATRIX_DECAY)

    seconds = time_median(options.steps, step, device)
    gradients()
    shares = {
        "muon_percent": time_median(options.steps, muon, device),
        "adam_percent": time_median(options.steps, train.adam.step, device),
    }
    rate = train.rows * context * train.passes / seconds
    found = {
        "step_ms": round(1000 * seconds, 2),
        "tokens": train.rows * context * train.passes,
    }
    found |= {name: round(100 * took / seconds, 2) for name, took in shares.items()}
    found |= {
        "tokens_per_second": round(rate),
        "parameters_M": round(
            sum(p.numel() for p in train.model.parameters()) / 1e6, 1
        ),
        "ready_seconds": round(ready, 1),
        "attention": {kind: name for kind, (name, _) in sorted(train.CHOSEN.items())},
    }
    if device == "cuda":
        name = torch.cuda.get_device_name()
        mfu = gpu_specs.mfu_percent(train.flops_per_token(), rate, name)
        peak = torch.cuda.max_memory_allocated() / 1e9
        found |= {"gpu": name, "mfu_percent": mfu, "peak_gb": round(peak, 1)}
    if options.kernels:
        print(profile_kernels(step), file=sys.stderr)
    return found


def measure_serving(options, source, vocabulary, context):
    """Time the evaluator's batches, eager and compiled."""
    import numpy as np
    import torch

    from autoresearch.guest import torch_model

    train, device = run_until(source, vocabulary, context, SERVES)
    model = train.model.eval()
    rows = standalone.choose_batch_rows(context, vocabulary, device)
    tokens = torch.randint(vocabulary, (rows, context + 1), device=device)

    claim = torch_model.claim_losses

    def batch():
        return claim(model, tokens, vocabulary).cpu()

    def rate():
        took = []
        for _ in range(options.steps):
            before = synchronize(device)
            batch()
            took.append(synchronize(device) - before)
        return round(rows * context / statistics.median(took))

    def rate_ahead():
        """The same with the next begun before the last is read, as the guest does."""
        ids = tokens.cpu().numpy()
        output, coming = np.empty(rows * context, dtype="<f4"), None
        is_async = device == "cuda"
        begun = synchronize(device)
        for _ in range(options.steps):
            claimed = claim(model, torch_model.move_to_device(ids, device), vocabulary)
            losses = claimed.reshape(-1)
            latest = torch_model.PendingResult(losses, output, is_async=is_async)
            if coming is not None:
                coming.write_output()
            coming = latest
        coming.write_output()
        return round(options.steps * rows * context / (synchronize(device) - begun))

    eager, found = batch(), {"rows": rows, "eager_tokens_per_second": rate()}
    before = synchronize(device)
    if not options.quick:
        claim = torch_model.try_compile(model, tokens, vocabulary) or claim
    found["compile_seconds"] = round(synchronize(device) - before, 1)
    compiled = batch()
    found["compiled_tokens_per_second"] = rate()
    found["compiled_ahead_tokens_per_second"] = rate_ahead()
    found["largest_difference_nats"] = round((compiled - eager).abs().max().item(), 5)
    if options.kernels:
        print(profile_kernels(batch), file=sys.stderr)
    return found


def profile_kernels(work):
    """A table of the kernels that take most of the GPU's time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
    return seen.key_averages().table(sort_by="cuda_time_total", row_limit=40)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", metavar="NAME=VALUE,..", dest="sets")
    parser.add_argument("--profile", help="default: the one for this machine")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--serving", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--quick", action="store_true", help="demo profile, one step")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.profile, options.steps = "demo", 1
    sets = options.sets or [""]
    if len(sets) == 1:
        lab = load_source(options.profile, sets[0])
        found = (
            measure_serving(options, *lab)
            if options.serving
            else measure_step(options, *lab)
        )
        record = [{"constants": sets[0], "quick": options.quick} | found]
    else:
        record = [measure_in_subprocess(options, one) for one in sets]
    for row in record if not options.json else ():
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if options.json:
        print(json.dumps(record))


def measure_in_subprocess(options, one):
    words = ["--set", one, "--steps", str(options.steps)]
    words += ["--profile", options.profile] if options.profile else []
    words += ["--quick"] * options.quick
    words += ["--serving"] * options.serving + ["--kernels"] * options.kernels
    command = (sys.executable, __file__, *words, "--json")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])[0]


if __name__ == "__main__":
    main()
