"""A dry run of train.py in the sandbox: does it survive a few steps and a submit?

The harness's `preflight` starts it in a sandbox, on the CPU, ahead of time: it imports
the slow modules, reports that it is ready, and waits for a file. Then it runs the file
twice, on random tokens: first up to `begin` at full size, where the model is built and
called on the meta device (shapes and counts, no memory); then completely, at a small
size, through some batches to `submit`, where a fresh model is loaded from the weights
and checked for causality: a later token must not change an earlier logit.

The result is advice only. It comes from the same process as train.py, which could forge
it and would gain nothing, since the real run is measured elsewhere. Not covered: what
only happens on CUDA or only at full size, and whether the idea is any good.
"""

import ast
import importlib
import math
import os
import re
import runpy
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from autoresearch.sandbox.ipc import Channel, ChannelClosed, Message

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MAX_CONTEXT = 128
MAX_VOCABULARY = 512  # unless the file contains the lab's number as a literal
MAX_ROWS = 2
MAX_BATCHES = 12
BUDGET_SECONDS = 2.5  # for batches; then progress is 1
GRACE_SECONDS = 8.0  # after that, for the last step and the code after the loop
MAX_LATE_REPORTS = 2  # loss reports an honest loop makes after its budget is used
TOKEN_COUNT = 20_000
MAX_POWER = 64  # largest base and exponent evaluated in a literal power
LARGE_MODEL_PARAMETERS = 6_000_000  # a larger model is run from small.py
SHAPE_ERROR_PATTERN = re.compile(
    r"shape|size|dimension|must match|divisible|broadcast|invalid for input|mat1",
    re.IGNORECASE,
)


class DryRunUnwound(BaseException):
    """Raised inside train.py to return to the dry run."""


class DryRunFault(Exception):
    """A fault of train.py, described in one line."""


