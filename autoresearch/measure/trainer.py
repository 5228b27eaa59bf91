"""Candidate -> Run: train it once, in the sandbox, under the harness's clock.

Promises:
- the data arrives when the clock starts and not before; start-up has its own limit
- the clock is the harness's and starts just before the data is sent
- weights count if they arrive sealed, finite and within budget ± tolerance
- at the time limit, or on any other ending, every process of the run is dead

Not covered: what the weights score (`evaluator`), and how a token budget was spent: the
run gets that much text and a time limit, but could read the text twice before it.
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
# Imports of a warm process: what serving needs, and what compiling needs as well.
# The first kernel of attention loads torch._dynamo: 4 s, measured on an H100.
SERVING_IMPORTS = (
    "torch",
    "torch._dynamo",
    "torch.nn.attention.varlen",
    "autoresearch.guest.torch_model",
)
COMPILING_IMPORTS = (*SERVING_IMPORTS, "torch._inductor.compile_fx")
MAX_WARM_SERVERS = 4  # two for each split, and what is kept is scored on both
OUT_OF_MEMORY_OUTPUT = re.compile(
    rb"OutOfMemoryError|out of memory|MemoryError|bad_alloc"
)


def train_candidate(
    workbench: Workbench,
    candidate: Candidate,
    *,
    seed: int,
    device: Device,
    pruner: Pruner | None = None,
) -> Run:
    """Candidate -> Run. `pruner` may end it early.

    Raises ExperimentFailed, RunStopped and LabError.
    """
    proposal = candidate.proposal
    assert proposal.number is not None
    workbench.apparatus.verify_unchanged()
    folder = workbench.lab.run_folder(proposal.number, seed)
    remove_folder(folder)
    folder.mkdir(parents=True)
    if compile_cache.is_human_baseline(proposal):
        compile_cache.discard_other_blobs(workbench.lab, candidate.blob)
    with enter_process(workbench, device, "train", proposal) as process:
        try:
            run = supervise_training(
                workbench, candidate, process, seed, device, folder, pruner
            )
        finally:
            process.kill()
            run_log_path(workbench, folder).write_bytes(process.log.join_kept())
            workbench.apparatus.verify_unchanged()
        compile_cache.store_compiled(
            workbench.lab, proposal, process.folder, "train", run.startup_seconds
        )
    refill_warm_pool(workbench, device)  # a first run leaves compiled code to lend
    return run


@contextmanager
def enter_process(
    workbench: Workbench,
    device: Device,
    task: ProcessRole,
    proposal: Proposal,
    *,
    lends: bool = False,
) -> Iterator[SandboxedProcess]:
    """Yield a process for `send_greeting`, from the warm pool if it has one.

    Its folder is removed with it. lends: give a serving process the code that earlier
    serving processes compiled.
    """
    process = None
    if workbench.warm_pool is not None:
        process = workbench.warm_pool.take_process(device, task, proposal.source)
    if process is None:
        folder = create_task_folder(
            workbench, task, own=compile_cache.is_human_baseline(proposal)
        )
        process = start_process(workbench, folder, device)
    try:
        if task == "serve" and lends:  # before it has read any train.py
            compile_cache.copy_to_scratch(workbench.lab, process.folder, task)
        yield process
    finally:
        process.kill()
        remove_folder(process.folder)


def refill_warm_pool(workbench: Workbench, device: Device) -> None:
    """Start the next processes while the GPU is busy."""
    if workbench.warm_pool is not None:
        workbench.warm_pool.refill(device, MAX_WARM_SERVERS)


def start_warm_process(
    workbench: Workbench, device: Device, task: ProcessRole
) -> SandboxedProcess | None:
    """Start a process for the warm pool; None: no compiled code to lend yet."""
    compiles = compile_cache.cache_folder(workbench.lab, task).is_dir()
    if task == "train" and not compiles:
        return None
    folder = create_task_folder(workbench, task, own=False)
    return start_process(
        workbench, folder, device, COMPILING_IMPORTS if compiles else SERVING_IMPORTS
    )


def start_process(
    workbench: Workbench, folder: Path, device: Device, modules: tuple[str, ...] = ()
) -> SandboxedProcess:
    """Start a sandboxed process in this folder, which imports `modules` ahead."""
    return SandboxedProcess(
        folder,
        lab=workbench.lab.folder,
        device=device,
        limits=workbench.terms.limits,
        stop=workbench.stop,
        backend=workbench.backend,
        preload=modules,
    )


def send_greeting(
    process: SandboxedProcess, message: Message, source: str, *descriptors: int
) -> None:
    """Send a process its terms and train.py."""
    file = seal_bytes(source.encode(), "train.py")
    process.send({**message, "source": True}, file, *descriptors)
    os.close(file)


def create_scratch_folder(workbench: Workbench) -> Path:
    """Create a folder with all that a process may read before it is greeted."""
    scratch = workbench.lab.state_folder / "runs" / f"guest-{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    (scratch / "prepare.py").write_bytes(workbench.apparatus.source)
    for name, content in workbench.terms.readonly:
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return scratch


def create_task_folder(workbench: Workbench, task: ProcessRole, *, own: bool) -> Path:
    """Create such a folder with a compile cache, filled for a training run.

    own: for the user's own train.py, which starts with an empty cache.
    """
    folder = create_scratch_folder(workbench)
    if own or task == "serve":
        compile_cache.create_compile_folder(folder)
    if task == "train":
        compile_cache.copy_to_scratch(workbench.lab, folder, task)
    return folder


def discard_runs(*runs: Run) -> None:
    """Delete the folders of runs that have been measured, with their weights."""
    for run in runs:
        remove_folder(run.weights.parent)


def supervise_training(
    workbench: Workbench,
    candidate: Candidate,
    process: SandboxedProcess,
    seed: int,
    device: Device,
    folder: Path,
    pruner: Pruner | None,
) -> Run:
    """Send the data, keep the clock, receive the weights."""
    terms, log = workbench.terms, run_log_path(workbench, folder)
    began = time.monotonic()
    calibration = CalibrationFile(
        workbench.lab, workbench.apparatus.blob, workbench.backend.level, device
    )
    limit_seconds = calibration.compute_startup_limit(terms.budget_seconds or 0.0)
    stage = RunStage("start-up", limit_seconds)
    with translate_failures(candidate, process, stage, log):
        greeting = build_greeting(terms, seed, device)
        send_greeting(process, greeting, candidate.proposal.source)
        workbench.watch(candidate, RunProgress("starting", 0.0, 0.0))
        if process.receive_message(began + stage.seconds).get("say") != "start":
            raise ProtocolError("something else before it touched the data")
        stage.begin("training", terms.kill_after_seconds, terms.kill_after_detail)
        started = time.monotonic()
        process.send({"say": "go"}, workbench.apparatus.seal_training_data())
        refill_warm_pool(workbench, device)
        own_pids = partial(list_own_pids, workbench, process)
        with GpuMonitor(workbench.nvml(device), own_pids) as monitor:
            submitted, descriptors = wait_for_weights(
                workbench, candidate, process, started, started + stage.seconds, pruner
            )
        seconds = time.monotonic() - started
        process.update_peak_memory()
        try:
            require_budget_used(candidate, terms, seconds, submitted, log)
        except ExperimentFailed:  # a descriptor may hold the whole model
            close_descriptors(descriptors)
            raise
        file = receive_weights(candidate, descriptors, folder, log)
        stage.begin("the probe", CONSISTENCY_SECONDS)
        row, losses = request_consistency_losses(workbench, process)
    file.with_name("probe.u2").write_bytes(row)
    file.with_name("probe.f4").write_bytes(losses)
    facts = parse_facts(submitted)
    memory_gb = process.peak_memory_gb
    if device.device_type == "cuda":
        memory_gb = float(dict(facts).get("gpu_memory_gb") or 0.0)
    run = Run(candidate, seed, seconds, started - began, memory_gb, file, facts, log)
    return add_findings(run, monitor, pruner)


def add_findings(run: Run, monitor: GpuMonitor, pruner: Pruner | None) -> Run:
    """Add what the monitor and the pruner recorded of a run."""
    run = replace(run, health=monitor.health_summary, harm=monitor.interference)
    if pruner is None:
        return run
    return replace(
        run,
        curve=pruner.curve,
        schedule=pruner.touches_schedule,
        spared=pruner.exempted,
    )


def close_descriptors(descriptors: list[int]) -> None:
    """Close descriptors that a process sent."""
    for descriptor in descriptors:
        os.close(descriptor)


def run_log_path(workbench: Workbench, folder: Path) -> Path:
    """Return the path of a run's log, by its folder."""
    return workbench.lab.log_folder / f"{folder.name}.log"


