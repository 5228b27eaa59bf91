"""A run in miniature, in the guest: does train.py get through two steps and a submit?

The harness's `preflight` starts it in a cage, on a CPU, ahead of time: it imports what
takes seconds, says so, and waits for a file. Then, with random tokens, twice through
the file: up to `begin` at full size, where the model is built and called on the
meta device (shapes and counts, no memory); then whole, in a small size, through some
batches to `submit`, where the model is served again from its weights and asked whether
a later token changes an earlier logit.

What it finds is advice: it runs in the same process as train.py, which could forge it
and would gain nothing, since the real run is measured elsewhere. Not covered: what only
CUDA does, what needs the whole size to go wrong, and whether the idea is any good.
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
MAX_VOCABULARY = 512  # where the file does not write down its number itself
MAX_ROWS = 2
MAX_BATCHES = 12
BUDGET_SECONDS = 2.5  # of batches; then progress is 1
GRACE_SECONDS = 8.0  # after that, for the last step and what stands behind the loop
MAX_LATE_REPORTS = 2  # of a loss, that an honest loop makes after its budget is used
TOKEN_COUNT = 20_000
MAX_POWER = 64  # of a number that a file writes as a power
LARGE_MODEL_PARAMETERS = 6_000_000  # from here on the small file is used
SHAPE_ERROR_PATTERN = re.compile(
    r"shape|size|dimension|must match|divisible|broadcast|invalid for input|mat1",
    re.IGNORECASE,
)


class DryRunUnwound(BaseException):
    """Back to the rehearsal from inside train.py."""


class DryRunFault(Exception):
    """What is wrong, in one line."""


class DryRunTraining:
    """What train.py talks to instead of a run. Same names as `guest.Training`."""

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
        self._begun: float | None = None
        self._loss: float | None = None
        self._reports = 0
        self.batch_tokens = 0  # as train.py asked for them, before they are cut
        self.tokens_seen = 0
        self.steps = 0
        self.seed = 7
        self.device = "cpu"
        self.budget_seconds = hello["budget_seconds"]
        self.budget_tokens = hello["budget_tokens"]
        self.outcome: dict[str, object] = {}

    @property
    def data(self) -> memoryview:
        """Training text: random tokens, or the lab's own where it is no text."""
        if self._begun is None:
            self._begun = time.monotonic()
            threading.Thread(target=self._watch_budget, daemon=True).start()
        if self._causal:
            import numpy as np

            high = int(self._prepare.VOCABULARY)
            drawn = np.random.default_rng(3).integers(0, high, TOKEN_COUNT)
            return memoryview(drawn.astype("<u2").tobytes()).toreadonly()
        found = self._prepare.training()
        body = found.read_bytes() if isinstance(found, Path) else bytes(found)
        return memoryview(body).toreadonly()

    @property
    def tokens(self) -> "np.ndarray[Any, Any]":
        """uint16 (N,)."""
        import numpy as np

        return np.frombuffer(self.data, dtype="<u2")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun if self._begun is not None else 0.0

    @property
    def progress(self) -> float:
        return min(1.0, max(self.steps / MAX_BATCHES, self.seconds / BUDGET_SECONDS))

    def _watch_budget(self) -> None:
        """End a loop that does not look at its budget. Of CPU time as well as of the
        clock: on a busy machine an honest step may take long. Where nothing was heard
        of it meanwhile, it is in the middle of a large step, and passes."""
        used = time.process_time()
        while self.seconds < BUDGET_SECONDS:
            time.sleep(0.2)
        heard = self._reports
        while (
            self.seconds < BUDGET_SECONDS + GRACE_SECONDS
            or time.process_time() - used < BUDGET_SECONDS + GRACE_SECONDS
        ):
            time.sleep(0.2)
        trains_on = self._reports - heard > MAX_LATE_REPORTS
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
        """Few and small ones: at most two rows, and not for long."""
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
        """Look at what is handed in, then end."""
        self._give_up = lambda words: None  # what follows is ours, and may take a while
        if self._begun is None:
            raise DryRunFault("it submits without having touched the data")
        if self.progress < 0.95:
            raise DryRunFault(
                f"it submits after {self.progress:.0%} of the budget; a run must use it"
            )
        for name, value in facts.items():
            if isinstance(value, float) and not math.isfinite(value):
                continue  # only shown
            if not isinstance(value, int | float | str):
                raise DryRunFault(
                    f"submit({name}=...) is {type(value).__name__}, no number"
                )
        if self._causal:
            check_submission(model, self._build, self._prepare)
        else:
            self._build().load_state_dict(model.state_dict())
        raise DryRunUnwound


