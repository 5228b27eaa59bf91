"""Candidate -> Run: train it once, in a cage, under a clock it cannot touch.

Promises:
- the data arrives when the clock starts and not before; start-up has its own limit
- the clock is the harness's own and starts just before the data is handed over
- weights count when they arrive sealed, finite and inside budget ± tolerance
- at the wall, or on any other ending, every process of the run is dead

Not covered: what the weights are worth (`evaluator`), and how a token budget was spent:
the run gets that much text and a wall, but could read the text twice before it.
"""

import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autoresearch.devices.monitor import GpuMonitor
from autoresearch.errors import ExperimentFailed
from autoresearch.experiment import (
    Candidate,
    Device,
    Facts,
    Failure,
    Kind,
    Proposal,
    PruneDecision,
    Run,
)
from autoresearch.guest import safetensors_format
from autoresearch.measure import compile_cache
from autoresearch.measure.calibration import CONSISTENCY_SECONDS, CalibrationFile
from autoresearch.measure.workbench import RunProgress, RunTerms, Workbench
from autoresearch.sandbox.ipc import Message
from autoresearch.sandbox.process import (
    LimitExceeded,
    ProcessExited,
    ProcessRole,
    SandboxedProcess,
    remove_folder,
)
from autoresearch.sealed_memory import ProtocolError, map_verified, seal_bytes
from autoresearch.stats.early_stopping import Pruner
from autoresearch.text import to_one_line

LARGEST_WEIGHTS_BYTES = 4 << 30
LARGEST_CONSISTENCY_BYTES = 1 << 22
MAX_FACTS = 40
ERROR_LINE = re.compile(r"[\w.]*(?:Error|Exception): ")
ADVICE_LINES = 12
# What a guest that waits imports: what serving needs, and what compiling needs as well.
# The first kernel of attention loads torch._dynamo: 4 s, measured on an H100.
SERVING_IMPORTS = (
    "torch",
    "torch._dynamo",
    "torch.nn.attention.varlen",
    "autoresearch.guest.torch_model",
)
COMPILING_IMPORTS = (*SERVING_IMPORTS, "torch._inductor.compile_fx")
MAX_WARM_SERVERS = (
    4  # processes: two for each split, and what is kept is scored on both
)
OUT_OF_MEMORY_OUTPUT = re.compile(
    rb"OutOfMemoryError|out of memory|MemoryError|bad_alloc"
)


def train_candidate(
    bench: Workbench,
    candidate: Candidate,
    *,
    seed: int,
    slot: Device,
    outlook: Pruner | None = None,
) -> Run:
    """Candidate -> Run, or Failed, or Stopped. `outlook` may end a hopeless one."""
    proposal = candidate.proposal
    assert proposal.number is not None
    bench.apparatus.verify_unchanged()
    folder = bench.lab.run_folder(proposal.number, seed)
    remove_folder(folder)
    folder.mkdir(parents=True)
    if compile_cache.is_human_baseline(proposal):
        compile_cache.discard_other_blobs(bench.lab, candidate.blob)
    with enter_process(bench, slot, "train", proposal) as guest:
        try:
            run = supervise_training(
                bench, candidate, guest, seed, slot, folder, outlook
            )
        finally:
            guest.kill()
            run_log_path(bench, folder).write_bytes(guest.log.join_kept())
            bench.apparatus.verify_unchanged()
        waited = run.startup_seconds
        compile_cache.store_compiled(bench.lab, proposal, guest.folder, "train", waited)
    refill_warm_pool(bench, slot)  # after a first run there is compiled code to lend
    return run


@contextmanager
def enter_process(
    bench: Workbench,
    slot: Device,
    task: ProcessRole,
    proposal: Proposal,
    *,
    lends: bool = False,
) -> Iterator[SandboxedProcess]:
    """A guest to `greet`, which may have waited; its folder goes when it does.

    lends: whether one that serves is given what others that serve compiled.
    """
    guest = None
    if bench.waiting is not None:
        guest = bench.waiting.take_process(slot, task, proposal.source)
    if guest is None:
        folder = create_task_folder(
            bench, task, own=compile_cache.is_human_baseline(proposal)
        )
        guest = start_process(bench, folder, slot)
    try:
        if task == "serve" and lends:  # before it has read a word of train.py
            compile_cache.copy_to_scratch(bench.lab, guest.folder, task)
        yield guest
    finally:
        guest.kill()
        remove_folder(guest.folder)


def refill_warm_pool(bench: Workbench, slot: Device) -> None:
    """Have what comes next start while the GPU is at work."""
    if bench.waiting is not None:
        bench.waiting.refill(slot, MAX_WARM_SERVERS)


