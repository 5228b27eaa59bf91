"""Export a torch model, load it in another process, and serve it. Runs in the sandbox.

A script may do all of this to its model and still have it served as trained: compile
it or wrap it, tie weights, keep them in bf16, fill non-persistent buffers after
building. An error in this module affects only the model being served.
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
# torch.compile, DistributedDataParallel and AveragedModel prefix every name with these.
WRAPPER_PREFIXES = ("_orig_mod.", "module.")


def export_state(model: nn.Module) -> dict[str, RawTensor]:
    """Every parameter and buffer by its plain name, also non-persistent buffers."""
    state: dict[str, RawTensor] = {}
    for name, tensor in iter_named_tensors(model):
        whole = tensor.detach().cpu().contiguous()
        raw = memoryview(whole.reshape(-1).view(torch.uint8).numpy())
        state[strip_wrapper_prefixes(name)] = RawTensor(
            DTYPE_NAMES[whole.dtype], tuple(whole.shape), raw
        )
    return state


def iter_named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers under every name; tied ones appear more than once."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def strip_wrapper_prefixes(name: str) -> str:
    """Remove the prefixes that wrappers add to a tensor's name."""
    for prefix in WRAPPER_PREFIXES:
        name = name.replace(prefix, "")
    return name


def load_state(model: nn.Module, state: ModelState, device: str) -> None:
    """Load a state into a freshly built model; exits where it does not fit."""
    built = {strip_wrapper_prefixes(name) for name, _ in iter_named_tensors(model)}
    if built != set(state):
        unmatched = ", ".join(sorted(built ^ set(state))[:5])
        exit_mismatched(f"build_model() and the submitted model differ in: {unmatched}")
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
    """The saved tensor as a parameter or buffer, whichever `old` is."""
    if tuple(old.shape) != saved.shape:
        exit_mismatched(
            f"{name} is {tuple(old.shape)} in build_model(), {saved.shape} submitted"
        )
    if not len(saved.raw):  # `frombuffer` refuses an empty buffer
        new = torch.empty(saved.shape, dtype=DTYPE_BY_NAME[saved.dtype], device=device)
    else:
        with warnings.catch_warnings():  # about read-only memory; it is copied below
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(saved.raw, dtype=torch.uint8)
        flat = flat.view(DTYPE_BY_NAME[saved.dtype]).reshape(saved.shape)
        new = flat.to(device, copy=True)
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=False)
    return new


def exit_mismatched(reason: str) -> NoReturn:
    """Exit with a line on stderr from which the evaluator reads the reason."""
    print(f"MISFIT {reason}", file=sys.stderr, flush=True)
    raise SystemExit(3)


