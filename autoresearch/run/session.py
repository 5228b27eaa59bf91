"""Open a lab for a night: from a folder and some options to everything `run` needs.

Holds the lab's lock for as long as it is open; cleans up what an earlier night that was
killed left behind; decides nothing about experiments.
"""

import hashlib
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from autoresearch.atomic_file import write_whole
from autoresearch.devices import discovery
from autoresearch.devices.gpu_specs import Gpu
from autoresearch.errors import LabError
from autoresearch.experiment import HARNESS_AUTHOR, HUMAN_AUTHOR, Candidate, Device
from autoresearch.git import Repository, compute_blob_id
from autoresearch.lab import apparatus
from autoresearch.lab.apparatus import Apparatus
from autoresearch.lab.folder import Lab
from autoresearch.lab.program import Program
from autoresearch.measure import compile_cache, trainer
from autoresearch.measure.preflight import Preflight
from autoresearch.measure.warm_pool import WarmPool
from autoresearch.measure.workbench import (
    RunProgress,
    RunTerms,
    Workbench,
    host_paths,
    list_usable_devices,
    read_readonly_files,
    terms_from_program,
)
from autoresearch.measure.worker import Worker
from autoresearch.policies import Policy
from autoresearch.policies import registry as policy_registry
from autoresearch.policies.noise_aware import BASELINE_RUNS
from autoresearch.pools import Pool
from autoresearch.pools import registry as pool_registry
from autoresearch.proposers import Proposer
from autoresearch.proposers import registry as proposer_registry
from autoresearch.proposers.bandit import Bandit
from autoresearch.proposers.toolkit import open_toolkit
from autoresearch.records.ledger import Ledger
from autoresearch.records.recorder import Recorder
from autoresearch.sandbox import process, selftest
from autoresearch.sandbox.process import SandboxBackend, StopFlag
from autoresearch.user_config import load_config

# A token budget has no clock of its own: a run may take three times what the champion
# took, so that a change cannot buy its gain with unlimited seconds.
SHORTEST_WALL_SECONDS = 60.0
WALL_FACTOR = 3.0
WRITE_EVERY_SECONDS = 0.5
VIEWS_OF_OURS = ("results.tsv", "report.html", ".autoresearch/")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What was asked for on the command line, for this night only."""

    experiments: int | None = None  # None: what program.md says
    hours: float | None = None  # None: what program.md says
    proposers: tuple[str, ...] = ()  # none: what program.md says
    seed: int | None = None  # None: follows from the series
    dollars: float | None = None  # None: what program.md says


@dataclass(frozen=True, slots=True)
class Session:
    """Everything one `autoresearch run` works with."""

    recorder: Recorder
    workbench: Workbench
    proposer: Proposer
    policy: Policy
    pool: Pool
    devices: tuple[Device, ...]  # the devices behind the pool
    seed: int  # what the seeds of all runs are drawn from
    is_over: Callable[[int], bool]  # given how many proposals were taken so far
    estimate_runs_left: Callable[[], float] = lambda: (
        math.inf
    )  # runs, until its hours are over

    @property
    def width(self) -> int:
        """How many runs there can be at one time."""
        return self.pool.capacity


class LiveStatus:
    """What is running at this moment, written where every view can read it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._written = 0.0
        # By experiment and thread: a baseline runs on several devices at once.
        self._runs: dict[tuple[int, int], dict[str, object]] = {}
        self._finished: Counter[int] = Counter()  # runs of experiments in hand
        self.notices: list[str] = []
        self.ends_at: float | None = None  # None: no end was set
        self.listener: Callable[[Candidate, RunProgress], None] | None = None
        self.reader: Callable[[str], None] | None = None

    def add_notice(self, words: str) -> None:
        """Something the human should know."""
        with self._lock:
            self.notices.append(words)
            self._write()
        if self.reader is not None:
            self.reader(words)

    def __call__(self, candidate: Candidate, progress: RunProgress) -> None:
        """Take note of how far a run is."""
        proposal = candidate.proposal
        assert proposal.number is not None
        number, key = proposal.number, (proposal.number, threading.get_ident())
        with self._lock:
            if progress.phase == "starting":
                scored = [
                    other
                    for other, run in self._runs.items()
                    if other[0] == number and run["phase"] == "scoring"
                ]
                self._finished[number] += len(scored)
                for other in scored:
                    del self._runs[other]
            self._runs[key] = {
                "finished": self._finished[number],
                "experiment": proposal.number,
                "title": proposal.title,
                "author": proposal.author,
                **asdict(progress),
            }
            if time.monotonic() - self._written > WRITE_EVERY_SECONDS:
                self._write()
        if self.listener is not None:
            self.listener(candidate, progress)

    def finish_experiment(self, number: int) -> None:
        """An experiment has its verdict, and the champion's runs for it are over."""
        with self._lock:
            self._runs = {
                key: run
                for key, run in self._runs.items()
                if key[0] != number and run["author"] != HARNESS_AUTHOR
            }
            for other in {*self._finished} - {key[0] for key in self._runs}:
                del self._finished[other]
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        runs = list(self._runs.values())
        said = {"pid": os.getpid(), "at": time.time(), "until": self.ends_at}
        write_whole(
            self._path, json.dumps({**said, "runs": runs, "notices": self.notices})
        )