def start_warm_process(
    bench: Workbench, slot: Device, task: ProcessRole
) -> SandboxedProcess | None:
    """A guest that will wait; None where what it is to be lent is not there yet."""
    compiles = compile_cache.cache_folder(bench.lab, task).is_dir()
    if task == "train" and not compiles:
        return None
    folder = create_task_folder(bench, task, own=False)
    return start_process(
        bench, folder, slot, COMPILING_IMPORTS if compiles else SERVING_IMPORTS
    )


def start_process(
    bench: Workbench, folder: Path, slot: Device, modules: tuple[str, ...] = ()
) -> SandboxedProcess:
    """A guest in this folder, its first process just started."""
    return SandboxedProcess(
        folder,
        lab=bench.lab.folder,
        device=slot,
        limits=bench.terms.limits,
        stop=bench.stop,
        backend=bench.walls,
        preload=modules,
    )


def send_greeting(
    guest: SandboxedProcess, message: Message, source: str, *descriptors: int
) -> None:
    """Tell a guest its terms, and what train.py is."""
    file = seal_bytes(source.encode(), "train.py")
    guest.send({**message, "source": True}, file, *descriptors)
    os.close(file)


def create_scratch_folder(bench: Workbench) -> Path:
    """A fresh folder with all that a guest may read before it is greeted."""
    scratch = bench.lab.state_folder / "runs" / f"guest-{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    (scratch / "prepare.py").write_bytes(bench.apparatus.source)
    for name, content in bench.terms.readonly:
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return scratch


def create_task_folder(bench: Workbench, task: ProcessRole, *, own: bool) -> Path:
    """Such a folder, with room for compiled code, and what there is to train with.

    own: whether it is for the person's own train.py, which compiles from nothing.
    """
    folder = create_scratch_folder(bench)
    if own or task == "serve":
        compile_cache.create_compile_folder(folder)
    if task == "train":
        compile_cache.copy_to_scratch(bench.lab, folder, task)
    return folder


def discard_runs(*runs: Run) -> None:
    """Throw away what is kept of runs that have been measured."""
    for run in runs:
        remove_folder(run.weights.parent)


def supervise_training(
    bench: Workbench,
    candidate: Candidate,
    guest: SandboxedProcess,
    seed: int,
    slot: Device,
    folder: Path,
    outlook: Pruner | None,
) -> Run:
    """Hand over the data, keep the clock, take the weights."""
    terms, begun, log = bench.terms, time.monotonic(), run_log_path(bench, folder)
    place = CalibrationFile(bench.lab, bench.apparatus.blob, bench.walls.level, slot)
    stage = RunStage(
        "start-up", place.compute_startup_limit(terms.budget_seconds or 0.0)
    )
    with translate_failures(candidate, guest, stage, log):
        send_greeting(
            guest, build_greeting(terms, seed, slot), candidate.proposal.source
        )
        bench.watch(candidate, RunProgress("starting", 0.0, 0.0))
        message = guest.receive_message(begun + stage.seconds)
        if message.get("say") != "start":
            raise ProtocolError("something else before it touched the data")
        stage.begin("training", terms.kill_after_seconds, terms.kill_after_detail)
        started = time.monotonic()
        guest.send({"say": "go"}, bench.apparatus.seal_training_data())
        refill_warm_pool(bench, slot)
        with GpuMonitor(
            bench.nvml(slot), partial(list_own_pids, bench, guest)
        ) as monitor:
            submitted, descriptors = wait_for_weights(
                bench, candidate, guest, started, started + stage.seconds, outlook
            )
        seconds = time.monotonic() - started
        guest.update_peak_memory()
        try:
            require_budget_used(candidate, terms, seconds, submitted, log)
        except ExperimentFailed:  # what came with it may be the whole model
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        file = receive_weights(candidate, descriptors, folder, log)
        stage.begin("the probe", CONSISTENCY_SECONDS)
        probe, answer = request_consistency_losses(bench, guest)
    file.with_name("probe.u2").write_bytes(probe)
    file.with_name("probe.f4").write_bytes(answer)
    facts = parse_facts(submitted)
    on_card = dict(facts).get("gpu_memory_gb") or 0.0
    memory_gb = float(on_card) if slot.device_type == "cuda" else guest.peak_memory_gb
    run = Run(candidate, seed, seconds, started - begun, memory_gb, file, facts, log)
    run = replace(run, health=monitor.health_summary, harm=monitor.interference)
    if outlook is None:
        return run
    return replace(
        run,
        curve=outlook.curve,
        schedule=outlook.touches_schedule,
        spared=outlook.exempted,
    )


