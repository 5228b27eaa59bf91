"""Dry runs of proposals on a CPU, in the sandbox, before they cost a run.

Checked, in this order: that the file keeps the contract (by its syntax tree); that the
model can be built and called at full size on the meta device; that a small size gets
through some steps to `submit`, is served again with the same logits, is causal and
finite (`guest.dry_run`); and that its memory, scaled from the champion's, can fit.

Each dry run has a sandboxed process of its own, started ahead of time, with torch
imported. While one is used the next gets ready, so a proposal costs a second or two.
None is used twice: what a file does to its process ends with it.

Promises: at most `LIMIT_SECONDS`; the champion goes first, and if it does not pass,
nothing is refused, since then dry runs do not work in this lab; a proposal that runs
out of time passes, since slow on a CPU is not wrong. Not covered: see `guest.dry_run`.
"""

import ast
import threading
import time
from dataclasses import dataclass, replace

from autoresearch.errors import LabError, RunStopped
from autoresearch.experiment import Champion, Device, Proposal
from autoresearch.lab import constants, constraints
from autoresearch.measure import trainer
from autoresearch.measure.workbench import Workbench
from autoresearch.records.ledger import Ledger
from autoresearch.sandbox import process
from autoresearch.sandbox.process import LimitExceeded, ProcessExited, StopFlag
from autoresearch.sealed_memory import ProtocolError
from autoresearch.text import to_one_line

DRY_RUN_FILES = ("train.py", "small.py")  # of a dry run, the second in a small size
LIMIT_SECONDS = 60.0  # wall time; on a free CPU it takes a tenth of it
MAX_MEMORY_GB = 6.0
BYTES_PER_PARAMETER = 16.0  # weights, gradients, two moments, in float32
MEMORY_TOLERANCE = 1.25  # an estimate must exceed the limit by this factor to refuse
# The maximum of a size in a dry run, by a word of its constant's name.
SMALL_SIZES = {
    "DEPTH": 4,
    "LAYERS": 4,
    "LAYER": 4,
    "ASPECT": 24,
    "WIDTH": 128,
    "DIM": 128,
    "EMBD": 128,
    "HIDDEN": 256,
}


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """The result of a dry run."""

    fault: str  # "": none
    parameters: int = 0  # at full size; 0: unknown
    bytes_per_token: float = 0.0
    batch_tokens: int = 0
    cpu_seconds: float = 0.0  # as the process reports it, imports included
    is_in_time: bool = True

    @property
    def estimated_bytes(self) -> float:
        """A rough estimate of the memory for training; 0: unknown."""
        if not self.parameters:
            return 0.0
        activations = self.bytes_per_token * self.batch_tokens
        return BYTES_PER_PARAMETER * self.parameters + activations


class Preflight:
    """Called with a proposal, returns what is wrong with it; "": no fault found."""

    def __init__(self, workbench: Workbench, ledger: Ledger) -> None:
        self._workbench = workbench
        self._path = ledger.path
        self._lower_is_better = ledger.lower_is_better
        self._series = ledger.series
        self._champions: dict[str, DryRunReport] = {}
        self._stop = (
            StopFlag()
        )  # its own: a session that stops soon still needs answers
        self._lock = threading.Lock()  # two at once would slow each other down
        self._waiting: DryRunWorker | None = None  # None: none was started yet

    def __call__(self, proposal: Proposal) -> str:
        """Return one line on what is wrong, or "". Takes seconds."""
        if why := find_contract_fault(proposal.source):
            return why
        with self._lock:
            if self._stop.now:
                return ""
            champion = self._dry_run_champion()
            if champion is None or champion[1].fault or not champion[1].is_in_time:
                return ""
            report = self.dry_run(proposal.source)
        if report.fault:
            return f"preflight: {report.fault}"
        return self._find_memory_fault(report, *champion)

    def close(self) -> None:
        """End the dry run under way and the waiting worker; later proposals pass."""
        self._stop.now = True
        with self._lock:
            if self._waiting is not None:
                self._waiting.close()
                self._waiting = None

    def _dry_run_champion(self) -> tuple[Champion, DryRunReport] | None:
        """Return the champion and its dry run, made once; None: no champion."""
        ledger = Ledger(self._path, lower_is_better=self._lower_is_better)
        ledger.series = self._series
        try:
            champion = ledger.champion
            if champion is None:
                return None
            if champion.blob not in self._champions:
                source = ledger.load_source(champion.blob)
                self._champions[champion.blob] = self.dry_run(source)
            return champion, self._champions[champion.blob]
        finally:
            ledger.close()

    def _find_memory_fault(
        self, report: DryRunReport, champion: Champion, champion_report: DryRunReport
    ) -> str:
        """Say whether it would run out of memory, scaled from the champion; "": no."""
        ledger = Ledger(self._path, lower_is_better=self._lower_is_better)
        try:
            row = ledger.load_row(champion.number)
        finally:
            ledger.close()
        champion_gb = row.memory_gb if row is not None else None
        estimated, base = report.estimated_bytes, champion_report.estimated_bytes
        if not champion_gb or not base or not estimated:
            return ""
        expected_gb = champion_gb * estimated / base
        limit_gb = self._workbench.terms.limits.memory_gb
        if expected_gb <= MEMORY_TOLERANCE * max(limit_gb, champion_gb):
            return ""
        return (
            f"preflight: about {expected_gb:.1f} GB of memory, and {limit_gb:.1f} are "
            f"allowed (the champion took {champion_gb:.1f})"
        )

    def dry_run(self, source: str) -> DryRunReport:
        """Run a source in a small size, in a sandboxed process of its own."""
        deadline = time.monotonic() + LIMIT_SECONDS
        worker = self._waiting or self._start_worker()
        self._waiting = None
        try:
            if not worker.wait_until_ready(deadline):  # it died while it waited
                worker.close()
                worker = self._start_worker()
                if not worker.wait_until_ready(deadline):
                    return DryRunReport("", is_in_time=False)
            if not self._stop.now:
                self._waiting = self._start_worker()
            return worker.dry_run_source(source, deadline)
        except (TimeoutError, RunStopped):
            return DryRunReport("", is_in_time=False)
        finally:
            worker.close()

    def _start_worker(self) -> "DryRunWorker":
        """Start a worker for the next dry run."""
        return DryRunWorker(silence_workbench(self._workbench, self._stop))


