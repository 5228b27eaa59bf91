"""`autoresearch check`: try everything once, and forecast the night.

One short run in the real sandbox, scored by the real evaluator. Nothing is recorded.
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
from autoresearch.measure.worker import Worker
from autoresearch.pools import registry as pool_registry
from autoresearch.proposers import registry as proposer_registry
from autoresearch.proposers.registry import ProposerState
from autoresearch.reporting.format import format_rate, format_seconds
from autoresearch.run import session
from autoresearch.sandbox import selftest
from autoresearch.text import to_one_line
from autoresearch.user_config import load_config

SHORT_RUN_SECONDS = 12.0
SHORT_RUN_TOKENS_SHARE = 0.1
# Below the first number of training tokens per parameter a run ends before it has
# learned much; the second is the budget that is then proposed. Compute-optimal training
# takes about 20 (Hoffmann et al. 2022), the best known five-minute recipes 3 to 7.
MIN_TOKENS_PER_PARAMETER, PROPOSED_TOKENS_PER_PARAMETER = 0.5, 2.0
OVERHEAD_SECONDS = 0.3  # harness overhead of one experiment (benchmarks/overhead.py)
# Promising candidates run on fresh seeds, and the champion is run again
# (benchmarks/verdicts.py).
RUNS_PER_EXPERIMENT = {"greedy": 1.0}
DEFAULT_RUNS_PER_EXPERIMENT = 1.16
CAGE_DESCRIPTIONS = {
    "full": "no network, only its own files, a separate user; {facts}",
    "landlock": "no network, only its own files (Linux Landlock); {facts}",
    "container": "no network, only its own files, a separate user; {facts}",
    "seatbelt": "no network, only its own files (macOS Seatbelt)",
    "none": "train.py runs as you, with time and memory limits but no isolation; use "
    "only proposers that you would let run code here",
}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What `check` measured, and the forecast that follows from it."""

    machine_facts: dict[str, str]  # empty for a lab without tensors
    program: Program
    cage_facts: dict[str, object]
    score: Score
    proposers: dict[str, ProposerState]  # by their words in program.md
    constant_count: int
    hours: float  # length of the night
    run_seconds: float  # forecast for one full run, start-up and scoring included
    device_count: int
    text_tokens: int  # in the training text; 0: the lab has none
    is_cold_start: bool = False  # whether this train.py rules out the warm pool
    first_startup_seconds: float | None = None  # None: there was one run only

    @property
    def run(self) -> Run:
        return self.score.run

    @property
    def tokens_per_second(self) -> float:
        """Training speed of the short run; 0 where the run reported no tokens."""
        tokens = dict(self.run.facts).get("tokens", 0)
        return float(tokens) / self.run.seconds if self.run.seconds else 0.0

    @property
    def run_tokens(self) -> float:
        """How many tokens a full run will train on."""
        if self.program.budget_seconds is None:
            return float(self.program.budget_tokens or 0)
        return self.tokens_per_second * self.program.budget_seconds

    @property
    def epochs(self) -> float | None:
        """How often a full run reads its text; None where the lab has none."""
        return self.run_tokens / self.text_tokens if self.text_tokens else None

    @property
    def short_budget_warning(self) -> str:
        """A warning about a budget in which little is learned; "" if it is enough."""
        size = dict(self.run.facts).get("parameters", 0)
        if not isinstance(size, int) or not self.tokens_per_second or not self.epochs:
            return ""
        if self.run_tokens >= MIN_TOKENS_PER_PARAMETER * size:
            return ""
        tokens = int(PROPOSED_TOKENS_PER_PARAMETER * size)
        each = format_seconds(tokens / self.tokens_per_second)
        return (
            f"too short to learn much: {self.run_tokens / size:.2g} tokens per "
            f"parameter. Next: set budget_tokens = {tokens} in program.md (about "
            f"{each} a run), or a smaller DEPTH"
        )

    @property
    def cold_start_warning(self) -> str:
        """A warning that train.py rules out warm processes; "" if it does not."""
        if not self.is_cold_start:
            return ""
        return (
            "it mentions environ, putenv or setenv, so torch cannot be imported ahead "
            "of a run: about 25 s more a run (os.environ.get(..) alone is fine)"
        )

    @property
    def first_startup_note(self) -> str:
        """The first run's start-up time, where there was a second run."""
        first = self.first_startup_seconds
        return "" if first is None else f" (first run {first:.1f} s)"

    @property
    def has_ready_proposer(self) -> bool:
        """Whether at least one proposer works."""
        return any(state.is_ready for state in self.proposers.values())

    @property
    def waiting_seconds(self) -> float:
        """How long the GPU waits for an idea: the mean over the proposers."""
        seconds = [state.waiting_seconds for state in self.proposers.values()]
        return sum(seconds) / len(seconds)

    @property
    def experiment_count(self) -> int:
        """How many experiments fit into the hours."""
        each = self.run_seconds * self.runs_per_experiment + self.waiting_seconds
        return int(self.hours * 3600 / each) * self.device_count

    @property
    def baseline_seconds(self) -> float:
        """How long the baseline takes, before the first idea is tried."""
        return self.run_seconds * session.count_baseline_runs(self.program)

    @property
    def runs_per_experiment(self) -> float:
        """The average under this policy, from simulations."""
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
            "proposer_states": {n: state.state for n, state in self.proposers.items()},
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
        """Model FLOP/s utilisation in %; None where the GPU's peak is not known."""
        percent = dict(self.run.facts).get("mfu_percent")
        return float(percent) if isinstance(percent, int | float) else None

    @property
    def run_duration(self) -> str:
        """How long one full run takes, in words."""
        return format_seconds(self.run_seconds)

    @property
    def waiting_note(self) -> str:
        """The wait for a model that shares the training GPU; "" where there is none."""
        if not self.waiting_seconds:
            return ""
        seconds = f"{self.waiting_seconds:.0f}"
        return f", plus at least {seconds} s an experiment waiting for ideas"

    @property
    def cage_description(self) -> str:
        """What the sandbox restricts, and the facts it was tested for."""
        known = {name: fact for name, fact in self.cage_facts.items() if fact}
        facts = ", ".join(f"{name} {fact}" for name, fact in known.items())
        return CAGE_DESCRIPTIONS[self.program.cage].format(facts=facts)

    def to_lines(self) -> list[str]:
        """The same for people: one fact a line, its name in front."""
        program = self.program
        run, scored = self.run, f"scored in {self.score.seconds:.1f} s"
        percent = self.mfu_percent
        mfu = "" if percent is None else f"MFU {percent:.1f} %, "
        limits = (
            f"{program.max_constants} constant or {program.max_changed_lines} lines; "
            f"20 added lines must gain {program.gain_per_20_added_lines:g}"
        )
        advice = len([line for line in program.prose.splitlines() if line.strip()])
        machine = ", ".join(self.machine_facts.values()) or "any"
        return [
            f"machine    {machine}",
            f"cage       {self.program.cage}: {self.cage_description}",
            f"train.py   {format_rate(self.tokens_per_second)} tok/s, {mfu}"
            f"{run.memory_gb:.1f} GB, start-up {run.startup_seconds:.1f} s"
            f"{self.first_startup_note}, {scored}",
            f"           trained and served model agree{self.epochs_note}",
            *(
                f"           {warning}"
                for warning in (self.short_budget_warning, self.cold_start_warning)
                if warning
            ),
            *self.format_proposers(),
            f"rules      enforced: {format_budget(program)}; only train.py; {limits}.  "
            f"Advice: {advice} lines of program.md",
            f"{self.hours:g} hours    about {self.experiment_count} experiments of "
            f"{self.runs_per_experiment:.3g} runs, {self.run_duration} each"
            + self.waiting_note,
            f"at least   {format_seconds(self.baseline_seconds)}: the baseline runs "
            f"{session.count_baseline_runs(program)} times before the first idea",
        ]

    @property
    def epochs_note(self) -> str:
        """How much of its text a full run reads, in words."""
        if self.epochs is None:
            return ""
        seconds = self.program.budget_seconds
        budget = f"{seconds:g} s = " if seconds is not None else ""
        tokens = self.run_tokens / 1e6
        return f"; {budget}{tokens:.3g}M tokens = {self.epochs:.2g} epochs"

    def format_proposers(self) -> list[str]:
        """One line a proposer; the optimiser with the number of constants it tunes."""
        lines = [
            f"{name}  {state.state}"
            + (f", {self.constant_count} constants" if name == "search" else "")
            for name, state in self.proposers.items()
        ]
        return [
            f"{'' if index else 'proposers':<11}{to_one_line(line)}"
            for index, line in enumerate(lines)
        ]


