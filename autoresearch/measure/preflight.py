"""Proposals tried on a CPU, in a cage, before they cost a run: seconds, not minutes.

Checked, in this order: that the file keeps the contract (by its syntax tree); that the
model can be built and called at full size on the meta device; that a small size gets
through some steps to `submit`, is served again with the same logits, is causal and
finite (`rehearsal`); and that its memory, scaled from what the champion took, can fit.

Each rehearsal has a caged process of its own, started ahead of time: it has imported
torch and waits. While one is used the next gets ready, so a proposal costs a second or
two. None is used twice: what a file does to its process dies with it.

Promises: at most `LIMIT_SECONDS`; the champion goes first, and where it does not pass,
nothing is refused, since then this lab cannot be rehearsed; whoever runs out of time
passes, since slow on a CPU is not wrong. Not covered: see `rehearsal`.
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

DRY_RUN_FILES = ("train.py", "small.py")  # of a rehearsal, the second in a small size
LIMIT_SECONDS = 60.0  # of the clock; on a free CPU it takes a tenth of it
MAX_MEMORY_GB = 6.0
BYTES_PER_PARAMETER = 16.0  # weights, gradients, two moments, in float32
MEMORY_TOLERANCE = 1.25  # times the limit: an estimate must be clearly above to refuse
# How far down a size goes for a rehearsal, by a word of its constant's name.
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
    """What a rehearsal found."""

    fault: str  # "": none
    parameters: int = 0  # at full size; 0: unknown
    bytes_per_token: float = 0.0
    batch_tokens: int = 0
    cpu_seconds: float = 0.0  # by its own count, what was done ahead included
    is_in_time: bool = True

    @property
    def estimated_bytes(self) -> float:
        """What training takes, roughly; 0 where it is unknown."""
        if not self.parameters:
            return 0.0
        activations = self.bytes_per_token * self.batch_tokens
        return BYTES_PER_PARAMETER * self.parameters + activations


class Preflight:
    """Called with a proposal, says what is wrong with it; "" when nothing is known."""

    def __init__(self, workbench: Workbench, ledger: Ledger) -> None:
        self._workbench = workbench
        self._path = ledger.path
        self._lower_is_better = ledger.lower_is_better
        self._series = ledger.series
        self._champions: dict[str, DryRunReport] = {}
        self._stop = StopFlag()  # its own: a night may stop soon and still want answers
        self._lock = threading.Lock()  # two at once would take each other's seconds
        self._waiting: DryRunWorker | None = None  # None: none was started yet

    def __call__(self, proposal: Proposal) -> str:
        """One line on what is wrong, or "". Takes some seconds."""
        if why := find_contract_fault(proposal.source):
            return why
        with self._lock:
            if self._stop.now:
                return ""
            champion = self._dry_run_champion()
            if champion is None or champion[1].fault or not champion[1].is_in_time:
                return ""
            found = self.dry_run(proposal.source)
        if found.fault:
            return f"preflight: {found.fault}"
        return self._find_memory_fault(found, *champion)

    def close(self) -> None:
        """End what is being rehearsed and what waits; everything passes from now on."""
        self._stop.now = True
        with self._lock:
            if self._waiting is not None:
                self._waiting.close()
                self._waiting = None

    def _dry_run_champion(self) -> tuple[Champion, DryRunReport] | None:
        """The champion and its own rehearsal, done once; None before there is one."""
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
        self, found: DryRunReport, champion: Champion, base: DryRunReport
    ) -> str:
        """Whether it would run out of memory, judged by what the champion took."""
        ledger = Ledger(self._path, lower_is_better=self._lower_is_better)
        try:
            row = ledger.load_row(champion.number)
        finally:
            ledger.close()
        took_gb = row.memory_gb if row is not None else None
        if not took_gb or not base.estimated_bytes or not found.estimated_bytes:
            return ""
        expected_gb = took_gb * found.estimated_bytes / base.estimated_bytes
        limit_gb = self._workbench.terms.limits.memory_gb
        if expected_gb <= max(MEMORY_TOLERANCE * limit_gb, MEMORY_TOLERANCE * took_gb):
            return ""
        return (
            f"preflight: about {expected_gb:.1f} GB of memory, and {limit_gb:.1f} are "
            f"allowed (the champion took {took_gb:.1f})"
        )

    def dry_run(self, source: str) -> DryRunReport:
        """Run it in miniature, in a cage of its own."""
        deadline = time.monotonic() + LIMIT_SECONDS
        waiting = self._waiting or self._start_worker()
        self._waiting = None
        try:
            if not waiting.wait_until_ready(deadline):  # it died while nobody looked
                waiting.close()
                waiting = self._start_worker()
                if not waiting.wait_until_ready(deadline):
                    return DryRunReport("", is_in_time=False)
            if not self._stop.now:
                self._waiting = self._start_worker()
            return waiting.dry_run_source(source, deadline)
        except (TimeoutError, RunStopped):
            return DryRunReport("", is_in_time=False)
        finally:
            waiting.close()

    def _start_worker(self) -> "DryRunWorker":
        """A guest for the next rehearsal, just started."""
        return DryRunWorker(silence_workbench(self._workbench, self._stop))


class DryRunWorker:
    """A caged guest that imports what takes time, and runs one file when it comes."""

    def __init__(self, workbench: Workbench) -> None:
        self._folder = trainer.create_scratch_folder(workbench)
        for name in DRY_RUN_FILES:  # made readable now, filled when they are known
            (self._folder / name).write_text("")
        self._guest = trainer.start_process(workbench, self._folder, Device())
        self._guest.send(
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
        """Wait until it is; False when it ended instead."""
        try:
            self._guest.receive_message(deadline)
        except (ProcessExited, LimitExceeded, ProtocolError):
            return False
        return bool(self._guest.list_pids())

    def dry_run_source(self, source: str, deadline: float) -> DryRunReport:
        """What becomes of a file. Raises TimeoutError and Stopped."""
        guest = self._guest
        for name, text in zip(
            DRY_RUN_FILES, (source, shrink_source(source)), strict=True
        ):
            (self._folder / name).write_text(text)
        try:
            guest.send({"say": "go"})
            return parse_report(guest.receive_message(deadline))
        except ProcessExited as gone:
            guest.kill()
            words = (
                trainer.last_error_line(guest.log.join_kept())
                or f"exit code {gone.exit_code}"
            )
            return DryRunReport(f"ended without a word: {words}")
        except LimitExceeded as over:
            # Memory of a miniature says little about the card; anything else does.
            return DryRunReport(
                "" if over.resource == "memory" else str(over), is_in_time=False
            )
        except ProtocolError as junk:
            return DryRunReport(f"spoke out of turn: {junk}")

    def close(self) -> None:
        """Kill it, with everything it started, and remove its folder."""
        self._guest.kill()
        process.remove_folder(self._folder)


def silence_workbench(workbench: Workbench, stop: StopFlag) -> Workbench:
    """The same workbench with a little memory and nobody watching."""
    limits = replace(workbench.terms.limits, memory_gb=MAX_MEMORY_GB)
    terms = replace(workbench.terms, limits=limits)
    return replace(
        workbench, terms=terms, stop=stop, watch=lambda candidate, progress: None
    )


def parse_report(message: dict[str, object]) -> DryRunReport:
    """A guest's last words, with nonsense left out."""
    fault = message.get("fault")
    numbers = [
        value if isinstance(value, int | float) and 0 <= value < 1e15 else 0
        for value in (
            message.get(name)
            for name in ("parameters", "bytes_per_token", "batch_tokens", "cpu_seconds")
        )
    ]
    words = to_one_line(fault)[:300] if isinstance(fault, str) else "said nothing"
    count, each, batch, used = numbers
    return DryRunReport(words, int(count), float(each), int(batch), float(used))


def find_contract_fault(source: str) -> str:
    """What of the contract is missing from the file's syntax; "" when nothing is."""
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
    """The file with its sizes turned down, where constants name them."""
    wanted = {}
    for knob in constants.parse_constants(source):
        caps = [
            SMALL_SIZES[word] for word in knob.name.split("_") if word in SMALL_SIZES
        ]
        if not caps or isinstance(knob.value, bool | str) or knob.is_fixed:
            continue
        low = knob.low if knob.low is not None else 1
        cap = max(min(caps), low)
        if knob.value > cap:
            wanted[knob.name] = int(cap)
    try:
        return constants.replace_constants(source, wanted)
    except (LabError, AssertionError):
        return source
