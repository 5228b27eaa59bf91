"""`check`: try everything once before the night, and say what the night will be.

A short real run in the real cage, scored by the real evaluator; nothing is recorded.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from autoresearch.devices import discovery
from autoresearch.errors import ExperimentFailed, LabError
from autoresearch.experiment import (
    HUMAN_AUTHOR,
    Candidate,
    Device,
    Proposal,
    Run,
    Score,
)
from autoresearch.git import Repository, compute_blob_id
from autoresearch.lab import apparatus, constants
from autoresearch.lab.folder import Lab
from autoresearch.lab.program import Program
from autoresearch.measure import evaluator, trainer
from autoresearch.measure.warm_pool import WarmPool, sets_environment
from autoresearch.measure.workbench import Workbench, list_usable_devices
from autoresearch.proposers import registry as proposer_registry
from autoresearch.proposers.registry import ProposerState
from autoresearch.reporting.format import format_rate, format_seconds
from autoresearch.run import session
from autoresearch.sandbox import selftest
from autoresearch.text import to_one_line

SHORT_RUN_SECONDS = 12.0
SHORT_RUN_TOKENS_SHARE = 0.1
# Below so many training tokens a parameter a run ends before it has learned much; the
# proposed budget. Compute-optimal training takes about twenty (Hoffmann et al. 2022),
# the best known five-minute recipes three to seven.
MIN_TOKENS_PER_PARAMETER, PROPOSED_TOKENS_PER_PARAMETER = 0.5, 2.0
OVERHEAD_SECONDS = 0.3  # harness overhead of one experiment (benchmarks/overhead.py)
# Fresh seeds for what is promising, the champion again (benchmarks/verdicts.py).
RUNS_PER_EXPERIMENT = {"greedy": 1.0}
DEFAULT_RUNS_PER_EXPERIMENT = 1.16
CAGE_DESCRIPTIONS = {
    "full": "no network, no files but its own, another user; {facts}",
    "landlock": "no network, no files but its own, by the kernel's Landlock; {facts}",
    "container": "no network, no files but its own, as another user; {facts}",
    "seatbelt": "no network, no files but its own, by macOS's Seatbelt",
    "none": "train.py runs as you, with a clock and limits but no walls; run only "
    "proposers you would let run code",
}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What `check` found."""

    machine_facts: dict[str, str]  # of the machine
    program: Program
    cage_facts: dict[str, object]
    score: Score
    proposers: dict[str, ProposerState]  # and how each does
    constant_count: int
    hours: float
    run_seconds: float  # one whole run, forecast
    device_count: int
    text_tokens: int  # of training text; 0 where the lab has none
    is_cold_start: bool = (
        False  # no process of this train.py can have torch imported ahead
    )
    first_startup_seconds: float | None = None  # where it ran twice: of the first run

    @property
    def run(self) -> Run:
        return self.score.run

    @property
    def tokens_per_second(self) -> float:
        """Of the short run; 0 where the run did not say."""
        tokens = dict(self.run.facts).get("tokens", 0)
        return float(tokens) / self.run.seconds if self.run.seconds else 0.0

    @property
    def run_tokens(self) -> float:
        """What a whole run will see."""
        if self.program.budget_seconds is None:
            return float(self.program.budget_tokens or 0)
        return self.tokens_per_second * self.program.budget_seconds

    @property
    def epochs(self) -> float | None:
        """How often a run reads its text; None where there is none."""
        return self.run_tokens / self.text_tokens if self.text_tokens else None

    @property
    def short_budget_warning(self) -> str:
        """What to say of a budget in which little is learned; "" where it is enough."""
        size = dict(self.run.facts).get("parameters", 0)
        if not isinstance(size, int) or not self.tokens_per_second or not self.epochs:
            return ""
        if self.run_tokens >= MIN_TOKENS_PER_PARAMETER * size:
            return ""
        tokens = int(PROPOSED_TOKENS_PER_PARAMETER * size)
        each = format_seconds(tokens / self.tokens_per_second)
        return (
            f"too short to learn much: {self.run_tokens / size:.2g} tokens a "
            f"parameter. Next: budget_tokens = {tokens} in program.md (about {each} a "
            "run), or a smaller DEPTH"
        )

    @property
    def cold_start_warning(self) -> str:
        """What to say of a train.py whose processes all start from nothing."""
        if not self.is_cold_start:
            return ""
        return (
            "it mentions environ, putenv or setenv, so no process of a run can import "
            "torch ahead: some 25 s a run (reading is free: os.environ.get(..))"
        )

    @property
    def first_startup_note(self) -> str:
        """What the first run's start-up took, where there was a second run."""
        first = self.first_startup_seconds
        return "" if first is None else f" (the first {first:.1f} s)"

    @property
    def has_ready_proposer(self) -> bool:
        """Whether anybody who was named will propose."""
        return any(found.is_ready for found in self.proposers.values())

    @property
    def waiting_seconds(self) -> float:
        """That the GPU waits for ideas, per experiment, were all asked as often."""
        every = [found.waiting_seconds for found in self.proposers.values()]
        return sum(every) / len(every)

    @property
    def experiment_count(self) -> int:
        """How many fit into the hours."""
        each = self.run_seconds * self.runs_per_experiment + self.waiting_seconds
        return int(self.hours * 3600 / each) * self.device_count

    @property
    def baseline_seconds(self) -> float:
        """Before the first idea is tried."""
        return self.run_seconds * session.count_baseline_runs(self.program)

    @property
    def runs_per_experiment(self) -> float:
        """On average, as simulated."""
        return RUNS_PER_EXPERIMENT.get(self.program.policy, DEFAULT_RUNS_PER_EXPERIMENT)

    def to_json(self) -> dict[str, object]:
        """The contract of `check --json`."""
        return {
            "machine": self.machine_facts,
            "cage": self.cage_facts["level"],
            "cage_facts": self.cage_facts,
            "tokens_per_second": self.tokens_per_second,
            "run_tokens": self.run_tokens,
            "epochs": self.epochs,
            "too_short": self.short_budget_warning,
            "cold": self.is_cold_start,
            "mfu_percent": self.mfu_percent,
            "memory_gb": self.run.memory_gb,
            "startup_seconds": self.run.startup_seconds,
            "first_startup_seconds": self.first_startup_seconds,
            "evaluation_seconds": self.score.seconds,
            "value": self.score.value,
            "proposers": list(self.proposers),
            "proposer_states": {n: found.state for n, found in self.proposers.items()},
            "waiting_seconds": self.waiting_seconds,
            "constants": self.constant_count,
            "run_seconds": self.run_seconds,
            "experiment_seconds": self.run_seconds * self.runs_per_experiment
            + self.waiting_seconds,
            "least_seconds": self.baseline_seconds,
            "hours": self.hours,
            "experiments": self.experiment_count,
        }

    @property
    def mfu_percent(self) -> float | None:
        """Share of the GPU's peak; None where it is not known."""
        found = dict(self.run.facts).get("mfu_percent")
        return float(found) if isinstance(found, int | float) else None

    @property
    def run_duration(self) -> str:
        """How long one run takes."""
        return format_seconds(self.run_seconds)

    @property
    def waiting_note(self) -> str:
        """What it costs to ask a model that needs the GPU which trains."""
        if not self.waiting_seconds:
            return ""
        seconds = f"{self.waiting_seconds:.0f}"
        return f", and at least {seconds} s an experiment of waiting for ideas"

    @property
    def cage_description(self) -> str:
        """What the cage is made of."""
        seen = {key: words for key, words in self.cage_facts.items() if words}
        made = ", ".join(f"{key} {words}" for key, words in seen.items())
        return CAGE_DESCRIPTIONS[self.program.cage].format(facts=made)

    def to_lines(self) -> list[str]:
        """The same for people."""
        program = self.program
        run, scored = self.run, f"scored in {self.score.seconds:.1f} s"
        known = self.mfu_percent
        mfu = "" if known is None else f"MFU {known:.1f} %, "
        limits = (
            f"{program.max_constants} constant or {program.max_changed_lines} lines; "
            f"20 added lines must gain {program.gain_per_20_added_lines:g}"
        )
        advice = len([line for line in program.prose.splitlines() if line.strip()])
        machine_line = ", ".join(self.machine_facts.values()) or "any"
        return [
            f"machine    {machine_line}",
            f"cage       {self.program.cage}: {self.cage_description}",
            f"train.py   {format_rate(self.tokens_per_second)} tok/s, {mfu}"
            f"{run.memory_gb:.1f} GB, start-up {run.startup_seconds:.1f} s"
            f"{self.first_startup_note}, {scored}",
            f"           trained and served model agree{self.epochs_note}",
            *(
                f"           {said}"
                for said in (self.short_budget_warning, self.cold_start_warning)
                if said
            ),
            *self.format_proposers(),
            f"rules      enforced: {format_budget(program)}; train.py only; {limits}.  "
            f"Advice: {advice} lines of program.md",
            f"{self.hours:g} hours    about {self.experiment_count} experiments of "
            f"{self.runs_per_experiment:.3g} runs, {self.run_duration} each"
            + self.waiting_note,
            f"at least   {format_seconds(self.baseline_seconds)}: the baseline's "
            f"{session.count_baseline_runs(program)} runs come before the first idea",
        ]

    @property
    def epochs_note(self) -> str:
        """How much of its text a run reads, in words."""
        if self.epochs is None:
            return ""
        seconds = self.program.budget_seconds
        words = f"{seconds:g} s = " if seconds is not None else ""
        tokens = self.run_tokens / 1e6
        return f"; {words}{tokens:.3g}M tokens = {self.epochs:.2g} epochs"

    def format_proposers(self) -> list[str]:
        """One line each; the optimiser with what it may turn."""
        words = [
            f"{name}  {found.state}"
            + (f", {self.constant_count} constants" if name == "search" else "")
            for name, found in self.proposers.items()
        ]
        return [
            f"{'proposers' if not place else '':<11}{to_one_line(line)}"
            for place, line in enumerate(words)
        ]