def check_submission(
    model: "nn.Module", build: Callable[[], Any], prepare: Any
) -> None:
    """Served again from its weights: same shape, same logits, nothing from later."""
    import torch

    from autoresearch.guest import torch_model

    for name, parameter in torch_model.iter_named_tensors(model):
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise DryRunFault(
                f"{torch_model.strip_wrapper_prefixes(name)} is not finite after a few steps"
            )
    fresh = build()
    if not isinstance(fresh, torch.nn.Module):
        raise DryRunFault(
            f"build_model() gives {type(fresh).__name__}, no torch module"
        )
    file = torch_model.export_state(model)
    mine = {
        torch_model.strip_wrapper_prefixes(name): t
        for name, t in torch_model.iter_named_tensors(fresh)
    }
    if odd := sorted(set(mine) ^ set(file)):
        raise DryRunFault(
            f"build_model() and the submitted model differ in {', '.join(odd[:4])}"
        )
    for name, tensor in mine.items():
        if tuple(tensor.shape) != file[name].shape:
            raise DryRunFault(
                f"{name} is {tuple(tensor.shape)} built, {file[name].shape} trained"
            )
    torch_model.load_state(fresh, file, "cpu")
    context, vocabulary = int(prepare.CONTEXT), int(prepare.VOCABULARY)
    ids = torch.randint(vocabulary, (2, context))
    with torch.inference_mode():
        model.eval()
        trained, logits = model(ids), fresh(ids)
    check_logits(logits, ids, vocabulary)
    apart = (trained.float() - logits.float()).abs().max().item()
    if not apart < 0.05 * (1 + logits.abs().max().item()):
        raise DryRunFault("the served model is not the one that was trained")
    check_causal(fresh, ids, vocabulary)


def check_logits(logits: Any, ids: "Tensor", vocabulary: int) -> None:
    """Logits (B, T, >= vocabulary), finite."""
    import torch

    if not isinstance(logits, torch.Tensor):
        raise DryRunFault(
            f"model(ids) gives {type(logits).__name__}, not logits (B, T, V)"
        )
    good = logits.ndim == 3 and logits.shape[:2] == ids.shape
    if not good or logits.shape[2] < vocabulary:
        raise DryRunFault(
            f"model(ids) gives {tuple(logits.shape)} for ids {tuple(ids.shape)}; it "
            f"must be (B, T, at least {vocabulary})"
        )
    if not torch.isfinite(logits).all():
        raise DryRunFault("logits are not finite")


