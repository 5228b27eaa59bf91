"""The API of `train.py`: begin, batches, submit. This side is not trusted.

The same train.py runs in three modes, and need not know in which:

* training under the harness: data arrives when the clock starts, weights are sent back;
* serving a model: `begin` loads submitted weights, answers requests, never returns;
* alone, started by a person: see `standalone`.

Nothing here decides a score, a seed or a time. Code in the same process can change any
of it and gains nothing: the harness keeps its own clock and computes its own score.
"""

import contextlib
import importlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from autoresearch import sealed_memory
from autoresearch.sandbox import ipc
from autoresearch.sandbox.ipc import Channel, Message
from autoresearch.sandbox.restrictions import SandboxRestrictions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from autoresearch.guest.safetensors_format import ModelState

from autoresearch.guest.protocol import (
    BuildModel,
    ConsistencyAnswer,
    TrainingHost,
    TrainingTerms,
)

REPORT_EVERY_SECONDS = 0.5


class Training:
    """One run, as train.py sees it."""

    def __init__(self, host: TrainingHost) -> None:
        self._host = host
        self._data: memoryview | None = None
        self._started = 0.0
        self._reported = 0.0
        self._loss: float | None = None
        self._losses: list[float] = []  # since the last message
        self.tokens_seen = 0
        self.steps = 0
        self.seed = host.terms.seed
        self.device = host.terms.device
        self.budget_seconds = host.terms.budget_seconds
        self.budget_tokens = host.terms.budget_tokens

    @property
    def data(self) -> memoryview:
        """The training data as read-only bytes. The first access starts the clock."""
        if self._data is None:
            self._data = self._host.start_clock()
            self._started = time.monotonic()
        return self._data

    @property
    def tokens(self) -> "np.ndarray[Any, np.dtype[np.uint16]]":
        """The training tokens: a read-only uint16 array (N,)."""
        import numpy as np

        return np.frombuffer(self.data, dtype="<u2")

    @property
    def seconds(self) -> float:
        """Seconds since the clock started; 0 before."""
        return time.monotonic() - self._started if self._data is not None else 0.0

    @property
    def progress(self) -> float:
        """Fraction of the budget used, 0 to 1."""
        if self.budget_tokens is not None:
            return min(1.0, self.tokens_seen / self.budget_tokens)
        assert self.budget_seconds is not None
        return min(1.0, self.seconds / self.budget_seconds)

    def spent(self, tokens: int) -> None:
        """Count one step over this many tokens; `batches` does this by itself."""
        self.tokens_seen += tokens
        self.steps += 1
        if time.monotonic() - self._reported > REPORT_EVERY_SECONDS:
            self._reported = time.monotonic()
            losses, self._losses = self._losses, []
            self._host.report_progress(
                {
                    "say": "progress",
                    "progress": self.progress,
                    "tokens": self.tokens_seen,
                    "steps": self.steps,
                    "loss": sum(losses) / len(losses) if losses else self._loss,
                }
            )

    def report(self, loss: float) -> None:
        """Report the training loss, in nats per token, to the live view.

        It shows the mean since its last update: the loss of one step says more about
        its batch than about the model.
        """
        self._loss = float(loss)
        self._losses.append(self._loss)

    def batches(self, rows: int, context: int) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield x, y on the device, int64 (rows, context), until the budget is used.

        The text is cut into rows of `context` tokens, reshuffled in each epoch with the
        run's seed; where the cuts lie differs by epoch. y is x shifted by one token.
        """
        tokens = self.tokens
        batches = iter_shuffled_batches(tokens, rows, context, self.seed)
        while self.progress < 1:
            self.spent(rows * context)
            yield copy_to_device(next(batches), self.device)

    def submit(self, model: Any, **facts: float | int | str) -> None:
        """Submit the trained model and facts about its configuration; never returns."""
        from autoresearch.guest import safetensors_format

        facts.setdefault(
            "mfu_percent", self._estimate_mfu(facts.get("flops_per_token"))
        )
        state, probe = export_for_submission(model)
        width = safetensors_format.DTYPE_BYTES
        self._host.submit_weights(
            state,
            {
                **facts,
                "parameters": sum(len(t.raw) // width[t.dtype] for t in state.values()),
                "tokens": self.tokens_seen,
                "steps": self.steps,
                "train_loss": self._loss if self._loss is not None else "",
                "gpu_memory_gb": read_peak_gpu_memory_gb(),
            },
            probe,
        )

    def _estimate_mfu(self, flops_per_token: float | int | str | None) -> float | str:
        """Model FLOPs utilisation in percent of the GPU's peak, or "unknown".

        A diagnostic: it trusts train.py's FLOPs per token.
        """
        torch = sys.modules.get("torch")
        if not isinstance(flops_per_token, int | float) or torch is None:
            return "unknown"
        if not self.device.startswith("cuda") or not self.seconds:
            return "unknown"
        from autoresearch.devices import gpu_specs

        rate, name = self.tokens_seen / self.seconds, torch.cuda.get_device_name()
        percent = gpu_specs.mfu_percent(flops_per_token, rate, name)
        return "unknown" if percent is None else round(percent, 1)


def iter_shuffled_batches(
    tokens: "np.ndarray[Any, Any]", rows: int, context: int, seed: int
) -> "Iterator[np.ndarray[Any, Any]]":
    """Yield uint16 (rows, context + 1) for ever, each epoch in another order.

    Raises ValueError where the tokens do not fill one row.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    if len(tokens) < context + 1:
        raise ValueError(
            f"{len(tokens)} training tokens do not fill a row of {context + 1}"
        )
    while True:
        skip = int(rng.integers(min(context, len(tokens) - context)))
        count = (len(tokens) - skip - 1) // context
        starts = skip + context * rng.permutation(count)
        starts = np.resize(starts, -(-count // rows) * rows)  # repeats: no short batch
        span = np.arange(context + 1)
        for at in range(0, len(starts), rows):
            yield tokens[starts[at : at + rows, None] + span]


def copy_to_device(
    batch: "np.ndarray[Any, Any]", device: str
) -> "tuple[Tensor, Tensor]":
    """uint16 (B, T+1) on the host -> x, y int64 (B, T) on the device."""
    import torch

    if device.startswith("cuda"):
        # Copies two bytes per token; torch has no arithmetic on uint16.
        host = torch.from_numpy(batch.view("<i2")).pin_memory()
        whole = host.to(device, non_blocking=True).long() & 0xFFFF
    else:
        whole = torch.from_numpy(batch.astype("int64")).to(device)
    return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()


def export_for_submission(model: Any) -> "tuple[ModelState, ConsistencyAnswer]":
    """A trained model -> (its weights, its answer to the consistency check)."""
    from autoresearch.guest import safetensors_format

    if is_torch_model(model):
        from autoresearch.guest import torch_model

        return (
            torch_model.export_state(model),
            lambda row: torch_model.answer_consistency_row(model, row),
        )
    state = {
        name: safetensors_format.tensor_from_floats(v)
        for name, v in model.state_dict().items()
    }
    return state, lambda row: b""


def is_torch_model(model: Any) -> bool:
    """Whether the model is a torch module; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def read_peak_gpu_memory_gb() -> float:
    """Peak GPU memory allocated by torch, in GB; 0 without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.max_memory_allocated() / 1e9)


# -- under the harness -----------------------------------------------------------------


class HarnessHost:
    """The harness as the host of a training run."""

    def __init__(self, link: Channel, hello: Message) -> None:
        self._link = link
        self.terms = TrainingTerms(hello)

    def start_clock(self) -> memoryview:
        self._link.send({"say": "start"})
        _, (descriptor,) = self._link.receive()
        return sealed_memory.map_read_only(descriptor)

    def report_progress(self, message: Message) -> None:
        self._link.send(message)

    def submit_weights(
        self, state: "ModelState", facts: Mapping[str, object], probe: ConsistencyAnswer
    ) -> None:
        from autoresearch.guest import safetensors_format

        sys.stdout.flush()
        sys.stderr.flush()
        file = sealed_memory.seal_parts(
            safetensors_format.encode_parts(state), "weights"
        )
        self._link.send({"say": "submit", "facts": dict(facts)}, file)
        # The clock has stopped. In a text lab the harness now asks the trained model
        # for its losses on unseen text; the served model must give the same losses.
        try:
            _, (descriptor,) = self._link.receive()
            answer = probe(sealed_memory.map_read_only(descriptor))
            self._link.send(
                {"say": "probed"}, sealed_memory.seal_bytes(answer, "probe")
            )
        except ipc.ChannelClosed:
            pass  # this lab has no consistency check
        os._exit(0)


def begin(build: BuildModel) -> Training:
    """Start the training run, or serve the model.

    In a serving process it loads the submitted weights, answers the evaluator and never
    returns.
    """
    if _link is None:
        from autoresearch.guest.standalone import StandaloneHost

        host: TrainingHost = StandaloneHost(build)
    else:
        if _hello["mode"] == "serve":
            serve_model(_link, _hello, build)
        host = HarnessHost(_link, _hello)
    seed_generators(host.terms.seed)
    return Training(host)


def seed_generators(seed: int) -> None:
    """Seed the generators of every library the script has imported so far."""
    if "random" in sys.modules:
        import random

        random.seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)