class DryRunWorker:
    """A sandboxed process that imports torch ahead, and then runs one file."""

    def __init__(self, workbench: Workbench) -> None:
        self._folder = trainer.create_scratch_folder(workbench)
        for name in DRY_RUN_FILES:  # made readable now, filled when they are known
            (self._folder / name).write_text("")
        self._process = trainer.start_process(workbench, self._folder, Device())
        self._process.send(
            {
                "mode": "rehearse",
                "tensors": workbench.apparatus.causal,
                "seed": 7,
                "device": "cpu",
                "budget_seconds": workbench.terms.budget_seconds,
                "budget_tokens": workbench.terms.budget_tokens,
            }
        )

    def wait_until_ready(self, deadline: float) -> bool:
        """Wait until it is ready; False: it ended instead."""
        try:
            self._process.receive_message(deadline)
        except (ProcessExited, LimitExceeded, ProtocolError):
            return False
        return bool(self._process.list_pids())

    def dry_run_source(self, source: str, deadline: float) -> DryRunReport:
        """Run a file and return the report. Raises TimeoutError and RunStopped."""
        process = self._process
        for name, text in zip(
            DRY_RUN_FILES, (source, shrink_source(source)), strict=True
        ):
            (self._folder / name).write_text(text)
        try:
            process.send({"say": "go"})
            return parse_report(process.receive_message(deadline))
        except ProcessExited as exited:
            process.kill()
            words = (
                trainer.last_error_line(process.log.join_kept())
                or f"exit code {exited.exit_code}"
            )
            return DryRunReport(f"ended without a report: {words}")
        except LimitExceeded as exceeded:
            # Memory on the CPU says little about the GPU; other limits are faults.
            return DryRunReport(
                "" if exceeded.resource == "memory" else str(exceeded),
                is_in_time=False,
            )
        except ProtocolError as error:
            return DryRunReport(f"broke the protocol: {error}")

    def close(self) -> None:
        """Kill it, with everything it started, and remove its folder."""
        self._process.kill()
        process.remove_folder(self._folder)


def silence_workbench(workbench: Workbench, stop: StopFlag) -> Workbench:
    """Return the workbench with less memory, its own stop flag and no progress."""
    limits = replace(workbench.terms.limits, memory_gb=MAX_MEMORY_GB)
    terms = replace(workbench.terms, limits=limits)
    return replace(
        workbench, terms=terms, stop=stop, watch=lambda candidate, progress: None
    )


def parse_report(message: dict[str, object]) -> DryRunReport:
    """Parse and validate the report of a dry run; invalid numbers become 0."""
    fault = message.get("fault")
    numbers = [
        value if isinstance(value, int | float) and 0 <= value < 1e15 else 0
        for value in (
            message.get(name)
            for name in ("parameters", "bytes_per_token", "batch_tokens", "cpu_seconds")
        )
    ]
    words = to_one_line(fault)[:300] if isinstance(fault, str) else "reported nothing"
    parameters, token_bytes, batch_tokens, seconds = numbers
    return DryRunReport(
        words, int(parameters), float(token_bytes), int(batch_tokens), float(seconds)
    )


def find_contract_fault(source: str) -> str:
    """Say which call of the contract the file lacks, by its syntax; "": none."""
    if why := constraints.find_python_fault(source):
        return why
    calls = {
        node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        for node in ast.walk(constraints.parse_without_warnings(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute | ast.Name)
    }
    for name, words in (
        ("begin", "it never calls prepare.begin(build_model)"),
        ("submit", "it never calls run.submit(model)"),
    ):
        if name not in calls:
            return f"preflight: {words}"
    return ""


def shrink_source(source: str) -> str:
    """Reduce the sizes of a file, where constants name them."""
    values = {}
    for constant in constants.parse_constants(source):
        caps = [
            SMALL_SIZES[word]
            for word in constant.name.split("_")
            if word in SMALL_SIZES
        ]
        if not caps or isinstance(constant.value, bool | str) or constant.is_fixed:
            continue
        low = constant.low if constant.low is not None else 1
        cap = max(min(caps), low)
        if constant.value > cap:
            values[constant.name] = int(cap)
    try:
        return constants.replace_constants(source, values)
    except (LabError, AssertionError):
        return source
