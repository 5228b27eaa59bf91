"""A torch model's way out of one process and into another. Runs in the guest.

What the contract allows a script to do with its model, and still be served as trained:
compile it or wrap it, tie weights, keep them in bf16, fill non-persistent buffers after
building. Whatever goes wrong here hurts only the model being served.
"""

import mmap
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from autoresearch.guest.safetensors_format import ModelState, RawTensor
from autoresearch.sandbox.ipc import Channel, Message

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPE_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# torch.compile, DistributedDataParallel and AveragedModel put these before every name.
WRAPPER_PREFIXES = ("_orig_mod.", "module.")


def export_state(model: nn.Module) -> dict[str, RawTensor]:
    """Every parameter and buffer, the non-persistent ones too, by its plain name."""
    state: dict[str, RawTensor] = {}
    for name, tensor in iter_named_tensors(model):
        whole = tensor.detach().cpu().contiguous()
        raw = memoryview(whole.reshape(-1).view(torch.uint8).numpy())
        state[strip_wrapper_prefixes(name)] = RawTensor(
            DTYPE_NAMES[whole.dtype], tuple(whole.shape), raw
        )
    return state


def iter_named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers under each of their names, tied ones more than once."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def strip_wrapper_prefixes(name: str) -> str:
    """A tensor's name without what wrappers put before it."""
    for wrapper in WRAPPER_PREFIXES:
        name = name.replace(wrapper, "")
    return name


def load_state(model: nn.Module, state: ModelState, device: str) -> None:
    """Put a saved state into a freshly built model; complain if it does not fit."""
    mine = {strip_wrapper_prefixes(name) for name, _ in iter_named_tensors(model)}
    if mine != set(state):
        odd = ", ".join(sorted(mine ^ set(state))[:5])
        exit_mismatched(f"build_model() and the submitted model differ in: {odd}")
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for leaf, old in table.items():
                if old is not None:
                    name = strip_wrapper_prefixes(f"{path}.{leaf}" if path else leaf)
                    table[leaf] = restore_tensor(name, old, state[name], device)
    model.to(device).eval()


def restore_tensor(
    name: str, old: torch.Tensor, saved: RawTensor, device: str
) -> torch.Tensor:
    """The saved tensor, as what stood in its place: a parameter or a buffer."""
    if tuple(old.shape) != saved.shape:
        exit_mismatched(
            f"{name} is {tuple(old.shape)} in build_model(), {saved.shape} trained"
        )
    if not len(saved.raw):  # a buffer of no elements is fine, for all but `frombuffer`
        new = torch.empty(saved.shape, dtype=DTYPE_BY_NAME[saved.dtype], device=device)
    else:
        with warnings.catch_warnings():  # the memory is read-only, and only copied
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(saved.raw, dtype=torch.uint8)
        flat = flat.view(DTYPE_BY_NAME[saved.dtype]).reshape(saved.shape)
        new = flat.to(device, copy=True)
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=False)
    return new


def exit_mismatched(reason: str) -> NoReturn:
    """End the process so that the evaluator can name the reason."""
    print(f"MISFIT {reason}", file=sys.stderr, flush=True)
    raise SystemExit(3)