class DryRunTraining:
    """Stands in for `runtime.Training` and has the same members."""

    def __init__(
        self,
        build: Callable[[], Any],
        prepare: Any,
        hello: Message,
        give_up: Callable[[str], None],
    ) -> None:
        self._build = build
        self._give_up = give_up
        self._prepare = prepare
        self._causal = bool(prepare.CAUSAL)
        self._started: float | None = None  # None: the data has not been read
        self._loss: float | None = None
        self._reports = 0
        self.batch_tokens = 0  # as train.py asked for, before the batch is cut
        self.tokens_seen = 0
        self.steps = 0
        self.seed = 7
        self.device = "cpu"
        self.budget_seconds = hello["budget_seconds"]
        self.budget_tokens = hello["budget_tokens"]
        self.outcome: dict[str, object] = {}

    @property
    def data(self) -> memoryview:
        """Random tokens in a text lab, else the lab's own training data."""
        if self._started is None:
            self._started = time.monotonic()
            threading.Thread(target=self._watch_budget, daemon=True).start()
        if self._causal:
            import numpy as np

            high = int(self._prepare.VOCABULARY)
            tokens = np.random.default_rng(3).integers(0, high, TOKEN_COUNT)
            return memoryview(tokens.astype("<u2").tobytes()).toreadonly()
        data = self._prepare.training()
        body = data.read_bytes() if isinstance(data, Path) else bytes(data)
        return memoryview(body).toreadonly()

    @property
    def tokens(self) -> "np.ndarray[Any, Any]":
        """The training tokens, uint16 (N,)."""
        import numpy as np

        return np.frombuffer(self.data, dtype="<u2")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started if self._started is not None else 0.0

    @property
    def progress(self) -> float:
        return min(1.0, max(self.steps / MAX_BATCHES, self.seconds / BUDGET_SECONDS))

    def _watch_budget(self) -> None:
        """End a training loop that ignores its budget.

        After the grace period in wall-clock and in CPU time: on a busy machine an
        honest step may take long. Without loss reports in that period it is in the
        middle of a large step, and passes.
        """
        cpu_start = time.process_time()
        while self.seconds < BUDGET_SECONDS:
            time.sleep(0.2)
        reports = self._reports
        while (
            self.seconds < BUDGET_SECONDS + GRACE_SECONDS
            or time.process_time() - cpu_start < BUDGET_SECONDS + GRACE_SECONDS
        ):
            time.sleep(0.2)
        trains_on = self._reports - reports > MAX_LATE_REPORTS
        self._give_up(
            "it trains on after its budget is used (run.progress is 1)"
            if trains_on
            else ""
        )

    def spent(self, tokens: int) -> None:
        self.tokens_seen += tokens
        self.steps += 1

    def report(self, loss: float) -> None:
        self._loss = float(loss)
        self._reports += 1

    def batches(self, rows: int, context: int) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield few and small batches: at most MAX_ROWS rows, until progress is 1."""
        import torch

        if rows < 1 or context < 1:
            raise DryRunFault(
                f"run.batches({rows}, {context}) has no rows or no tokens"
            )
        if context + 1 > TOKEN_COUNT:
            raise DryRunFault(f"run.batches asks for {context} tokens a row")
        self.batch_tokens = rows * context
        count = min(int(rows), MAX_ROWS)
        text = torch.from_numpy(self.tokens.astype("int64"))
        while self.progress < 1:
            starts = torch.randint(len(text) - context - 1, (count,))
            batch = torch.stack([text[s : s + context + 1] for s in starts.tolist()])
            self.spent(count * context)
            yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def submit(self, model: Any, **facts: float | int | str) -> None:
        """Check the submission, then unwind train.py."""
        self._give_up = lambda fault: None  # the checks below may take a while
        if self._started is None:
            raise DryRunFault("it submits without reading the training data")
        if self.progress < 0.95:
            raise DryRunFault(
                f"it submits after {self.progress:.0%} of the budget; a run must use it"
            )
        for name, value in facts.items():
            if isinstance(value, float) and not math.isfinite(value):
                continue  # only displayed
            if not isinstance(value, int | float | str):
                kind = type(value).__name__
                raise DryRunFault(f"submit({name}=...) is {kind}, not a number or text")
        if self._causal:
            check_submission(model, self._build, self._prepare)
        else:
            self._build().load_state_dict(model.state_dict())
        raise DryRunUnwound


def check_submission(
    model: "nn.Module", build: Callable[[], Any], prepare: Any
) -> None:
    """Load a fresh model from the weights: same tensors, same logits, causal."""
    import torch

    from autoresearch.guest import torch_model

    for name, parameter in torch_model.iter_named_tensors(model):
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            plain = torch_model.strip_wrapper_prefixes(name)
            raise DryRunFault(f"{plain} is not finite after a few steps")
    fresh = build()
    if not isinstance(fresh, torch.nn.Module):
        raise DryRunFault(
            f"build_model() returns {type(fresh).__name__}, not a torch module"
        )
    state = torch_model.export_state(model)
    built = {
        torch_model.strip_wrapper_prefixes(name): t
        for name, t in torch_model.iter_named_tensors(fresh)
    }
    if unmatched := sorted(set(built) ^ set(state)):
        names = ", ".join(unmatched[:4])
        raise DryRunFault(f"build_model() and the submitted model differ in {names}")
    for name, tensor in built.items():
        shape, submitted = tuple(tensor.shape), state[name].shape
        if shape != submitted:
            raise DryRunFault(
                f"{name} is {shape} in build_model(), {submitted} submitted"
            )
    torch_model.load_state(fresh, state, "cpu")
    context, vocabulary = int(prepare.CONTEXT), int(prepare.VOCABULARY)
    ids = torch.randint(vocabulary, (2, context))
    with torch.inference_mode():
        model.eval()
        trained, logits = model(ids), fresh(ids)
    check_logits(logits, ids, vocabulary)
    difference = (trained.float() - logits.float()).abs().max().item()
    if not difference < 0.05 * (1 + logits.abs().max().item()):
        raise DryRunFault("a model loaded from the weights gives other logits")
    check_causal(fresh, ids, vocabulary)


def check_logits(logits: Any, ids: "Tensor", vocabulary: int) -> None:
    """Check that logits are (B, T, >= vocabulary) and finite."""
    import torch

    if not isinstance(logits, torch.Tensor):
        raise DryRunFault(
            f"model(ids) returns {type(logits).__name__}, not logits (B, T, V)"
        )
    has_rows = logits.ndim == 3 and logits.shape[:2] == ids.shape
    if not has_rows or logits.shape[2] < vocabulary:
        raise DryRunFault(
            f"model(ids) returns {tuple(logits.shape)} for ids {tuple(ids.shape)}; it "
            f"must be (B, T, at least {vocabulary})"
        )
    if not torch.isfinite(logits).all():
        raise DryRunFault("logits are not finite")


def check_causal(model: "nn.Module", ids: "Tensor", vocabulary: int) -> None:
    """Raise DryRunFault where a later token or another row changes a logit."""
    import torch

    torch.manual_seed(5)
    with torch.no_grad():  # weights initialised to zero would hide every mistake
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn_like(parameter))
    context = ids.shape[1]
    for cut in sorted({context // 2, context - 1}):
        other = ids.clone()
        other[:, cut:] = torch.randint(vocabulary, (2, context - cut))
        with torch.inference_mode():
            before, after = model(ids)[:, :cut].float(), model(other)[:, :cut].float()
        if not logits_match(before, after):
            raise DryRunFault("not causal: a later token changes an earlier logit")
    other = ids.clone()
    other[1] = torch.randint(vocabulary, (context,))
    with torch.inference_mode():
        before, after = model(ids)[0].float(), model(other)[0].float()
    if not logits_match(before, after):
        raise DryRunFault("one row of a batch changes the logits of another")


def logits_match(before: "Tensor", after: "Tensor") -> bool:
    """Whether logits are unchanged but for rounding."""
    limit = 1e-3 * (1 + before.abs().max().item())
    return not (before - after).abs().max().item() > limit


# -- the first pass: full size, on the meta device -------------------------------------


def check_on_meta_device(build: Callable[[], Any], prepare: Any) -> dict[str, object]:
    """Check shapes and count parameters at full size, on the meta device (no memory).

    What the meta device does not support is no fault; mismatched shapes are.
    """
    if not prepare.CAUSAL:
        return {}
    import torch

    try:
        with torch.device("meta"):
            model = build()
            ids = torch.zeros((1, int(prepare.CONTEXT)), dtype=torch.int64)
            count = sum(p.numel() for p in model.parameters())
            with torch.no_grad():
                logits = model.eval()(ids)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        if SHAPE_ERROR_PATTERN.search(str(error)):
            raise DryRunFault(format_error(error)) from None
        return {}
    except (TypeError, AttributeError, NotImplementedError):
        return {}  # the second pass runs the same code on a CPU
    if logits.ndim != 3 or logits.shape[2] < int(prepare.VOCABULARY):
        raise DryRunFault(
            f"model(ids) returns {tuple(logits.shape)} for ids {tuple(ids.shape)}"
        )
    return {
        "parameters": count,
        "bytes_per_token": measure_activation_bytes(build, prepare),
    }


def measure_activation_bytes(build: Callable[[], Any], prepare: Any) -> float:
    """Bytes per token that the forward pass saves for the backward pass, full size."""
    import torch

    saved: dict[int, int] = {}

    def record(tensor: "Tensor") -> "Tensor":
        saved[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
        return tensor

    context = int(prepare.CONTEXT)
    with torch.device("meta"):
        model = build()
        ids = torch.zeros((1, context), dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            model(ids).float().log_softmax(-1)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return float(max(0.0, sum(saved.values()) - weights) / context)


# -- both passes -----------------------------------------------------------------------


def main(link: Channel, hello: Message) -> NoReturn:
    """Entry point: wait for the file, run both passes, report the result, exit."""
    if hello["tensors"]:
        import_torch()
    wait_for_source(link)
    outcome: dict[str, object] = {}

    def give_up(fault: str) -> None:
        link.send({"say": "rehearsed", "fault": fault})
        os._exit(0)

    try:
        outcome = run_both_passes(hello, give_up)
        fault = ""
    except DryRunFault as error:
        fault = str(error)
    except DryRunUnwound:
        fault = ""
    except BaseException as error:  # untrusted code may raise anything
        fault = format_error(error)
    sys.stdout.flush()
    sys.stderr.flush()
    cpu_seconds = time.process_time()
    link.send(
        {
            "say": "rehearsed",
            "fault": fault[:300],
            "cpu_seconds": cpu_seconds,
            **outcome,
        }
    )
    os._exit(0)


def import_torch() -> None:
    """Import what every dry run of a torch model needs: two of its three seconds."""
    try:
        import torch
        import torch._dynamo  # the meta device and every optimiser load it  # noqa: F401
    except ImportError:
        pass  # a lab without torch; where it is needed, train.py will fail


def wait_for_source(link: Channel) -> None:
    """Report that the imports are done, and wait until train.py has been written."""
    link.send({"say": "waiting"})
    try:
        link.receive()
    except ChannelClosed:
        os._exit(0)  # this dry run was not needed


def run_both_passes(
    hello: Message, give_up: Callable[[str], None]
) -> dict[str, object]:
    """Run both passes; raises DryRunFault or any error of train.py."""
    sys.argv = ["train.py"]
    sys.path.insert(0, os.getcwd())
    prepare: Any = importlib.import_module("prepare")
    outcome = run_meta_pass(prepare)
    parameters = outcome.get("parameters", 0)  # 0: unknown, so it may be large
    assert isinstance(parameters, int)
    is_large = bool(prepare.CAUSAL) and not 0 < parameters <= LARGE_MODEL_PARAMETERS
    file = "small.py" if is_large and os.path.exists("small.py") else "train.py"
    if prepare.CAUSAL:
        shrink_sizes(prepare, Path(file).read_text())
    runs: list[DryRunTraining] = []

    def begin(build: Callable[[], Any]) -> DryRunTraining:
        if runs:
            raise DryRunFault("it calls prepare.begin twice")
        runs.append(DryRunTraining(build, prepare, hello, give_up))
        seed_torch(runs[0].seed)
        return runs[0]

    prepare.begin = begin
    try:
        runpy.run_path(file, run_name="__main__")
    except DryRunUnwound:
        return outcome | {"batch_tokens": runs[0].batch_tokens}
    if not runs:
        raise DryRunFault("it never calls prepare.begin(build_model)")
    raise DryRunFault("it ends without run.submit(model)")


def shrink_sizes(prepare: Any, source: str) -> None:
    """Shorten the context and the vocabulary, which take most of the time.

    A number that the file contains as a literal stays as it is.
    """
    literals = find_integer_literals(source)
    for name, limit in (("CONTEXT", MAX_CONTEXT), ("VOCABULARY", MAX_VOCABULARY)):
        value = int(getattr(prepare, name))
        if value > limit and value not in literals:
            setattr(prepare, name, limit)


def find_integer_literals(source: str) -> set[int]:
    """Integer literals in a file, including powers like 2**13 and 1 << 13."""
    literals: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=int(number)):
                literals.add(number)
            case ast.BinOp(
                left=ast.Constant(value=int(base)),
                op=ast.Pow() | ast.LShift() as operator,
                right=ast.Constant(value=int(power)),
            ) if 0 <= power <= MAX_POWER and 0 <= base <= MAX_POWER:
                is_power = isinstance(operator, ast.Pow)
                literals.add(base**power if is_power else base << power)
    return literals


def run_meta_pass(prepare: Any) -> dict[str, object]:
    """Run the file up to `begin`, at full size, on the meta device."""
    outcome: dict[str, object] = {}

    def begin(build: Callable[[], Any]) -> NoReturn:
        if not callable(build) or is_torch_module(build):
            raise DryRunFault(
                "prepare.begin takes build_model itself, not a built model"
            )
        outcome.update(check_on_meta_device(build, prepare))
        raise DryRunUnwound

    prepare.begin = begin
    try:
        runpy.run_path("train.py", run_name="__main__")
    except DryRunUnwound:
        return outcome
    raise DryRunFault("it never calls prepare.begin(build_model)")


def is_torch_module(build: object) -> bool:
    """Whether it is a torch module, which is also callable."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(build, torch.nn.Module)


def seed_torch(seed: int) -> None:
    """Seed torch where it is imported, as a real run does."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)


def format_error(error: BaseException) -> str:
    """Describe an error in one line, with the line of train.py that raised it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.endswith(("train.py", "small.py"))
    ]
    where = f" (line {lines[-1]})" if lines else ""
    text = " ".join(str(error).split())[:220]
    return f"{type(error).__name__}: {text}{where}"