def serve_model(link: Channel, hello: Message, build: BuildModel) -> NoReturn:
    """Load the submitted weights and answer the evaluator until it disconnects."""
    from autoresearch.guest import safetensors_format

    file = sealed_memory.map_read_only(_descriptors[0])
    seed_generators(0)
    model = build()
    try:
        if is_torch_model(model):
            from autoresearch.guest import torch_model

            torch_model.load_state(
                model, safetensors_format.decode(file), hello["device"]
            )
            torch_model.serve_requests(link, hello, model, _descriptors[1:])
        else:
            tensors = safetensors_format.decode(file)
            model.load_state_dict(
                {k: safetensors_format.tensor_to_floats(t) for k, t in tensors.items()}
            )
            serve_json_outputs(link, model)
    except ipc.ChannelClosed:
        pass  # the evaluator is finished
    os._exit(0)


def serve_json_outputs(link: Channel, model: Callable[[Any], Any]) -> NoReturn:
    """Serve a model that maps JSON inputs to JSON outputs."""
    import json

    link.send({"say": "ready"})
    while True:
        _, (descriptor,) = link.receive()
        outputs = model(json.loads(bytes(sealed_memory.map_read_only(descriptor))))
        link.send(
            {"say": "done"}, sealed_memory.seal_bytes(json.dumps(outputs).encode())
        )


