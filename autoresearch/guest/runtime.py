"""What `train.py` talks to: begin, batches, submit. This side is not trusted.

The same train.py runs in three ways, and need not know which:

* as a training guest of the harness: data arrives when the clock starts, weights leave;
* as a model guest: `begin` loads handed-in weights, answers, and never returns;
* alone, for a person at a keyboard: see `standalone`.

Nothing here decides a score, a seed or a second. Code in the same process can change
any of it and gains nothing: the harness keeps its own clock and does its own sums.
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
        """The training data as read-only bytes. The first touch starts the clock."""
        if self._data is None:
            self._data = self._host.start_clock()
            self._started = time.monotonic()
        return self._data

    @property
    def tokens(self) -> "np.ndarray[Any, np.dtype[np.uint16]]":
        """The training text: one read-only uint16 array (N,)."""
        import numpy as np

        return np.frombuffer(self.data, dtype="<u2")

    @property
    def seconds(self) -> float:
        """Since the clock started; 0 before."""
        return time.monotonic() - self._started if self._data is not None else 0.0

    @property
    def progress(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        if self.budget_tokens is not None:
            return min(1.0, self.tokens_seen / self.budget_tokens)
        assert self.budget_seconds is not None
        return min(1.0, self.seconds / self.budget_seconds)

    def spent(self, tokens: int) -> None:
        """Count one step over this many tokens; `batches` does it by itself."""
        self.tokens_seen += tokens
        self.steps += 1
        if time.monotonic() - self._reported > REPORT_EVERY_SECONDS:
            self._reported = time.monotonic()
            shown, self._losses = self._losses, []
            self._host.report_progress(
                {
                    "say": "progress",
                    "progress": self.progress,
                    "tokens": self.tokens_seen,
                    "steps": self.steps,
                    "loss": sum(shown) / len(shown) if shown else self._loss,
                }
            )

    def report(self, loss: float) -> None:
        """Tell the live view the training loss, in nats per token.

        A mean of those since it was last told: one step's loss says more of its batch
        than of the model.
        """
        self._loss = float(loss)
        self._losses.append(self._loss)

    def batches(self, rows: int, context: int) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield x, y, int64 (rows, context), on the device until the budget is used.

        The text is cut into rows of `context` tokens, shuffled anew by the seed in
        each pass; the cut moves from pass to pass. y is x one token later.
        """
        tokens = self.tokens
        batches = iter_shuffled_batches(tokens, rows, context, self.seed)
        while self.progress < 1:
            self.spent(rows * context)
            yield copy_to_device(next(batches), self.device)

    def submit(self, model: Any, **facts: float | int | str) -> None:
        """Hand in the trained model, and the configuration it was resolved to."""
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
        """Percent of the GPU's peak; a diagnostic, from what train.py says it needs."""
        torch = sys.modules.get("torch")
        if not isinstance(flops_per_token, int | float) or torch is None:
            return "unknown"
        if not self.device.startswith("cuda") or not self.seconds:
            return "unknown"
        from autoresearch.devices import gpu_specs

        rate, name = self.tokens_seen / self.seconds, torch.cuda.get_device_name()
        found = gpu_specs.mfu_percent(flops_per_token, rate, name)
        return "unknown" if found is None else round(found, 1)