def format_budget(program: Program) -> str:
    """The budget in words."""
    if program.budget_seconds is None:
        return f"{program.budget_tokens} tokens"
    return f"{program.budget_seconds:g} ± {program.tolerance_seconds:g} s"


def check(lab: Lab, specs: Sequence[str], hours: float) -> CheckResult:
    """Try everything once. `specs` replace the proposers of program.md.

    Raises LabError for anything that has to be fixed before a night.
    """
    repository = Repository(lab.folder)
    repository.require_usable()
    lab.require_disk_space()
    found = apparatus.load_apparatus(lab, repository)
    found.load_fingerprint()
    program, config = lab.load_program(), load_config()
    devices = list_usable_devices(found)
    states = proposer_registry.check_proposers(
        tuple(specs or program.proposers), program, lab.folder
    )
    with lab.hold_lock():
        session.clean_up_killed_session(lab)
        workbench = Workbench.open(lab, apparatus=found, device=devices[0])
        # No run goes there, but a pool that cannot be had is found before the night.
        pool_registry.load_pool(config.pool, Worker(workbench), devices)
        is_warm = session.uses_warm_pool(found, devices[0], workbench.backend)
        scores = score_short_runs(workbench, program, devices[0], twice=is_warm)
    score, share = scores[-1], compute_budget_share(program)
    trained = program.budget_seconds or score.run.seconds / share
    whole = score.run.startup_seconds + trained + score.seconds + OVERHEAD_SECONDS
    return CheckResult(
        discovery.collect_machine_facts(devices[0]) if found.causal else {},
        program,
        dict(selftest.collect_sandbox_facts(workbench.backend)),
        score,
        states,
        len(constants.parse_constants(lab.read_file("train.py"))),
        hours,
        whole,
        len(devices),
        os.fstat(found.seal_training_data()).st_size // 2 if found.causal else 0,
        is_warm and sets_environment(lab.read_file("train.py")),
        scores[0].run.startup_seconds if len(scores) > 1 else None,
    )