_link: Channel | None = None  # None: started by a person, without a harness
_hello: Message = {}
_descriptors: list[int] = []


def main(descriptor: int, restrictions: str = "", *preload: str) -> None:
    """Entry point of every sandboxed process: receive the terms, then run train.py.

    First it applies the sandbox restrictions, before any code of train.py has run; they
    cannot be removed. Then it imports the modules in `preload`, which most train.py
    files will need, and waits for the first message.
    """
    global _link, _hello, _descriptors
    if restrictions:
        SandboxRestrictions.from_argument(restrictions).apply()
    for module in preload:
        with contextlib.suppress(ImportError):  # train.py may not need it
            importlib.import_module(module)
    _link = Channel(socket.socket(fileno=descriptor))
    _hello, _descriptors = _link.receive()
    if _hello.pop("source", False):  # else the file was there from the start
        descriptor = _descriptors.pop(0)
        with open("train.py", "wb") as file:
            file.write(sealed_memory.map_read_only(descriptor))
        os.close(descriptor)
    sys.path.insert(0, os.getcwd())
    sys.argv = ["train.py"]
    if _hello["mode"] == "rehearse":
        from autoresearch.guest import dry_run

        dry_run.main(_link, _hello)
    # As `python train.py` would: in the namespace of `__main__`, where dataclasses and
    # pickle look names up. runpy does the same, after 4 ms of imports.
    namespace = vars(sys.modules["__main__"])
    with open("train.py", "rb") as file:
        source = file.read()
    namespace["__file__"] = "train.py"
    exec(compile(source, "train.py", "exec"), namespace)  # noqa: S102