@contextmanager
def open_session(
    lab: Lab, options: SessionOptions, stop: StopFlag
) -> Iterator[tuple[Session, LiveStatus]]:
    """A night, ready for `loop.research`; LabError says what is missing."""
    Repository(lab.folder).require_usable()
    lab.require_disk_space()
    with lab.hold_lock():
        clean_up_killed_session(lab)
        found = apparatus.load_apparatus(lab, Repository(lab.folder))
        ledger = Ledger(lab.ledger_path, lower_is_better=found.lower_is_better)
        thinking: Proposer | None = None  # None: the night could not be put together
        waiting: WarmPool | None = None
        try:
            forget_foreign_code(lab, ledger)
            found_night, now = build_session(lab, options, stop, found, ledger)
            thinking = found_night.proposer
            waiting = found_night.workbench.waiting
            yield found_night, now
        finally:
            if isinstance(thinking, Bandit):
                thinking.close()
            if waiting is not None:
                waiting.close()
            lab.live_status_path.unlink(missing_ok=True)
            process.remove_folder(lab.state_folder / "runs")
            ledger.close()


def forget_foreign_code(lab: Lab, ledger: Ledger) -> None:
    """Drop what `check` compiled of a file that this lab did not begin with."""
    if begun_with := {
        row.blob for row in ledger.load_rows() if row.author == HUMAN_AUTHOR
    }:
        compile_cache.discard_other_blobs(lab, *begun_with)


def clean_up_killed_session(lab: Lab) -> None:
    """End what a killed night left: processes, run folders, the note of what ran."""
    process.sweep(lab.folder)
    process.remove_folder(lab.state_folder / "runs")
    compile_cache.remove_leftovers(lab)
    lab.live_status_path.unlink(missing_ok=True)
    Repository(lab.folder).add_excludes(*VIEWS_OF_OURS)


def build_session(
    lab: Lab, options: SessionOptions, stop: StopFlag, found: Apparatus, ledger: Ledger
) -> tuple[Session, LiveStatus]:
    """Put the parts of a night together."""
    now = LiveStatus(lab.live_status_path)
    books = Recorder(lab, found, ledger, now.add_notice)
    program = books.program
    slots = list_usable_devices(found)
    readonly = read_readonly_files(lab, program)
    walls = selftest.require_backend(host_paths(lab), program.cage, slots[0])
    slots = find_working_devices(slots, walls, lab, now.add_notice)
    series, facts = compute_series(found, program, slots[0], readonly)
    session = {**asdict(options), "cage": dict(selftest.collect_sandbox_facts(walls))}
    ledger.begin_session(series, json.dumps(facts), options.seed, json.dumps(session))
    books.publish_pending()
    champion = ledger.champion
    if champion and lab.read_file("train.py") != ledger.load_source(champion.blob):
        now.add_notice(
            "train.py in your folder is not the champion's and is left alone; to have "
            'it measured: autoresearch try train.py "what is new"'
        )
    hours = options.hours if options.hours is not None else program.hours
    now.ends_at = None if hours is None else time.time() + 3600 * hours
    for words in list_start_notices(lab, hours, program, ledger):
        now.add_notice(words)
    bench = Workbench(
        lab, found, terms_from_program(program, readonly), stop, now, walls
    )
    if uses_warm_pool(found, slots[0], walls):
        bench = replace(
            bench, waiting=WarmPool(partial(trainer.start_warm_process, bench))
        )
    specs = options.proposers or program.proposers
    if options.dollars is not None:
        program = replace(program, dollars=options.dollars)
    desk = open_toolkit(lab.folder, program)
    flight = Preflight(bench, ledger)
    desk.check_proposal, desk.stop_checks, desk.notify = (
        flight,
        flight.close,
        now.add_notice,
    )
    night = Session(
        books,
        bench,
        proposer_registry.load_proposers(
            specs, program, lab.folder, ledger.base_seed, desk
        ),
        policy_registry.load_policy(
            program.policy,
            lower_is_better=found.lower_is_better,
            gain_per_20_added_lines=program.gain_per_20_added_lines,
        ),
        pool_registry.load_pool(load_config().pool, Worker(bench), slots),
        slots,
        ledger.base_seed,
        over := StopCondition(books, options, now),
        lambda: over.estimate_runs_left() / len(slots),
    )
    return night, now


def uses_warm_pool(found: Apparatus, slot: Device, walls: SandboxBackend) -> bool:
    """Whether processes that come next import torch while a run trains."""
    return found.causal and slot.device_type == "cuda" and walls.level == "full"


