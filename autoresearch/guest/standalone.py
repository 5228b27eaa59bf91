"""`python train.py` by hand: the same training run, without the harness.

    python train.py --seconds 300 --seed 1 --out champion/

Writes the model, its configuration and the script, and prints a summary. The score is
unofficial: it is measured in this process, by the code under test.
"""

import argparse
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from autoresearch import sealed_memory
from autoresearch.devices import gpu_specs
from autoresearch.guest import safetensors_format
from autoresearch.guest.protocol import ConsistencyAnswer, TrainingTerms
from autoresearch.guest.safetensors_format import ModelState
from autoresearch.sandbox.ipc import Message


class StandaloneHost:
    """The host of a training run that a person started."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._lab = sys.modules["prepare"]
        self._created = time.monotonic()
        self._started = self._created
        options = parse_options(sys.argv[1:])
        self._out: Path | None = options.out
        self._seconds: float | None = None if options.tokens else options.seconds
        self.terms = TrainingTerms(
            {
                "seed": options.seed,
                "device": options.device or choose_device(),
                "budget_seconds": self._seconds,
                "budget_tokens": options.tokens,
            }
        )

    def start_clock(self) -> memoryview:
        data = self._lab.training()
        if isinstance(data, Path):
            with data.open("rb") as file:
                view = sealed_memory.map_read_only(file.fileno())
        else:
            view = memoryview(data)
        self._started = time.monotonic()
        return view

    def report_progress(self, message: Message) -> None:
        """Print one line that overwrites itself."""
        if not sys.stderr.isatty():
            return
        loss = message["loss"]
        shown_loss = "" if loss is None else f"  loss {loss:.3f}"
        line = f"{message['progress']:4.0%}  {message['tokens'] / 1e6:.2f}M tokens"
        sys.stderr.write(f"\r{line}{shown_loss}   ")
        sys.stderr.flush()

    def submit_weights(
        self, state: ModelState, facts: Mapping[str, object], probe: ConsistencyAnswer
    ) -> NoReturn:
        """Write and evaluate the model, print the summary, and exit."""
        seconds = time.monotonic() - self._started
        if sys.stderr.isatty():
            sys.stderr.write("\n")
        if self._out is not None:
            self._write_model(self._out, safetensors_format.encode(state), facts)
        metric = str(self._lab.METRIC)
        evaluation_start = time.monotonic()
        value = self._evaluate_model(state)
        evaluation_seconds = time.monotonic() - evaluation_start
        lines = {
            metric: f"{value:.6f}   (unofficial: measured by the process under test)",
            "training_seconds": f"{seconds:.1f}",
            "startup_seconds": f"{self._started - self._created:.1f}",
            "evaluation_seconds": f"{evaluation_seconds:.1f}",
            "total_seconds": f"{time.monotonic() - self._created:.1f}",
            "peak_vram_mb": f"{float(str(facts['gpu_memory_gb'])) * 1000:.1f}",
            "mfu_percent": str(facts.get("mfu_percent", "unknown")),
            "total_tokens_M": f"{int(str(facts['tokens'])) / 1e6:.1f}",
            "num_steps": str(facts["steps"]),
            "num_params_M": f"{int(str(facts['parameters'])) / 1e6:.1f}",
            "depth": str(facts.get("depth", "unknown")),
        }
        print("---")
        for name, text in lines.items():
            print(f"{name + ':':<20}{text}")
        if self._out is not None:
            print(f"Next: python prepare.py score {self._out}")
        sys.stdout.flush()
        os._exit(0)

    def _write_model(self, out: Path, file: bytes, facts: Mapping[str, object]) -> None:
        """Write everything needed to load the model elsewhere."""
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.safetensors").write_bytes(file)
        (out / "config.json").write_text(json.dumps(dict(facts), indent=2) + "\n")
        shutil.copyfile("train.py", out / "train.py")
        if self._lab.CAUSAL:
            for path in self._lab.tokenizer_files():
                shutil.copyfile(path, out / path.name)

    def _evaluate_model(self, state: ModelState) -> float:
        """The metric on the validation set, of a new model with these weights."""
        model = self._build()
        if not self._lab.CAUSAL:
            model.load_state_dict(
                {k: safetensors_format.tensor_to_floats(t) for k, t in state.items()}
            )
            outputs = model(self._lab.inputs("validation"))
            return float(self._lab.score(outputs, "validation"))
        from autoresearch.guest import torch_model

        torch_model.load_state(model, state, self.terms.device)
        return evaluate_in_process(self._lab, model, self.terms.device)


def evaluate_in_process(lab: Any, model: Any, device: str) -> float:
    """Bits per byte of a torch model, in one process: the reference for the evaluator.

    `lab` is the module prepare.py. nan where the value is not finite.
    """
    import numpy as np
    import torch

    from autoresearch.data import bits_per_byte
    from autoresearch.guest import torch_model

    tokens, widths = lab.text("validation")
    rows, inside = bits_per_byte.cut_rows(tokens, lab.CONTEXT, filler=int(tokens[0]))
    width = widths[rows[:, 1:]] * inside
    nats, size = 0.0, choose_batch_rows(lab.CONTEXT, lab.VOCABULARY, device)
    with torch.inference_mode():
        for at in range(0, len(rows), size):
            batch = torch.from_numpy(rows[at : at + size].astype(np.int64)).to(device)
            losses = torch_model.claim_losses(model, batch, lab.VOCABULARY)
            in_nats = losses.double().cpu().numpy()
            nats += float(in_nats[width[at : at + size] > 0].sum())
    value = bits_per_byte.bits_per_byte(nats, int(width.sum()))
    return value if math.isfinite(value) else math.nan


def choose_batch_rows(context: int, vocabulary: int, device: str) -> int:
    """The number of rows per batch that the evaluator would use on this machine."""
    import torch

    memory_gb: float | None = None
    if device == "cuda":
        memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    return gpu_specs.rows_at_a_time(context, vocabulary, device, memory_gb)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Parse the options of `python train.py`."""
    parser = argparse.ArgumentParser(
        prog="python train.py",
        description="Train once, by hand. The score is unofficial.",
        epilog="example: python train.py --seconds 600 --seed 1 --out champion/",
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="default 300")
    parser.add_argument(
        "--tokens", type=int, help="budget in tokens instead of seconds"
    )
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), help="default: the best available"
    )
    parser.add_argument("--out", type=Path, help="write the model to this folder")
    return parser.parse_args(arguments)


def choose_device() -> str:
    """The best available device; the CPU for scripts without torch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return "cuda"
    arm = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mps" if torch is not None and arm else "cpu"