def run_log_path(bench: Workbench, folder: Path) -> Path:
    """Where what a run printed is kept, by its folder."""
    return bench.lab.log_folder / f"{folder.name}.log"


def list_own_pids(bench: Workbench, guest: SandboxedProcess) -> set[int]:
    """The processes on this machine that are ours: no strangers to a run."""
    others = bench.waiting.list_pids() if bench.waiting is not None else set()
    return guest.list_pids() | others


def build_greeting(terms: RunTerms, seed: int, slot: Device) -> Message:
    """What a training guest is told first."""
    return {
        "mode": "train",
        "seed": seed,
        "device": slot.device_type,
        "budget_seconds": terms.budget_seconds,
        "budget_tokens": terms.budget_tokens,
    }


def request_consistency_losses(
    bench: Workbench, guest: SandboxedProcess
) -> tuple[bytes, memoryview]:
    """Ask the trained model about a text that nobody has seen: (tokens, losses).

    It has handed in its weights and cannot tell them what was asked.
    """
    row = bench.apparatus.draw_consistency_row()
    if not row:
        return b"", memoryview(b"")
    descriptor = seal_bytes(row, "probe")
    guest.send({"say": "probe"}, descriptor)
    os.close(descriptor)
    message, answers = guest.receive(time.monotonic() + CONSISTENCY_SECONDS)
    try:
        if message.get("say") != "probed" or len(answers) != 1:
            raise ProtocolError("no answer to the probe")
        losses = map_verified(answers[0], LARGEST_CONSISTENCY_BYTES)
        asked = len(row) // 2 - 1  # tokens of two bytes that have one before them
        if len(losses) != 4 * asked:
            raise ProtocolError("an answer to the probe of another size")
        return row, losses
    finally:
        for answer in answers:
            os.close(answer)


@dataclass(slots=True)
class RunStage:
    """What a run is doing, and how long that may take."""

    name: str
    seconds: float
    limit_detail: str = ""  # what those seconds are made of

    def begin(self, name: str, seconds: float, granted: str = "") -> None:
        """Go on with something else."""
        self.name, self.seconds, self.limit_detail = name, seconds, granted


@contextmanager
def translate_failures(
    candidate: Candidate, guest: SandboxedProcess, stage: RunStage, log: Path
) -> Iterator[None]:
    """Turn every way a guest can end without weights into Failed."""
    try:
        yield
    except TimeoutError:
        detail = (
            f"killed: {stage.name} went past {stage.seconds:.0f} s{stage.limit_detail}"
        )
        raise ExperimentFailed(Failure(candidate, "timeout", detail, log)) from None
    except ProcessExited as gone:
        raise ExperimentFailed(
            explain_exit(candidate, guest, gone, stage.name, log)
        ) from None
    except LimitExceeded as over:
        kind: Kind = "out of memory" if over.resource == "memory" else "crash"
        raise ExperimentFailed(Failure(candidate, kind, str(over), log)) from None
    except ProtocolError as junk:
        detail = f"spoke out of turn: {junk}"
        raise ExperimentFailed(Failure(candidate, "crash", detail, log)) from None
    except RunPruned as none:
        end = none.decision
        failure = Failure(candidate, "ended early", end.reason, log, end.progress)
        raise ExperimentFailed(failure) from None


class RunPruned(Exception):
    """A run is on course for less than it has to beat."""

    def __init__(self, hopeless: PruneDecision) -> None:
        super().__init__(hopeless.reason)
        self.decision = hopeless


def wait_for_weights(
    bench: Workbench,
    candidate: Candidate,
    guest: SandboxedProcess,
    started: float,
    deadline: float,
    outlook: Pruner | None,
) -> tuple[Message, list[int]]:
    """Pass progress on until the weights come."""
    while True:
        message, descriptors = guest.receive(deadline)
        if message.get("say") == "submit":
            return message, descriptors
        for descriptor in descriptors:
            os.close(descriptor)
        if message.get("say") != "progress":
            raise ProtocolError("an unknown message")
        seconds = time.monotonic() - started
        progress = parse_progress(message, seconds)
        bench.watch(candidate, progress)
        if outlook is None:
            continue
        budget = bench.terms.budget_seconds
        share = progress.share if budget is None else seconds / budget
        if (end := outlook(share, progress.loss)) is not None:
            raise RunPruned(end)