def list_own_pids(workbench: Workbench, process: SandboxedProcess) -> set[int]:
    """List the pids that may use the GPU during a run: its own and the warm pool's."""
    others = (
        workbench.warm_pool.list_pids() if workbench.warm_pool is not None else set()
    )
    return process.list_pids() | others


def build_greeting(terms: RunTerms, seed: int, device: Device) -> Message:
    """Build the first message to a training process."""
    return {
        "mode": "train",
        "seed": seed,
        "device": device.device_type,
        "budget_seconds": terms.budget_seconds,
        "budget_tokens": terms.budget_tokens,
    }


def request_consistency_losses(
    workbench: Workbench, process: SandboxedProcess
) -> tuple[bytes, memoryview]:
    """Ask the trained model for its losses on a row of text that no run has seen.

    Return (tokens uint16, losses float32) as bytes; both empty without a text. The
    weights are submitted already, so they cannot depend on what was asked.
    """
    row = workbench.apparatus.draw_consistency_row()
    if not row:
        return b"", memoryview(b"")
    descriptor = seal_bytes(row, "probe")
    process.send({"say": "probe"}, descriptor)
    os.close(descriptor)
    message, answers = process.receive(time.monotonic() + CONSISTENCY_SECONDS)
    try:
        if message.get("say") != "probed" or len(answers) != 1:
            raise ProtocolError("no answer to the probe")
        losses = map_verified(answers[0], LARGEST_CONSISTENCY_BYTES)
        asked = len(row) // 2 - 1  # tokens of two bytes that have one before them
        if len(losses) != 4 * asked:
            raise ProtocolError("an answer to the probe of another size")
        return row, losses
    finally:
        close_descriptors(answers)