def compute_budget_share(program: Program) -> float:
    """The short run's share of a full run's budget."""
    if program.budget_seconds is None:
        return SHORT_RUN_TOKENS_SHARE
    return min(1.0, SHORT_RUN_SECONDS / program.budget_seconds)


def score_short_runs(
    workbench: Workbench, program: Program, device: Device, *, twice: bool
) -> list[Score]:
    """Train briefly and score, exactly as a night would.

    `twice`: also as a night's later runs, which find compiled code and warm processes.
    """
    share, terms, lab = compute_budget_share(program), workbench.terms, workbench.lab
    if program.budget_seconds is not None:
        seconds = program.budget_seconds * share
        terms = replace(terms, budget_seconds=seconds)
    else:
        assert program.budget_tokens is not None
        tokens = max(1, int(program.budget_tokens * share))
        terms = replace(terms, budget_tokens=tokens, wall_seconds=60.0)
    workbench = replace(workbench, terms=terms)
    source = lab.read_file("train.py")
    # Before the first night this train.py is probably the baseline: what torch compiles
    # for the user's own code is kept for later runs.
    author = "check" if lab.ledger_path.exists() else HUMAN_AUTHOR
    candidate = Candidate(
        Proposal(0, "check", source, "", author), compute_blob_id(source)
    )
    if not twice:
        return [score_short_run(workbench, candidate, device)]
    pool = WarmPool(partial(trainer.start_warm_process, workbench))
    try:
        workbench = replace(workbench, warm_pool=pool)
        return [score_short_run(workbench, candidate, device) for _ in range(2)]
    finally:
        pool.close()


def score_short_run(
    workbench: Workbench, candidate: Candidate, device: Device
) -> Score:
    """Train once and score; LabError if train.py fails."""
    started = time.monotonic()
    try:
        run = trainer.train_candidate(workbench, candidate, seed=0, device=device)
        score = evaluator.score_run(workbench, run, device=device)
        trainer.discard_runs(run)
        return score
    except ExperimentFailed as failed:
        seconds = time.monotonic() - started
        raise LabError(
            f"train.py failed after {seconds:.0f} s: {failed}. Its log is "
            f"{failed.failure.log}. Next: fix train.py, then autoresearch check"
        ) from None