def compute_logits(
    model: nn.Module, ids: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """ids (B, T) -> logits (B, T, vocabulary), float32."""
    with torch.inference_mode():
        logits = model(ids)
    if logits.shape[:2] != ids.shape or logits.shape[2] < vocabulary:
        exit_mismatched(
            f"model(ids) returns {tuple(logits.shape)} for ids {tuple(ids.shape)}"
        )
    return logits[..., :vocabulary].float()


LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ClaimFunction = Callable[[nn.Module, torch.Tensor, int], torch.Tensor]


def compute_losses(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (N, V) -> cross entropy of each token in nats, float32 (N,)."""
    return nn.functional.cross_entropy(logits, tokens, reduction="none")


def claim_losses(
    model: nn.Module,
    batch: torch.Tensor,
    vocabulary: int,
    losses: LossFunction = compute_losses,
) -> torch.Tensor:
    """Rows (B, T+1) -> loss on every next token in nats, float32 (B, T)."""
    logits = compute_logits(model, batch[:, :-1], vocabulary)
    flat = losses(logits.flatten(0, 1), batch[:, 1:].flatten())
    return flat.view(batch.shape[0], -1)


def claim_model_losses(
    model: nn.Module, batch: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """Like `claim_losses`, by the model's own `losses`, which need not store logits."""
    ids, tokens = batch[:, :-1], batch[:, 1:]
    with torch.inference_mode():
        losses = model.losses(ids, tokens)
    return losses.float().reshape(ids.shape)


def answer_consistency_row(model: nn.Module, row: memoryview) -> bytes:
    """The trained model's losses on one row of tokens, uint16 (T+1) -> float32 (T).

    Both as bytes. The evaluator compares them with the served model's losses on the
    same row, hidden among other rows.
    """
    _, vocabulary = read_lab_shape()
    tokens = np.frombuffer(row, dtype="<u2").astype(np.int64)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    # Eager: a batch of another shape would recompile a compiled model, which is slow.
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        losses = claim_losses(
            model, torch.from_numpy(tokens)[None].to(device), vocabulary
        )
    model.train(was_training)
    return bytes(losses.cpu().numpy().astype("<f4").tobytes())


def read_lab_shape() -> tuple[int, int]:
    """(CONTEXT, VOCABULARY) of the prepare.py that train.py imported."""
    lab = sys.modules["prepare"]
    return int(lab.CONTEXT), int(lab.VOCABULARY)


# Two ways to compute a bf16 model differ by up to 0.01 nats per token, in both
# directions. A larger difference is another model, and an audit could call it a cheat.
ROUNDING_NATS, BIAS_NATS = 0.03, 0.001


def try_compile(
    model: nn.Module, batch: torch.Tensor, vocabulary: int
) -> ClaimFunction | None:
    """Compile a model on this batch, and return the function that claims its losses.

    Only a model with a `compile` method of its own: torch's default compiles the whole
    model, which takes longer than it saves. None: it has no such method, compilation
    failed, or its losses changed; the model is then restored.
    """
    if type(model).compile is nn.Module.compile:
        return None
    snapshots = [(module, ModuleSnapshot(module)) for module in model.modules()]
    eager = claim_losses(model, batch, vocabulary)
    candidates: list[ClaimFunction] = (
        [claim_model_losses] if hasattr(type(model), "losses") else []
    )
    candidates.append(
        partial(claim_losses, losses=torch.compile(compute_losses, dynamic=False))
    )
    try:
        model.compile()
        for claim in candidates:
            if matches_eager(claim, model, batch, vocabulary, eager):
                return claim
    except Exception as error:
        print(f"not compiled: {error}", file=sys.stderr, flush=True)
    for module, snapshot in snapshots:
        snapshot.restore(module)
    if not torch.allclose(
        claim_losses(model, batch, vocabulary), eager, atol=TOLERANCE_NATS
    ):
        # The evaluator starts another process, without compilation.
        exit_mismatched("compile() changed the model irreversibly")
    return None


def matches_eager(
    claim: ClaimFunction,
    model: nn.Module,
    batch: torch.Tensor,
    vocabulary: int,
    eager: torch.Tensor,
) -> bool:
    """Whether a compiled model's losses equal the eager ones (B, T), up to rounding."""
    try:
        difference = claim(model, batch, vocabulary) - eager
    except MODEL_ERRORS as error:
        print(f"compiled model fails: {error}", file=sys.stderr, flush=True)
        return False
    spread, bias = difference.abs().mean().item(), difference.mean().item()
    is_same = bool(spread < ROUNDING_NATS and abs(bias) < BIAS_NATS)
    if not is_same:
        message = f"compiled losses differ by {spread:.2g} nats, mean {bias:+.2g}"
        print(message, file=sys.stderr, flush=True)
    return is_same


class ModuleSnapshot:
    """A module's attributes, parameters, buffers and submodules, to be restored."""

    TABLES = ("_parameters", "_buffers", "_modules")

    def __init__(self, module: nn.Module) -> None:
        self._attributes = dict(vars(module))
        self._tables = {name: dict(self._attributes[name]) for name in self.TABLES}

    def restore(self, module: nn.Module) -> None:
        """Restore the same objects under the same names, also in torch's tables."""
        vars(module).clear()
        vars(module).update(self._attributes)
        for name, table in self._tables.items():
            self._attributes[name].clear()
            self._attributes[name].update(table)


# Rows are cut to multiples of this: few different shapes, and fast for some kernels.
LENGTH_MULTIPLE = 32
TOLERANCE_NATS = 1e-4
MODEL_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError)


class LastLogits:
    """Logits at one position of each row, on rows cut after the last of them.

    What is cut off is padding. A model may still need whole rows, or its logits may
    depend on the row length: the first batch is computed both ways, and later rows are
    cut only if both agree. Not on GPUs, where every new shape is compiled again.
    """

    def __init__(self, model: nn.Module, vocabulary: int, device: str) -> None:
        self._model, self._vocabulary = model, vocabulary
        # None: not tried yet.
        self._can_cut: bool | None = None if device == "cpu" else False

    def compute_at(self, ids: torch.Tensor, positions: list[int]) -> torch.Tensor:
        """ids (B, T) -> logits (B, V) at positions[i] of row i."""
        rows = torch.arange(len(positions), device=ids.device)
        at = torch.tensor(positions, device=ids.device)
        length = -(-(max(positions) + 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        cut = ids[:, :length]
        if self._can_cut:
            return compute_logits(self._model, cut, self._vocabulary)[rows, at]
        whole = compute_logits(self._model, ids, self._vocabulary)[rows, at]
        if self._can_cut is None and length < ids.shape[1]:
            self._can_cut = self._matches_whole_rows(cut, whole, rows, at)
        return whole

    def _matches_whole_rows(
        self,
        ids: torch.Tensor,
        whole: torch.Tensor,
        rows: torch.Tensor,
        at: torch.Tensor,
    ) -> bool:
        """Whether cut rows give the same logits as whole ones."""
        try:
            with torch.inference_mode():
                logits = self._model(ids)[rows, at, : self._vocabulary].float()
        except MODEL_ERRORS:
            return False
        return logits.shape == whole.shape and bool(
            torch.allclose(logits, whole, rtol=0.0, atol=TOLERANCE_NATS)
        )


POLL_SECONDS = 0.001  # about a fiftieth of a batch's time


def serve_requests(
    link: Channel, hello: Message, model: nn.Module, descriptors: list[int]
) -> NoReturn:
    """Answer claim and audit requests about rows in shared memory until disconnected.

    Inputs: uint16 (2, rows, T+1). Outputs: float32 (2, ...); one half is filled with
    losses (rows, T) for a claim, or with logits (positions, V) for an audit, where
    positions[i] belongs to row i. Each message names its half. Answers come in the
    order of the requests; a compiled model on a GPU starts the next batch while the
    last result is still being copied.
    """
    rows, context, vocabulary = hello["rows"], hello["context"], hello["vocabulary"]
    device = hello["device"]
    inputs = np.frombuffer(
        map_shared_memory(descriptors[0], mmap.PROT_READ), dtype="<u2"
    )
    inputs = inputs[: 2 * rows * (context + 1)].reshape(2, rows, context + 1)
    read_write = mmap.PROT_READ | mmap.PROT_WRITE
    outputs = np.frombuffer(map_shared_memory(descriptors[1], read_write), dtype="<f4")
    outputs = outputs.reshape(2, -1)
    last_logits = LastLogits(model, vocabulary, device)
    compiled_claim: ClaimFunction | None = None
    pending: PendingResult | None = None
    link.send({"say": "ready"})
    while True:
        message, pending = receive_next(link, pending)
        half = message["half"]
        batch = move_to_device(inputs[half].astype(np.int64), device)
        if message["say"] == "compile":
            compiled_claim = try_compile(model, batch, vocabulary)
            result = torch.empty(0)
        elif message["say"] == "claim":
            result = (compiled_claim or claim_losses)(model, batch, vocabulary)
        else:
            result = last_logits.compute_at(batch[:, :-1], message["positions"])
        # Only after compilation: then the text is long. A short one gains nothing.
        is_async = compiled_claim is not None and result.is_cuda
        previous, pending = (
            pending,
            PendingResult(result.reshape(-1), outputs[half], is_async=is_async),
        )
        if previous is not None:
            previous.write_output()
            link.send({"say": "done"})


def receive_next(
    link: Channel, pending: "PendingResult | None"
) -> tuple[Message, "PendingResult | None"]:
    """Wait for the next message; return it and the result still pending, if any."""
    while pending is not None:
        if pending.is_ready():
            pending.write_output()
            link.send({"say": "done"})
            pending = None
        elif link.poll(POLL_SECONDS):
            break
    return link.receive()[0], pending


def move_to_device(ids: Any, device: str) -> torch.Tensor:
    """Integers on a device; copied asynchronously to a GPU."""
    tensor = torch.from_numpy(ids)
    if device == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class PendingResult:
    """A result (N,) on its way from a device into shared memory.

    `is_async`: copied from a GPU in the background, while it starts the next batch.
    """

    def __init__(self, result: torch.Tensor, output: Any, *, is_async: bool) -> None:
        self._output = output
        self._event = torch.cuda.Event() if is_async else None
        if self._event is None:
            self._floats = result.cpu()
        else:
            self._floats = torch.empty(len(result), dtype=result.dtype, pin_memory=True)
            self._floats.copy_(result, non_blocking=True)
            self._event.record()

    def is_ready(self) -> bool:
        """Whether the copy has finished."""
        return self._event is None or self._event.query()

    def write_output(self) -> None:
        """Wait for the copy and write it to shared memory."""
        if self._event is not None:
            self._event.synchronize()
        self._output[: len(self._floats)] = self._floats.numpy()


def map_shared_memory(descriptor: int, protection: int) -> mmap.mmap:
    """Map memory shared with the evaluator, which writes to it between messages."""
    size_bytes = os.fstat(descriptor).st_size
    return mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, protection)