def iter_shuffled_batches(
    tokens: "np.ndarray[Any, Any]", rows: int, context: int, seed: int
) -> "Iterator[np.ndarray[Any, Any]]":
    """Yield uint16 (rows, context + 1) for ever; every pass in another order."""
    import numpy as np

    rng = np.random.default_rng(seed)
    if len(tokens) < context + 1:
        raise ValueError(f"{len(tokens)} training tokens do not fill {context + 1}")
    while True:
        skip = int(rng.integers(min(context, len(tokens) - context)))
        count = (len(tokens) - skip - 1) // context
        starts = skip + context * rng.permutation(count)
        starts = np.resize(starts, -(-count // rows) * rows)  # wraps: no short batch
        span = np.arange(context + 1)
        for at in range(0, len(starts), rows):
            yield tokens[starts[at : at + rows, None] + span]


def copy_to_device(
    batch: "np.ndarray[Any, Any]", device: str
) -> "tuple[Tensor, Tensor]":
    """uint16 (B, T+1) on the host -> x, y int64 (B, T) on the device."""
    import torch

    if device.startswith("cuda"):
        # Two bytes a token cross the bus; torch has no arithmetic on uint16.
        host = torch.from_numpy(batch.view("<i2")).pin_memory()
        whole = host.to(device, non_blocking=True).long() & 0xFFFF
    else:
        whole = torch.from_numpy(batch.astype("int64")).to(device)
    return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()


def export_for_submission(model: Any) -> "tuple[ModelState, ConsistencyAnswer]":
    """A trained model -> (all its numbers, what answers the harness's probe)."""
    from autoresearch.guest import safetensors_format

    if is_torch_model(model):
        from autoresearch.guest import torch_model

        return torch_model.export_state(
            model
        ), lambda row: torch_model.answer_consistency_row(model, row)
    state = {
        name: safetensors_format.tensor_from_floats(v)
        for name, v in model.state_dict().items()
    }
    return state, lambda row: b""


def is_torch_model(model: Any) -> bool:
    """Whether the model is a torch module, without importing torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def read_peak_gpu_memory_gb() -> float:
    """Peak memory torch took on the GPU; 0 without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.max_memory_allocated() / 1e9)


# -- as a guest of the harness ---------------------------------------------------------


class HarnessHost:
    """The host of a training guest."""

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
        # The clock has stopped. A text lab now asks the trained model for its losses
        # on a text it has not seen; the served model will have to give the same.
        try:
            _, (descriptor,) = self._link.receive()
            answer = probe(sealed_memory.map_read_only(descriptor))
            self._link.send(
                {"say": "probed"}, sealed_memory.seal_bytes(answer, "probe")
            )
        except ipc.ChannelClosed:
            pass  # there was nothing to ask
        os._exit(0)


def begin(build: BuildModel) -> Training:
    """Join the run. In the evaluator's process this serves the model for ever."""
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
    """Seed every generator the script has imported so far."""
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
    """Answer the evaluator until it hangs up."""
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
        pass  # the evaluator has all it wanted
    os._exit(0)


def serve_json_outputs(link: Channel, model: Callable[[Any], Any]) -> NoReturn:
    """For labs whose model maps JSON-able inputs to JSON-able outputs."""
    import json

    link.send({"say": "ready"})
    while True:
        _, (descriptor,) = link.receive()
        outputs = model(json.loads(bytes(sealed_memory.map_read_only(descriptor))))
        link.send(
            {"say": "done"}, sealed_memory.seal_bytes(json.dumps(outputs).encode())
        )


_link: Channel | None = None  # None: nobody but a person started this
_hello: Message = {}
_descriptors: list[int] = []


def main(descriptor: int, words: str = "", *ahead: str) -> None:
    """Entry of every guest process: hear the terms, then run the lab's train.py.

    First it shuts itself in: nothing of train.py has run yet, and nothing of it can
    take that back. Then it may import what most of them will, and wait.
    """
    global _link, _hello, _descriptors
    if words:
        SandboxRestrictions.from_argument(words).apply()
    for module in ahead:
        with contextlib.suppress(ImportError):  # train.py may do without
            importlib.import_module(module)
    _link = Channel(socket.socket(fileno=descriptor))
    _hello, _descriptors = _link.receive()
    if _hello.pop("source", False):  # else it lay here from the start
        given = _descriptors.pop(0)
        with open("train.py", "wb") as file:
            file.write(sealed_memory.map_read_only(given))
        os.close(given)
    sys.path.insert(0, os.getcwd())
    sys.argv = ["train.py"]
    if _hello["mode"] == "rehearse":
        from autoresearch.guest import dry_run

        dry_run.main(_link, _hello)
    # As `python train.py` would: in the namespace that dataclasses and pickle look up
    # by the name `__main__`. runpy does the same, after 4 ms of imports.
    top = vars(sys.modules["__main__"])
    with open("train.py", "rb") as file:
        source = file.read()
    top["__file__"] = "train.py"
    exec(compile(source, "train.py", "exec"), top)  # noqa: S102
