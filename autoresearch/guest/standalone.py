"""`python train.py` at a keyboard: the same run, with nobody watching.

    python train.py --seconds 300 --seed 1 --out champion/

Writes the model, its configuration and the script, and prints the familiar summary.
The score is unofficial: it is measured in this very process, by the code being judged.
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
    """The host of a run that a person started."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._lab = sys.modules["prepare"]
        self._begun = time.monotonic()
        self._started = self._begun
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
                found = sealed_memory.map_read_only(file.fileno())
        else:
            found = memoryview(data)
        self._started = time.monotonic()
        return found

    def report_progress(self, message: Message) -> None:
        """One line that overwrites itself."""
        if not sys.stderr.isatty():
            return
        loss = message["loss"]
        words = "" if loss is None else f"  loss {loss:.3f}"
        line = f"{message['progress']:4.0%}  {message['tokens'] / 1e6:.2f}M tokens"
        sys.stderr.write(f"\r{line}{words}   ")
        sys.stderr.flush()

    def submit_weights(
        self, state: ModelState, facts: Mapping[str, object], probe: ConsistencyAnswer
    ) -> NoReturn:
        """Write the model, measure it, print the summary, and end the script."""
        seconds = time.monotonic() - self._started
        if sys.stderr.isatty():
            sys.stderr.write("\n")
        if self._out is not None:
            self._write_model(self._out, safetensors_format.encode(state), facts)
        metric = str(self._lab.METRIC)
        measuring = time.monotonic()
        value = self._evaluate_model(state)
        measured = time.monotonic() - measuring
        lines = {
            metric: f"{value:.6f}   (unofficial: measured by the process it judges)",
            "training_seconds": f"{seconds:.1f}",
            "startup_seconds": f"{self._started - self._begun:.1f}",
            "evaluation_seconds": f"{measured:.1f}",
            "total_seconds": f"{time.monotonic() - self._begun:.1f}",
            "peak_vram_mb": f"{float(str(facts['gpu_memory_gb'])) * 1000:.1f}",
            "mfu_percent": str(facts.get("mfu_percent", "unknown")),
            "total_tokens_M": f"{int(str(facts['tokens'])) / 1e6:.1f}",
            "num_steps": str(facts["steps"]),
            "num_params_M": f"{int(str(facts['parameters'])) / 1e6:.1f}",
            "depth": str(facts.get("depth", "unknown")),
        }
        print("---")
        for name, words in lines.items():
            print(f"{name + ':':<20}{words}")
        if self._out is not None:
            print(f"Next: python prepare.py score {self._out}")
        sys.stdout.flush()
        os._exit(0)

    def _write_model(self, out: Path, file: bytes, facts: Mapping[str, object]) -> None:
        """Everything needed to load the model elsewhere."""
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.safetensors").write_bytes(file)
        (out / "config.json").write_text(json.dumps(dict(facts), indent=2) + "\n")
        shutil.copyfile("train.py", out / "train.py")
        if self._lab.CAUSAL:
            for path in self._lab.tokenizer_files():
                shutil.copyfile(path, out / path.name)

    def _evaluate_model(self, state: ModelState) -> float:
        """The metric on the validation set, from a freshly built model."""
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
    """Bits per byte of a served torch model, in one process. The audit's yardstick."""
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
            found = (
                torch_model.claim_losses(model, batch, lab.VOCABULARY)
                .double()
                .cpu()
                .numpy()
            )
            nats += float(found[width[at : at + size] > 0].sum())
    value = bits_per_byte.bits_per_byte(nats, int(width.sum()))
    return value if math.isfinite(value) else math.nan


def choose_batch_rows(context: int, vocabulary: int, device: str) -> int:
    """As many as the evaluator would ask for on this machine."""
    import torch

    memory_gb: float | None = None
    if device == "cuda":
        memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    return gpu_specs.rows_at_a_time(context, vocabulary, device, memory_gb)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The options of `python train.py`."""
    parser = argparse.ArgumentParser(
        prog="python train.py",
        description="Train once, by hand. The score is unofficial.",
        epilog="example: python train.py --seconds 600 --seed 1 --out champion/",
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="default 300")
    parser.add_argument("--tokens", type=int, help="a budget of text instead of time")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default best")
    parser.add_argument("--out", type=Path, help="folder for the model; default: none")
    return parser.parse_args(arguments)


def choose_device() -> str:
    """The best device there is; the CPU for scripts without torch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return "cuda"
    arm = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mps" if torch is not None and arm else "cpu"