def compute_logits(
    model: nn.Module, ids: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """ids (B, T) -> logits (B, T, V) in float32."""
    with torch.inference_mode():
        logits = model(ids)
    if logits.shape[:2] != ids.shape or logits.shape[2] < vocabulary:
        exit_mismatched(
            f"model(ids) gave {tuple(logits.shape)} for ids {tuple(ids.shape)}"
        )
    return logits[..., :vocabulary].float()


LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ClaimFunction = Callable[[nn.Module, torch.Tensor, int], torch.Tensor]


def compute_losses(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (N, V) -> loss in nats of each token, float32 (N,)."""
    return nn.functional.cross_entropy(logits, tokens, reduction="none")


def claim_losses(
    model: nn.Module,
    batch: torch.Tensor,
    vocabulary: int,
    losses: LossFunction = compute_losses,
) -> torch.Tensor:
    """Rows (B, T+1) -> loss in nats of every next token, float32 (B, T)."""
    logits = compute_logits(model, batch[:, :-1], vocabulary)
    flat = losses(logits.flatten(0, 1), batch[:, 1:].flatten())
    return flat.view(batch.shape[0], -1)


def claim_model_losses(
    model: nn.Module, batch: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """The same by the model's own `losses`, which need not write and read logits."""
    ids, tokens = batch[:, :-1], batch[:, 1:]
    with torch.inference_mode():
        losses = model.losses(ids, tokens)
    return losses.float().reshape(ids.shape)


def answer_consistency_row(model: nn.Module, row: memoryview) -> bytes:
    """The trained model's losses on one row of tokens (T+1), float32 (T), as bytes.

    The evaluator asks the served model for the same, hidden among other rows.
    """
    _, vocabulary = read_lab_shape()
    tokens = np.frombuffer(row, dtype="<u2").astype(np.int64)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    # Eager: one odd-shaped batch would recompile a compiled model, on the clock.
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        found = claim_losses(
            model, torch.from_numpy(tokens)[None].to(device), vocabulary
        )
    model.train(training)
    return bytes(found.cpu().numpy().astype("<f4").tobytes())


def read_lab_shape() -> tuple[int, int]:
    """Context and vocabulary of the lab, from the prepare.py that train.py imported."""
    lab = sys.modules["prepare"]
    return int(lab.CONTEXT), int(lab.VOCABULARY)


# Two ways to compute a model in bf16 differ by up to a hundredth of a nat a token, but
# to both sides. More is another model, and an audit may take it for a lie.
ROUNDING_NATS, BIAS_NATS = 0.03, 0.001


def try_compile(
    model: nn.Module, batch: torch.Tensor, vocabulary: int
) -> ClaimFunction | None:
    """Compile a model that knows how, on this batch; what its claims are made by then.

    Knowing how is a `compile` of its own: torch's compiles a model whole, which takes
    longer than it saves. None: it does not, or cannot be, or says something else by
    then; what hung on it is put back.
    """
    if type(model).compile is nn.Module.compile:
        return None
    before = [(module, ModuleSnapshot(module)) for module in model.modules()]
    eager = claim_losses(model, batch, vocabulary)
    ways: list[ClaimFunction] = (
        [claim_model_losses] if hasattr(type(model), "losses") else []
    )
    ways.append(
        partial(claim_losses, losses=torch.compile(compute_losses, dynamic=False))
    )
    try:
        model.compile()
        for way in ways:
            if matches_eager(way, model, batch, vocabulary, eager):
                return way
    except Exception as error:
        print(f"not compiled: {error}", file=sys.stderr, flush=True)
    for module, contents in before:
        contents.restore(module)
    if not torch.allclose(
        claim_losses(model, batch, vocabulary), eager, atol=TOLERANCE_NATS
    ):
        exit_mismatched(
            "compile() changed the model for good"
        )  # another guest is asked
    return None


def matches_eager(
    way: ClaimFunction,
    model: nn.Module,
    batch: torch.Tensor,
    vocabulary: int,
    eager: torch.Tensor,
) -> bool:
    """Whether a compiled model claims so what it claimed before, but for rounding."""
    try:
        off = way(model, batch, vocabulary) - eager
    except MODEL_ERRORS as error:
        print(f"not claimed so: {error}", file=sys.stderr, flush=True)
        return False
    far, bias = off.abs().mean().item(), off.mean().item()
    same = bool(far < ROUNDING_NATS and abs(bias) < BIAS_NATS)
    if not same:
        words = (
            f"claims differ once compiled: by {far:.2g} nats, on average {bias:+.2g}"
        )
        print(words, file=sys.stderr, flush=True)
    return same


class ModuleSnapshot:
    """What hangs on a module by name, to be put back."""

    TABLES = ("_parameters", "_buffers", "_modules")

    def __init__(self, module: nn.Module) -> None:
        self._held = dict(vars(module))
        self._tables = {name: dict(self._held[name]) for name in self.TABLES}

    def restore(self, module: nn.Module) -> None:
        """The same objects under the same names, and in torch's own tables as well."""
        vars(module).clear()
        vars(module).update(self._held)
        for name, table in self._tables.items():
            self._held[name].clear()
            self._held[name].update(table)


LENGTH_MULTIPLE = (
    32  # rows are cut to multiples of this: few shapes, and some kernels like it
)
TOLERANCE_NATS = 1e-4
MODEL_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError)


class LastLogits:
    """Logits at one position of each row, without computing what follows the last.

    What follows a cut is filler. A model may still insist on whole rows, or its answers
    may depend on how long they are: the first batch is asked both ways, and only one
    that gives the same is cut from then on. Not on GPUs, where shapes compile anew.
    """

    def __init__(self, model: nn.Module, vocabulary: int, device: str) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._can_cut: bool | None = (
            None if device == "cpu" else False
        )  # None: not tried

    def compute_at(self, ids: torch.Tensor, positions: list[int]) -> torch.Tensor:
        """ids (B, T) -> logits (B, V) at positions[i] of row i."""
        lines = torch.arange(len(positions), device=ids.device)
        at = torch.tensor(positions, device=ids.device)
        upto = -(-(max(positions) + 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        if self._can_cut:
            return compute_logits(self._model, ids[:, :upto], self._vocabulary)[
                lines, at
            ]
        whole = compute_logits(self._model, ids, self._vocabulary)[lines, at]
        if self._can_cut is None and upto < ids.shape[1]:
            self._can_cut = self._matches_whole_rows(ids[:, :upto], whole, lines, at)
        return whole

    def _matches_whole_rows(
        self,
        ids: torch.Tensor,
        whole: torch.Tensor,
        lines: torch.Tensor,
        at: torch.Tensor,
    ) -> bool:
        """Whether the model says the same of rows that end early."""
        try:
            with torch.inference_mode():
                found = self._model(ids)[lines, at, : self._vocabulary].float()
        except MODEL_ERRORS:
            return False
        return found.shape == whole.shape and bool(
            torch.allclose(found, whole, rtol=0.0, atol=TOLERANCE_NATS)
        )


POLL_SECONDS = 0.001  # a fiftieth of a batch: nobody waits for it


def serve_requests(
    link: Channel, hello: Message, model: nn.Module, descriptors: list[int]
) -> NoReturn:
    """Answer claims and audits about rows in shared memory until the other end closes.

    Inputs: uint16 (2, rows, T+1). Outputs: float32 (2, ..), of which one half is filled
    with (rows, T) for a claim, and with (positions, V) for an audit, whose positions[i]
    belongs to row i. Each message says which half it is about. Answers come in the
    order of the questions; a GPU that compiled begins with the next while the last is
    on its way.
    """
    rows, context, vocabulary = hello["rows"], hello["context"], hello["vocabulary"]
    device = hello["device"]
    inputs = np.frombuffer(
        map_shared_memory(descriptors[0], mmap.PROT_READ), dtype="<u2"
    )
    inputs = inputs[: 2 * rows * (context + 1)].reshape(2, rows, context + 1)
    both_ways = mmap.PROT_READ | mmap.PROT_WRITE
    outputs = np.frombuffer(map_shared_memory(descriptors[1], both_ways), dtype="<f4")
    outputs = outputs.reshape(2, -1)
    last = LastLogits(model, vocabulary, device)
    quick: ClaimFunction | None = None
    coming: PendingResult | None = None
    link.send({"say": "ready"})
    while True:
        message, coming = receive_next(link, coming)
        half = message["half"]
        batch = move_to_device(inputs[half].astype(np.int64), device)
        if message["say"] == "compile":
            quick, found = try_compile(model, batch, vocabulary), torch.empty(0)
        elif message["say"] == "claim":
            found = (quick or claim_losses)(model, batch, vocabulary)
        else:
            found = last.compute_at(batch[:, :-1], message["positions"])
        # Whoever compiled has a long text before it; a short one gains nothing.
        late = quick is not None and found.is_cuda
        before, coming = (
            coming,
            PendingResult(found.reshape(-1), outputs[half], late=late),
        )
        if before is not None:
            before.write_output()
            link.send({"say": "done"})


def receive_next(
    link: Channel, coming: "PendingResult | None"
) -> tuple[Message, "PendingResult | None"]:
    """The next message, and what is still on its way by then."""
    while coming is not None:
        if coming.is_ready():
            coming.write_output()
            link.send({"say": "done"})
            coming = None
        elif link.poll(POLL_SECONDS):
            break
    return link.receive()[0], coming


def move_to_device(ids: Any, device: str) -> torch.Tensor:
    """Whole numbers on a device. A GPU fetches them itself, when it comes to them."""
    there = torch.from_numpy(ids)
    if device == "cuda":
        return there.pin_memory().to(device, non_blocking=True)
    return there.to(device)


class PendingResult:
    """An answer (N,) on its way from a device into shared memory; late: from a GPU,

    which may begin with something else before it is there.
    """

    def __init__(self, found: torch.Tensor, output: Any, *, late: bool) -> None:
        self._output = output
        self._event = torch.cuda.Event() if late else None
        if self._event is None:
            self._floats = found.cpu()
        else:
            self._floats = torch.empty(len(found), dtype=found.dtype, pin_memory=True)
            self._floats.copy_(found, non_blocking=True)
            self._event.record()

    def is_ready(self) -> bool:
        """Whether nothing has to be waited for."""
        return self._event is None or self._event.query()

    def write_output(self) -> None:
        """Wait for it, and put it where the other side reads it."""
        if self._event is not None:
            self._event.synchronize()
        self._output[: len(self._floats)] = self._floats.numpy()


def map_shared_memory(descriptor: int, protection: int) -> mmap.mmap:
    """Memory shared with the evaluator, which may change it between two messages."""
    size_bytes = os.fstat(descriptor).st_size
    return mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, protection)