@dataclass(slots=True)
class RunStage:
    """The stage a run is in, and how long it may take."""

    name: str
    seconds: float
    limit_detail: str = ""  # how these seconds are made up

    def begin(self, name: str, seconds: float, limit_detail: str = "") -> None:
        """Enter the next stage."""
        self.name, self.seconds = name, seconds
        self.limit_detail = limit_detail


@contextmanager
def translate_failures(
    candidate: Candidate, process: SandboxedProcess, stage: RunStage, log: Path
) -> Iterator[None]:
    """Turn every way a process can end without weights into ExperimentFailed."""
    try:
        yield
    except TimeoutError:
        detail = (
            f"killed: {stage.name} went past {stage.seconds:.0f} s{stage.limit_detail}"
        )
        raise ExperimentFailed(Failure(candidate, "timeout", detail, log)) from None
    except ProcessExited as exited:
        raise ExperimentFailed(
            explain_exit(candidate, process, exited, stage.name, log)
        ) from None
    except LimitExceeded as exceeded:
        kind: Kind = "out of memory" if exceeded.resource == "memory" else "crash"
        raise ExperimentFailed(Failure(candidate, kind, str(exceeded), log)) from None
    except ProtocolError as error:
        detail = f"broke the protocol: {error}"
        raise ExperimentFailed(Failure(candidate, "crash", detail, log)) from None
    except RunPruned as pruned:
        end = pruned.decision
        failure = Failure(candidate, "ended early", end.reason, log, end.progress)
        raise ExperimentFailed(failure) from None


class RunPruned(Exception):
    """A run is predicted to score worse than it has to."""

    def __init__(self, decision: PruneDecision) -> None:
        super().__init__(decision.reason)
        self.decision = decision


def wait_for_weights(
    workbench: Workbench,
    candidate: Candidate,
    process: SandboxedProcess,
    started: float,
    deadline: float,
    pruner: Pruner | None,
) -> tuple[Message, list[int]]:
    """Report progress until the weights come."""
    while True:
        message, descriptors = process.receive(deadline)
        if message.get("say") == "submit":
            return message, descriptors
        close_descriptors(descriptors)
        if message.get("say") != "progress":
            raise ProtocolError("an unknown message")
        seconds = time.monotonic() - started
        progress = parse_progress(message, seconds)
        workbench.watch(candidate, progress)
        if pruner is None:
            continue
        budget = workbench.terms.budget_seconds
        share = progress.share if budget is None else seconds / budget
        if (decision := pruner(share, progress.loss)) is not None:
            raise RunPruned(decision)