def format_budget(program: Program) -> str:
    """The budget in words."""
    if program.budget_seconds is None:
        return f"{program.budget_tokens} tokens"
    return f"{program.budget_seconds:g} ± {program.tolerance_seconds:g} s"


def check(lab: Lab, specs: Sequence[str], hours: float) -> CheckResult:
    """Try it all, or LabError saying what to mend first."""
    book = Repository(lab.folder)
    book.require_usable()
    lab.require_disk_space()
    found = apparatus.load_apparatus(lab, book)
    found.load_fingerprint()
    program = lab.load_program()
    slots = list_usable_devices(found)
    named = tuple(specs or program.proposers)
    states = proposer_registry.check_proposers(named, program, lab.folder)
    with lab.hold_lock():
        session.clean_up_killed_session(lab)
        bench = Workbench.open(lab, apparatus=found, device=slots[0])
        ahead = session.uses_warm_pool(found, slots[0], bench.backend)
        scores = score_short_runs(bench, program, slots[0], twice=ahead)
    score, share = scores[-1], compute_budget_share(program)
    trained = program.budget_seconds or score.run.seconds / share
    whole = score.run.startup_seconds + trained + score.seconds + OVERHEAD_SECONDS
    return CheckResult(
        discovery.collect_machine_facts(slots[0]) if found.causal else {},
        program,
        dict(selftest.collect_sandbox_facts(bench.backend)),
        score,
        states,
        len(constants.parse_constants(lab.read_file("train.py"))),
        hours,
        whole,
        len(slots),
        os.fstat(found.seal_training_data()).st_size // 2 if found.causal else 0,
        ahead and sets_environment(lab.read_file("train.py")),
        scores[0].run.startup_seconds if len(scores) > 1 else None,
    )