def parse_progress(message: Message, seconds: float) -> RunProgress:
    """What a run says of itself, with nonsense left out."""
    share, loss = (
        parse_message_number(message, "progress"),
        parse_message_number(message, "loss"),
    )
    tokens = message.get("tokens")
    return RunProgress(
        "training",
        seconds,
        min(1.0, max(0.0, share or 0.0)),
        loss,
        tokens if isinstance(tokens, int) and 0 <= tokens < 1 << 50 else 0,
    )


def parse_message_number(message: Message, key: str) -> float | None:
    """A number that a run says, if it is one that a float can hold."""
    value = message.get(key)
    if isinstance(value, float | int) and is_json_safe(value):
        return float(value)
    return None


def explain_exit(
    candidate: Candidate,
    guest: SandboxedProcess,
    gone: ProcessExited,
    phase: str,
    log: Path,
) -> Failure:
    """Why a guest that left without submitting left."""
    printed = guest.log.join_kept()
    if gone.exit_code == 0:
        detail = f"ended in {phase} without run.submit(model)"
        return Failure(candidate, "no score", detail, log)
    if phase == "the probe":
        words = last_error_line(printed).removeprefix("MISFIT ")
        detail = f"{words or 'it left'} (asked about a text after training)"
        return Failure(candidate, "no score", detail, log)
    if guest.is_oom_killed:
        detail = "killed: it took more memory than max_memory_gb allows"
        return Failure(candidate, "out of memory", detail, log)
    if OUT_OF_MEMORY_OUTPUT.search(printed[-4096:]):
        return Failure(candidate, "out of memory", last_error_line(printed), log)
    words = last_error_line(printed) or "no output"
    how = (
        f"signal {-gone.exit_code}"
        if gone.exit_code < 0
        else f"exit code {gone.exit_code}"
    )
    return Failure(candidate, "crash", f"{words} ({how}, in {phase})", log)


def require_budget_used(
    candidate: Candidate, terms: RunTerms, seconds: float, said: Message, log: Path
) -> None:
    """Refuse weights that come before the budget was used."""
    if terms.budget_seconds is not None:
        first = terms.budget_seconds - terms.tolerance_seconds
        if seconds < first:
            detail = f"submitted after {seconds:.1f} s of {terms.budget_seconds:g}"
            raise ExperimentFailed(Failure(candidate, "too early", detail, log))
        return
    assert terms.budget_tokens is not None
    tokens = dict(parse_facts(said)).get("tokens", 0)
    if not isinstance(tokens, int) or tokens < terms.budget_tokens:
        detail = f"submitted after {tokens} of {terms.budget_tokens} tokens"
        raise ExperimentFailed(Failure(candidate, "too early", detail, log))


def receive_weights(
    candidate: Candidate, descriptors: list[int], folder: Path, log: Path
) -> Path:
    """Check what was handed in and keep a private copy of it."""
    path = folder / "model.safetensors"
    try:
        if len(descriptors) != 1:
            raise ProtocolError(
                f"{len(descriptors)} files where one of weights belongs"
            )
        file = map_verified(descriptors[0], LARGEST_WEIGHTS_BYTES)
        safetensors_format.validate_weights(file)
    except safetensors_format.NonFiniteWeights as odd:
        raise ExperimentFailed(Failure(candidate, "diverged", str(odd), log)) from None
    except (ProtocolError, safetensors_format.InvalidWeights) as odd:
        detail = f"handed in {odd}"
        raise ExperimentFailed(Failure(candidate, "no score", detail, log)) from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    path.write_bytes(file)
    return path


def parse_facts(message: Message) -> Facts:
    """The resolved configuration a run reports, bounded and printable."""
    facts = message.get("facts")
    if not isinstance(facts, dict):
        return ()
    found: list[tuple[str, float | int | str]] = []
    for key, value in list(facts.items())[:MAX_FACTS]:
        if isinstance(value, str):
            found.append((to_one_line(key)[:40], to_one_line(value)[:200]))
        elif isinstance(value, bool | int | float) and is_json_safe(value):
            found.append((to_one_line(key)[:40], value))
    return tuple(found)


def is_json_safe(value: float | int) -> bool:
    """Whether a number survives JSON and SQLite: finite, and not absurd."""
    try:
        return abs(value) < 1e18 and json.loads(json.dumps(value)) == value
    except (ValueError, OverflowError):
        return False


def last_error_line(printed: bytes) -> str:
    """The last error a run named, or else the last thing it said; safe to print.

    Compilers print advice after their errors.
    """
    lines = [
        to_one_line(line) for line in printed.decode(errors="replace").splitlines()
    ]
    errors = [line for line in lines[-ADVICE_LINES:] if ERROR_LINE.match(line)]
    return next((line[:300] for line in reversed(errors or lines) if line), "")