def parse_progress(message: Message, seconds: float) -> RunProgress:
    """Parse the progress that a run claims; invalid values are left out."""
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
    """Parse a number of a run's message; None: it is not finite or not a number."""
    value = message.get(key)
    if isinstance(value, float | int) and is_json_safe(value):
        return float(value)
    return None


def explain_exit(
    candidate: Candidate,
    process: SandboxedProcess,
    exited: ProcessExited,
    phase: str,
    log: Path,
) -> Failure:
    """Explain why a process exited without submitting."""
    printed = process.log.join_kept()
    if exited.exit_code == 0:
        detail = f"ended in {phase} without run.submit(model)"
        return Failure(candidate, "no score", detail, log)
    if phase == "the probe":
        words = last_error_line(printed).removeprefix("MISFIT ")
        detail = f"{words or 'it exited'} (asked about a text after training)"
        return Failure(candidate, "no score", detail, log)
    if process.is_oom_killed:
        detail = "killed: it took more memory than max_memory_gb allows"
        return Failure(candidate, "out of memory", detail, log)
    if OUT_OF_MEMORY_OUTPUT.search(printed[-4096:]):
        return Failure(candidate, "out of memory", last_error_line(printed), log)
    words = last_error_line(printed) or "no output"
    how = (
        f"signal {-exited.exit_code}"
        if exited.exit_code < 0
        else f"exit code {exited.exit_code}"
    )
    return Failure(candidate, "crash", f"{words} ({how}, in {phase})", log)


def require_budget_used(
    candidate: Candidate, terms: RunTerms, seconds: float, submitted: Message, log: Path
) -> None:
    """Raise ExperimentFailed for weights that come before the budget is used."""
    if terms.budget_seconds is not None:
        first = terms.budget_seconds - terms.tolerance_seconds
        if seconds < first:
            detail = f"submitted after {seconds:.1f} s of {terms.budget_seconds:g}"
            raise ExperimentFailed(Failure(candidate, "too early", detail, log))
        return
    assert terms.budget_tokens is not None
    tokens = dict(parse_facts(submitted)).get("tokens", 0)
    if not isinstance(tokens, int) or tokens < terms.budget_tokens:
        detail = f"submitted after {tokens} of {terms.budget_tokens} tokens"
        raise ExperimentFailed(Failure(candidate, "too early", detail, log))


def receive_weights(
    candidate: Candidate, descriptors: list[int], folder: Path, log: Path
) -> Path:
    """Check the submitted weights and keep a private copy."""
    path = folder / "model.safetensors"
    try:
        if len(descriptors) != 1:
            raise ProtocolError(f"{len(descriptors)} files instead of one with weights")
        file = map_verified(descriptors[0], LARGEST_WEIGHTS_BYTES)
        safetensors_format.validate_weights(file)
    except safetensors_format.NonFiniteWeights as error:
        raise ExperimentFailed(
            Failure(candidate, "diverged", str(error), log)
        ) from None
    except (ProtocolError, safetensors_format.InvalidWeights) as error:
        detail = f"submitted {error}"
        raise ExperimentFailed(Failure(candidate, "no score", detail, log)) from None
    finally:
        close_descriptors(descriptors)
    path.write_bytes(file)
    return path


def parse_facts(message: Message) -> Facts:
    """Parse the resolved configuration that a run reports, bounded and printable."""
    facts = message.get("facts")
    if not isinstance(facts, dict):
        return ()
    kept_facts: list[tuple[str, float | int | str]] = []
    for key, value in list(facts.items())[:MAX_FACTS]:
        if isinstance(value, str):
            kept_facts.append((to_one_line(key)[:40], to_one_line(value)[:200]))
        elif isinstance(value, bool | int | float) and is_json_safe(value):
            kept_facts.append((to_one_line(key)[:40], value))
    return tuple(kept_facts)


def is_json_safe(value: float | int) -> bool:
    """Whether a number survives JSON and SQLite: finite and below 1e18."""
    try:
        return abs(value) < 1e18 and json.loads(json.dumps(value)) == value
    except (ValueError, OverflowError):
        return False


def last_error_line(printed: bytes) -> str:
    """Find the last error line of a run, or else its last line; safe to print.

    Compilers print advice after their errors.
    """
    lines = [
        to_one_line(line) for line in printed.decode(errors="replace").splitlines()
    ]
    errors = [line for line in lines[-ADVICE_LINES:] if ERROR_LINE.match(line)]
    return next((line[:300] for line in reversed(errors or lines) if line), "")