def check_causal(model: "nn.Module", ids: "Tensor", vocabulary: int) -> None:
    """Found when a later token changes an earlier logit, or rows touch each other."""
    import torch

    torch.manual_seed(5)
    with torch.no_grad():  # weights that start at zero would hide every mistake
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn_like(parameter))
    context = ids.shape[1]
    for cut in sorted({context // 2, context - 1}):
        other = ids.clone()
        other[:, cut:] = torch.randint(vocabulary, (2, context - cut))
        with torch.inference_mode():
            one, two = model(ids)[:, :cut].float(), model(other)[:, :cut].float()
        if (one - two).abs().max().item() > 1e-3 * (1 + one.abs().max().item()):
            raise DryRunFault("not causal: a later token changes an earlier logit")
    other = ids.clone()
    other[1] = torch.randint(vocabulary, (context,))
    with torch.inference_mode():
        one, two = model(ids)[0].float(), model(other)[0].float()
    if (one - two).abs().max().item() > 1e-3 * (1 + one.abs().max().item()):
        raise DryRunFault("rows of a batch touch each other")


# -- the first pass: full size, on the meta device -------------------------------------


def check_on_meta_device(build: Callable[[], Any], prepare: Any) -> dict[str, object]:
    """Parameters and shapes at full size, where the model can be built without memory.

    What the meta device cannot do is no fault; sizes that do not fit are.
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
        return {}  # the second pass runs the same code on a CPU and will tell
    if logits.ndim != 3 or logits.shape[2] < int(prepare.VOCABULARY):
        raise DryRunFault(
            f"model(ids) gives {tuple(logits.shape)} for ids {tuple(ids.shape)}"
        )
    return {
        "parameters": count,
        "bytes_per_token": measure_activation_bytes(build, prepare),
    }


def measure_activation_bytes(build: Callable[[], Any], prepare: Any) -> float:
    """What one token's forward pass keeps for the backward pass, at full size."""
    import torch

    kept: dict[int, int] = {}

    def keep(tensor: "Tensor") -> "Tensor":
        kept[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
        return tensor

    context = int(prepare.CONTEXT)
    with torch.device("meta"):
        model = build()
        ids = torch.zeros((1, context), dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(ids).float().log_softmax(-1)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return float(max(0.0, sum(kept.values()) - weights) / context)


# -- both passes -----------------------------------------------------------------------


def main(link: Channel, hello: Message) -> NoReturn:
    """Entry in the guest: wait for a file, rehearse it, say what was found, end."""
    if hello["tensors"]:
        import_torch()
    wait_for_source(link)
    outcome: dict[str, object] = {}

    def give_up(words: str) -> None:
        link.send({"say": "rehearsed", "fault": words})
        os._exit(0)

    try:
        outcome = run_both_passes(hello, give_up)
        fault = ""
    except DryRunFault as found:
        fault = str(found)
    except DryRunUnwound:
        fault = ""
    except BaseException as error:  # whatever an untrusted train.py raises
        fault = format_error(error)
    sys.stdout.flush()
    sys.stderr.flush()
    used = {"cpu_seconds": time.process_time()}
    link.send({"say": "rehearsed", "fault": fault[:300], **used, **outcome})
    os._exit(0)


def import_torch() -> None:
    """What every rehearsal of a model imports: two seconds of three."""
    try:
        import torch
        import torch._dynamo  # the meta device and every optimiser load it  # noqa: F401
    except ImportError:
        pass  # a lab without torch; whoever needs it will say so


def wait_for_source(link: Channel) -> None:
    """Say that all is ready, and wait until the file has been put in its place."""
    link.send({"say": "waiting"})
    try:
        link.receive()
    except ChannelClosed:
        os._exit(0)  # it was never needed


def run_both_passes(
    hello: Message, give_up: Callable[[str], None]
) -> dict[str, object]:
    """Both passes; Found or any error of train.py says what is wrong."""
    sys.argv = ["train.py"]
    sys.path.insert(0, os.getcwd())
    prepare: Any = importlib.import_module("prepare")
    outcome = run_meta_pass(prepare)
    parameters = outcome.get("parameters", 0)  # 0: nobody knows, so it may be large
    assert isinstance(parameters, int)
    big = bool(prepare.CAUSAL) and not 0 < parameters <= LARGE_MODEL_PARAMETERS
    file = "small.py" if big and os.path.exists("small.py") else "train.py"
    if prepare.CAUSAL:
        shrink_sizes(prepare, Path(file).read_text())
    made: list[DryRunTraining] = []

    def begin(build: Callable[[], Any]) -> DryRunTraining:
        if made:
            raise DryRunFault("it calls prepare.begin twice")
        made.append(DryRunTraining(build, prepare, hello, give_up))
        seed_torch(made[0].seed)
        return made[0]

    prepare.begin = begin
    try:
        runpy.run_path(file, run_name="__main__")
    except DryRunUnwound:
        return outcome | {"batch_tokens": made[0].batch_tokens}
    if not made:
        raise DryRunFault("it never calls prepare.begin(build_model)")
    raise DryRunFault("it ends without run.submit(model)")


def shrink_sizes(prepare: Any, source: str) -> None:
    """A short context and a small vocabulary, of which most of the time would go.

    A file that has either number written into it is left with it.
    """
    written = find_integer_literals(source)
    for name, most in (("CONTEXT", MAX_CONTEXT), ("VOCABULARY", MAX_VOCABULARY)):
        value = int(getattr(prepare, name))
        if value > most and value not in written:
            setattr(prepare, name, most)


def find_integer_literals(source: str) -> set[int]:
    """Whole numbers a file spells out, powers like 2**13 and 1 << 13 included."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=int(number)):
                found.add(number)
            case ast.BinOp(
                left=ast.Constant(value=int(base)),
                op=ast.Pow() | ast.LShift() as how,
                right=ast.Constant(value=int(power)),
            ) if 0 <= power <= MAX_POWER and 0 <= base <= MAX_POWER:
                raised = isinstance(how, ast.Pow)
                found.add(base**power if raised else base << power)
    return found


def run_meta_pass(prepare: Any) -> dict[str, object]:
    """The file up to `begin`, at full size."""
    found: dict[str, object] = {}

    def begin(build: Callable[[], Any]) -> NoReturn:
        if not callable(build) or is_torch_module(build):
            raise DryRunFault(
                "prepare.begin takes build_model itself, not what it builds"
            )
        found.update(check_on_meta_device(build, prepare))
        raise DryRunUnwound

    prepare.begin = begin
    try:
        runpy.run_path("train.py", run_name="__main__")
    except DryRunUnwound:
        return found
    raise DryRunFault("it never calls prepare.begin(build_model)")


def is_torch_module(build: object) -> bool:
    """Whether it is a torch module, which is callable too."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(build, torch.nn.Module)


def seed_torch(seed: int) -> None:
    """Seed what is imported, as a run does."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)


def format_error(error: BaseException) -> str:
    """An error in one line, with the line of train.py it came from."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.endswith(("train.py", "small.py"))
    ]
    where = f" (line {lines[-1]})" if lines else ""
    words = " ".join(str(error).split())[:220]
    return f"{type(error).__name__}: {words}{where}"
