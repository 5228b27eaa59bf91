"""The flagship on a CPU: its score against zlib and AdamW, preparation, data loading.

    python benchmarks/text.py --json                (about 11 minutes, alone on 2 cores)
    python benchmarks/text.py --tokens 1000000      (comparable on a busy machine)

Trains lab gpt's CPU profile for five minutes on the `python` text (the interpreter's
own standard library), once as shipped and once with AdamW in place of Muon, and
compresses the same validation text with zlib -9. Scores are those of `python train.py`,
which agree with the evaluator's (tests/test_evaluator.py). With --quick: the demo
profile on 20 000 tokens.

JSON keys:
  quick                            whether --quick was given: then no number counts
  muon_bpb                         bits per byte as shipped, mean over seeds
  adamw_bpb                        bits per byte with AdamW, mean over seeds
  zlib_bpb                         bits per byte of zlib -9
  prepare_seconds                  time to prepare the text from nothing
  load_tokens_per_second           tokens that `run.batches` delivers per second
  muon                             muon_bpb of each seed
  adamw                            adamw_bpb of each seed
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

ADAMW_LR = 0.003  # for the matrices; not tuned (MATRIX_LR is, by three values)


def replace_muon(source):
    """The same train.py with Muon's matrices given to AdamW."""
    old = "stacks, adam_groups = groups_of(model)\nmuon = Muon(stacks)\n"
    stacks = "[weight for weight, _ in stacks]"
    group = f"dict(params={stacks}, base={ADAMW_LR}, weight_decay=0.1)"
    new = old.replace("muon = Muon(stacks)", f"adam_groups.append({group})")
    (step,) = [
        line for line in source.splitlines() if line.startswith("    muon.step(")
    ]
    assert old in source
    return source.replace(old, new).replace(step, "")


def train(folder, source, budget, seed):
    """val_bpb of one run by hand."""
    (folder / "train.py").write_text(source)
    words = (
        sys.executable,
        "train.py",
        *budget,
        "--seed",
        str(seed),
        "--device",
        "cpu",
    )
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    print(done.stdout, file=sys.stderr)
    return float(re.search(r"^val_bpb: +([\d.]+)", done.stdout, re.MULTILINE)[1])


def measure_loader(path, rows, context, count):
    """Tokens per second of the batches alone, without training."""
    import numpy as np

    from autoresearch.guest.runtime import copy_to_device, iter_shuffled_batches

    tokens = np.memmap(path, dtype="<u2", mode="r")
    batches = iter_shuffled_batches(tokens, rows, context, seed=1)
    copy_to_device(next(batches), "cpu")
    begun = time.perf_counter()
    for _ in range(count):
        copy_to_device(next(batches), "cpu")
    return count * rows * context / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--tokens", type=int, help="a budget of text instead of time")
    parser.add_argument("--repeats", type=int, default=1, help="seeds")
    parser.add_argument("--quick", action="store_true", help="seconds, small numbers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="autoresearch-text-"))
    os.environ["AUTORESEARCH_CACHE"] = str(folder / "cache")

    from autoresearch.commands import new
    from autoresearch.data import corpus

    if options.quick:
        options.tokens = 20_000
    new.create_lab(
        folder / "lab", "gpt", None, None, "demo" if options.quick else "cpu"
    )
    lab = folder / "lab"
    source = (lab / "train.py").read_text()
    begun = time.perf_counter()
    prepare = {"__name__": "prepare"}
    exec((lab / "prepare.py").read_text(), prepare)
    prepare["prepare"](lambda stage, done, total: None)
    prepare_seconds = time.perf_counter() - begun
    sealed = corpus.require(prepare["RECIPE"])
    raw = sealed.decode_split("validation")
    budget = (
        ("--tokens", str(options.tokens))
        if options.tokens
        else ("--seconds", str(options.seconds))
    )
    seeds = range(1, options.repeats + 1)
    muon = [train(lab, source, budget, seed) for seed in seeds]
    adamw = [train(lab, replace_muon(source), budget, seed) for seed in seeds]
    batches, context = (20 if options.quick else 2000), prepare["CONTEXT"]
    found = {
        "quick": options.quick,
        "muon_bpb": round(sum(muon) / len(muon), 4),
        "adamw_bpb": round(sum(adamw) / len(adamw), 4),
        "zlib_bpb": round(8 * len(zlib.compress(raw, 9)) / len(raw), 4),
        "prepare_seconds": round(prepare_seconds, 1),
        "load_tokens_per_second": round(
            measure_loader(sealed.path("train"), 16, context, batches)
        ),
    }
    shutil.rmtree(folder)
    if options.json:
        print(json.dumps({**found, "muon": muon, "adamw": adamw}))
    else:
        for name, value in found.items():
            print(f"{name:<24} {value}")


if __name__ == "__main__":
    main()