def compute_budget_share(program: Program) -> float:
    """How much of a run the short run is."""
    if program.budget_seconds is None:
        return SHORT_RUN_TOKENS_SHARE
    return min(1.0, SHORT_RUN_SECONDS / program.budget_seconds)


def score_short_runs(
    bench: Workbench, program: Program, slot: Device, *, twice: bool
) -> list[Score]:
    """Train for a moment and score, exactly as a night would; twice: as its second run

    would as well, which finds compiled code and processes that have waited for it.
    """
    share, terms, lab = compute_budget_share(program), bench.terms, bench.lab
    if program.budget_seconds is not None:
        seconds = program.budget_seconds * share
        terms = replace(terms, budget_seconds=seconds)
    else:
        assert program.budget_tokens is not None
        tokens = max(1, int(program.budget_tokens * share))
        terms = replace(terms, budget_tokens=tokens, wall_seconds=60.0)
    bench = replace(bench, terms=terms)
    source = lab.read_file("train.py")
    # Where there are no books yet it may be what the lab begins with: its code is kept.
    author = "check" if lab.ledger_path.exists() else HUMAN_AUTHOR
    candidate = Candidate(
        Proposal(0, "check", source, "", author), compute_blob_id(source)
    )
    if not twice:
        return [score_short_run(bench, candidate, slot)]
    waiting = WarmPool(partial(trainer.start_warm_process, bench))
    try:
        bench = replace(bench, warm_pool=waiting)
        return [score_short_run(bench, candidate, slot) for _ in range(2)]
    finally:
        waiting.close()


def score_short_run(bench: Workbench, candidate: Candidate, slot: Device) -> Score:
    """One of them."""
    begun = time.monotonic()
    try:
        run = trainer.train_candidate(bench, candidate, seed=0, device=slot)
        score = evaluator.score_run(bench, run, device=slot)
        trainer.discard_runs(run)
        return score
    except ExperimentFailed as failed:
        took = time.monotonic() - begun
        raise LabError(
            f"train.py failed after {took:.0f} s: {failed}. Its log is "
            f"{failed.failure.log}. Next: mend train.py, then autoresearch check"
        ) from None
