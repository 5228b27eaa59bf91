"""One step of lab `gpt` on this machine, size by size; and what serving it takes.

    python benchmarks/step.py --set DEPTH=9,ASPECT=64 --set DEPTH=6,ASPECT=170

For each --set (constants of train.py, the rest from the profile): milliseconds of a
step on random tokens and how much of it each optimiser takes alone, tokens per second,
MFU, peak memory, parameters, and how long it took to be ready. With --serving: a batch
of the evaluator's size, eager, compiled as for a long text, and so with the next begun
before the last is read; seconds of compiling, and how far the two losses differ. With
--kernels: where the GPU's time goes. Each size runs in a process of its own.

Not covered: what a size learns; `benchmarks/gpu.py` trains it.
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


def source_of(profile, changes):
    """(train.py, vocabulary, context) of a lab of this profile, with some constants."""
    with tempfile.TemporaryDirectory() as place:
        new.create_lab(Path(place) / "lab", "gpt", None, None, profile)
        source = (Path(place) / "lab" / "train.py").read_text()
        prepare = (Path(place) / "lab" / "prepare.py").read_text()
    sizes = constants.constant_values(prepare)
    return changed(source, changes), sizes["VOCABULARY"], sizes["CONTEXT"]


def changed(source, changes):
    """train.py with NAME=VALUE,.. in place of what its constants are."""
    parts = [part for part in changes.split(",") if part]
    values = constants.constant_values("\n".join(parts))
    if len(values) != len(parts):
        raise SystemExit(f"--set {changes}: not NAME=VALUE,.. with a number or a word")
    return constants.replace_constants(source, values)


def begun(source, vocabulary, context, upto):
    """The namespace of train.py, run up to a line of it."""
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


def waited(device):
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def median_of(times, work, device):
    """Seconds that it takes, the device idle before and after; three go before."""
    took = []
    for _ in range(3 + times):
        before = waited(device)
        work()
        took.append(waited(device) - before)
    return statistics.median(took[3:])


def stepped(options, source, vocabulary, context):
    """Time steps on random tokens."""
    import torch

    start = time.perf_counter()
    train, device = begun(source, vocabulary, context, READY)
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

    seconds = median_of(options.steps, step, device)
    gradients()
    shares = {
        "muon_percent": median_of(options.steps, muon, device),
        "adam_percent": median_of(options.steps, train.adam.step, device),
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
        print(kernels_of(step), file=sys.stderr)
    return found


def serving(options, source, vocabulary, context):
    """Time the evaluator's batches, eager and compiled."""
    import numpy as np
    import torch

    from autoresearch.guest import torch_model

    train, device = begun(source, vocabulary, context, SERVES)
    model = train.model.eval()
    rows = standalone.choose_batch_rows(context, vocabulary, device)
    tokens = torch.randint(vocabulary, (rows, context + 1), device=device)

    claim = torch_model.claim_losses

    def batch():
        return claim(model, tokens, vocabulary).cpu()

    def rate():
        took = []
        for _ in range(options.steps):
            before = waited(device)
            batch()
            took.append(waited(device) - before)
        return round(rows * context / statistics.median(took))

    def rate_ahead():
        """The same with the next begun before the last is read, as `served.answer`."""
        ids = tokens.cpu().numpy()
        output, coming = np.empty(rows * context, dtype="<f4"), None
        late = device == "cuda"
        begun = waited(device)
        for _ in range(options.steps):
            claimed = claim(model, torch_model.move_to_device(ids, device), vocabulary)
            latest = torch_model.PendingResult(claimed.reshape(-1), output, late=late)
            if coming is not None:
                coming.write_output()
            coming = latest
        coming.write_output()
        return round(options.steps * rows * context / (waited(device) - begun))

    eager, found = batch(), {"rows": rows, "eager_tokens_per_second": rate()}
    before = waited(device)
    claim = torch_model.try_compile(model, tokens, vocabulary) or claim
    found["compile_seconds"] = round(waited(device) - before, 1)
    compiled = batch()
    found["compiled_tokens_per_second"] = rate()
    found["compiled_ahead_tokens_per_second"] = rate_ahead()
    found["largest_difference_nats"] = round((compiled - eager).abs().max().item(), 5)
    if options.kernels:
        print(kernels_of(batch), file=sys.stderr)
    return found


def kernels_of(work):
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
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sets = options.sets or [""]
    if len(sets) == 1:
        lab = source_of(options.profile, sets[0])
        found = serving(options, *lab) if options.serving else stepped(options, *lab)
        record = [{"constants": sets[0]} | found]
    else:
        record = [in_its_own_process(options, one) for one in sets]
    for row in record if not options.json else ():
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if options.json:
        print(json.dumps(record))


def in_its_own_process(options, one):
    words = ["--set", one, "--steps", str(options.steps)]
    words += ["--profile", options.profile] if options.profile else []
    words += ["--serving"] * options.serving + ["--kernels"] * options.kernels
    command = (sys.executable, __file__, *words, "--json")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])[0]


if __name__ == "__main__":
    main()