def count_baseline_runs(program: Program) -> int:
    """How many runs of the baseline come before the first idea."""
    return 1 if program.policy == "greedy" else BASELINE_RUNS


def list_start_notices(
    lab: Lab, hours: float | None, program: Program, ledger: Ledger
) -> Iterator[str]:
    """What a human should know before anything runs."""
    if lab.pause_path.exists():
        yield "this lab is paused; to begin: autoresearch resume"
    if hours is None or program.budget_seconds is None or ledger.champion is not None:
        return
    runs = count_baseline_runs(program)
    least_seconds = runs * program.budget_seconds
    if 3600 * hours <= least_seconds:
        yield (
            f"{hours:g} hours hold no idea: the baseline alone is {runs} runs of "
            f"{program.budget_seconds:g} s, at least {least_seconds / 60:.3g} min, and "
            f"is finished. To have ideas tried: --hours {2 * least_seconds / 3600:.2g} "
            "or more, or a smaller budget_seconds"
        )


def list_left_out_gpus(same: Sequence[Gpu], others: Sequence[Gpu]) -> Iterator[str]:
    """What a human should know of GPUs that are of another kind than the rest."""
    for gpu in others:
        yield (
            f"GPU {gpu.index} ({gpu.name}) is left out: its runs would not compare "
            f"with those on GPU {same[0].index} ({same[0].name}). For nights on it "
            f"alone, in a lab of its own: CUDA_VISIBLE_DEVICES={gpu.index}"
        )


def find_working_devices(
    slots: tuple[Device, ...],
    walls: SandboxBackend,
    lab: Lab,
    notice: Callable[[str], None],
) -> tuple[Device, ...]:
    """The slots whose GPU can be used from inside the cage; LabError: none can.

    One that cannot would turn every proposal it got into a crash.
    """
    found = tuple(
        slot
        for slot in slots
        if slot.device_type != "cuda"
        or selftest.sees_only_its_gpu(walls, host_paths(lab), slot)
    )
    if not found:
        raise LabError(
            f"CUDA finds no GPU from inside the cage ({walls.level}). Next: nvidia-smi;"
            ' if it lists one, write cage = "none" in program.md, and report this'
        )
    for slot in slots:
        if slot not in found:
            notice(f"GPU {slot.index} is left out: CUDA does not find it in the cage")
    if slots[0].device_type == "cuda":
        for words in list_left_out_gpus(
            *discovery.partition_same_model(discovery.list_visible_gpus())
        ):
            notice(words)
    return found


def compute_terms(session: Session) -> RunTerms:
    """What a run is granted; a token budget's wall time fits what the champion took."""
    terms = session.workbench.terms
    champion = session.recorder.ledger.champion
    if terms.budget_tokens is None or champion is None:
        return terms
    row = session.recorder.ledger.load_row(champion.number)
    assert row is not None
    wall = max(SHORTEST_WALL_SECONDS, WALL_FACTOR * row.seconds / row.runs)
    return replace(terms, wall_seconds=wall)


class StopCondition:
    """Whether a night has had its experiments or its hours. Read afresh each time."""

    def __init__(
        self, books: Recorder, options: SessionOptions, now: LiveStatus
    ) -> None:
        self._books = books
        self._options = options
        self._now = now
        self._began, self._runs = time.time(), books.ledger.run_count

    def estimate_runs_left(self) -> float:
        """How many runs fit until the hours are over, at tonight's pace."""
        made = self._books.ledger.run_count - self._runs
        if self._now.ends_at is None or not made:
            return math.inf
        each = (time.time() - self._began) / made
        return max(0.0, self._now.ends_at - time.time()) / each

    def __call__(self, taken: int) -> bool:
        most = self.max_experiments
        if most is not None and taken >= most:
            return True
        return self._now.ends_at is not None and time.time() >= self._now.ends_at

    @property
    def max_experiments(self) -> int | None:
        """How many this night may take; None: no end."""
        if self._options.experiments is not None:
            return self._options.experiments
        return self._books.program.experiments


def compute_series(
    found: Apparatus,
    program: Program,
    slot: Device,
    readonly: tuple[tuple[str, bytes], ...],
) -> tuple[str, dict[str, object]]:
    """(hash, facts): what must be equal for scores to be compared."""
    if program.budget_seconds is None:
        budget = f"{program.budget_tokens} tokens"
    else:
        budget = f"{program.budget_seconds:g} ± {program.tolerance_seconds:g} s"
    facts: dict[str, object] = {
        "apparatus": found.blob,
        "data": found.load_fingerprint(),
        "metric": found.metric,
        "budget": budget,
        "cage": program.cage,
        **(
            discovery.collect_machine_facts(slot) if found.causal else {"device": "any"}
        ),
        **{
            f"readonly {name}": compute_blob_id(text.decode())
            for name, text in readonly
        },
    }
    return hash_facts(facts), facts


def hash_facts(facts: Mapping[str, object]) -> str:
    """A short name for a set of facts."""
    text = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:12]
