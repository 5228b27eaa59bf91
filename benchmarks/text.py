"""The flagship on a CPU: five minutes on Python's own source, against zlib and AdamW.

    python benchmarks/text.py --json                (about 11 minutes, alone on 2 cores)
    python benchmarks/text.py --tokens 1000000      (comparable on a busy machine)

Bits per byte of lab gpt's CPU profile on the `python` text, of the same script with
AdamW in Muon's place, and of zlib -9 on the same validation text; seconds to prepare
the text from nothing; tokens per second that `run.batches` delivers. Scores are those
of `python train.py`, which agree with the evaluator's (tests/test_evaluator.py).
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


def adamw_only(source):
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


def loader_tokens_per_second(path, rows, context):
    """How fast batches come, with nobody training on them."""
    import numpy as np

    from autoresearch.guest.runtime import copy_to_device, iter_shuffled_batches

    tokens = np.memmap(path, dtype="<u2", mode="r")
    batches = iter_shuffled_batches(tokens, rows, context, seed=1)
    copy_to_device(next(batches), "cpu")
    begun, count = time.perf_counter(), 2000
    for _ in range(count):
        copy_to_device(next(batches), "cpu")
    return count * rows * context / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--tokens", type=int, help="a budget of text instead of time")
    parser.add_argument("--repeats", type=int, default=1, help="seeds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="autoresearch-text-"))
    os.environ["AUTORESEARCH_CACHE"] = str(folder / "cache")

    from autoresearch.data import corpus

    shutil.copy(ROOT / "autoresearch/labs/gpt/prepare.py", folder)
    begun = time.perf_counter()
    prepare = {"__name__": "prepare"}
    exec((folder / "prepare.py").read_text(), prepare)
    prepare["prepare"](lambda stage, done, total: None)
    prepare_seconds = time.perf_counter() - begun
    sealed = corpus.require(prepare["RECIPE"])
    raw = sealed.decode_split("validation")
    budget = (
        ("--tokens", str(options.tokens))
        if options.tokens
        else ("--seconds", str(options.seconds))
    )
    source = (ROOT / "autoresearch/labs/gpt/train.py").read_text()
    seeds = range(1, options.repeats + 1)
    muon = [train(folder, source, budget, seed) for seed in seeds]
    adamw = [train(folder, adamw_only(source), budget, seed) for seed in seeds]
    found = {
        "muon_bpb": round(sum(muon) / len(muon), 4),
        "adamw_bpb": round(sum(adamw) / len(adamw), 4),
        "zlib_bpb": round(8 * len(zlib.compress(raw, 9)) / len(raw), 4),
        "prepare_seconds": round(prepare_seconds, 1),
        "load_tokens_per_second": round(
            loader_tokens_per_second(sealed.path("train"), 16, 256)
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
