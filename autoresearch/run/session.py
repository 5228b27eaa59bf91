"""Open a lab for a session: from a folder and options to everything `run` needs.

Holds the lab's lock while the session is open; cleans up after an earlier session that
was killed; decides nothing about experiments.
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
from autoresearch.lab.apparatus import Apparatus, load_apparatus
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
    """Command-line options, for this session only."""

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
    is_over: Callable[[int], bool]  # given the number of proposals so far
    # Rounds of runs on all devices until its hours are over.
    estimate_runs_left: Callable[[], float] = lambda: math.inf

    @property
    def width(self) -> int:
        """How many runs there can be at once."""
        return self.pool.capacity


class LiveStatus:
    """The runs under way, written to a file that every view reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._written = 0.0
        # By experiment and thread: a baseline runs on several devices at once.
        self._runs: dict[tuple[int, int], dict[str, object]] = {}
        self._finished: Counter[int] = Counter()  # runs of experiments under way
        self.notices: list[str] = []
        self.ends_at: float | None = None  # None: no end was set
        self.listener: Callable[[Candidate, RunProgress], None] | None = None
        self.reader: Callable[[str], None] | None = None

    def add_notice(self, words: str) -> None:
        """Show the user a sentence."""
        with self._lock:
            self.notices.append(words)
            self._write()
        if self.reader is not None:
            self.reader(words)

    def __call__(self, candidate: Candidate, progress: RunProgress) -> None:
        """Record the progress of a run."""
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
        """Forget an experiment that has its verdict, and the champion's runs for it."""
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
        status = {"pid": os.getpid(), "at": time.time(), "until": self.ends_at}
        write_whole(
            self._path, json.dumps({**status, "runs": runs, "notices": self.notices})
        )


@contextmanager
def open_session(
    lab: Lab, options: SessionOptions, stop: StopFlag
) -> Iterator[tuple[Session, LiveStatus]]:
    """Open a session for `loop.research`; LabError says what is missing."""
    Repository(lab.folder).require_usable()
    lab.require_disk_space()
    with lab.hold_lock():
        clean_up_killed_session(lab)
        apparatus = load_apparatus(lab, Repository(lab.folder))
        ledger = Ledger(lab.ledger_path, lower_is_better=apparatus.lower_is_better)
        proposer: Proposer | None = None  # None: the session could not be built
        warm_pool: WarmPool | None = None
        try:
            forget_foreign_code(lab, ledger)
            session, status = build_session(lab, options, stop, apparatus, ledger)
            proposer = session.proposer
            warm_pool = session.workbench.warm_pool
            yield session, status
        finally:
            if isinstance(proposer, Bandit):
                proposer.close()
            if warm_pool is not None:
                warm_pool.close()
            lab.live_status_path.unlink(missing_ok=True)
            process.remove_folder(lab.state_folder / "runs")
            ledger.close()


def forget_foreign_code(lab: Lab, ledger: Ledger) -> None:
    """Delete what `check` compiled of a file that is no baseline of this lab."""
    rows = ledger.load_rows()
    if baselines := {row.blob for row in rows if row.author == HUMAN_AUTHOR}:
        compile_cache.discard_other_blobs(lab, *baselines)


def clean_up_killed_session(lab: Lab) -> None:
    """Remove what a killed session left: processes, run folders, its live status."""
    process.sweep(lab.folder)
    process.remove_folder(lab.state_folder / "runs")
    compile_cache.remove_leftovers(lab)
    lab.live_status_path.unlink(missing_ok=True)
    Repository(lab.folder).add_excludes(*VIEWS_OF_OURS)


def build_session(
    lab: Lab,
    options: SessionOptions,
    stop: StopFlag,
    apparatus: Apparatus,
    ledger: Ledger,
) -> tuple[Session, LiveStatus]:
    """Build the parts of a session."""
    status = LiveStatus(lab.live_status_path)
    recorder = Recorder(lab, apparatus, ledger, status.add_notice)
    program = recorder.program
    devices = list_usable_devices(apparatus)
    terms = terms_from_program(program, read_readonly_files(lab, program))
    backend = selftest.require_backend(host_paths(lab), program.cage, devices[0])
    workbench = Workbench(lab, apparatus, terms, stop, status, backend)
    devices = find_working_devices(devices, backend, lab, status.add_notice)
    begin_ledger_session(ledger, options, workbench, program, devices[0])
    recorder.publish_pending()
    hours = options.hours if options.hours is not None else program.hours
    status.ends_at = None if hours is None else time.time() + 3600 * hours
    for words in list_start_notices(lab, hours, program, ledger):
        status.add_notice(words)
    if uses_warm_pool(apparatus, devices[0], backend):
        start = partial(trainer.start_warm_process, workbench)
        workbench = replace(workbench, warm_pool=WarmPool(start))
    pool = pool_registry.load_pool(load_config().pool, Worker(workbench), devices)
    is_over = StopCondition(recorder, options, status)
    session = Session(
        recorder,
        workbench,
        load_session_proposers(options, program, workbench, ledger, status),
        policy_registry.load_policy(
            program.policy,
            lower_is_better=apparatus.lower_is_better,
            gain_per_20_added_lines=program.gain_per_20_added_lines,
        ),
        pool,
        devices,
        ledger.base_seed,
        is_over,
        lambda: is_over.estimate_runs_left() / max(1, pool.capacity),
    )
    return session, status


def begin_ledger_session(
    ledger: Ledger,
    options: SessionOptions,
    workbench: Workbench,
    program: Program,
    device: Device,
) -> None:
    """Record the session, its series and its sandbox in the ledger."""
    series, facts = compute_series(
        workbench.apparatus, program, device, workbench.terms.readonly
    )
    sandbox_facts = dict(selftest.collect_sandbox_facts(workbench.backend))
    session = json.dumps({**asdict(options), "cage": sandbox_facts})
    ledger.begin_session(series, json.dumps(facts), options.seed, session)


def load_session_proposers(
    options: SessionOptions,
    program: Program,
    workbench: Workbench,
    ledger: Ledger,
    status: LiveStatus,
) -> Proposer:
    """Load the proposers of a session, with the preflight as their check."""
    if options.dollars is not None:
        program = replace(program, dollars=options.dollars)
    toolkit = open_toolkit(workbench.lab.folder, program)
    preflight = Preflight(workbench, ledger)
    toolkit.check_proposal, toolkit.stop_checks = preflight, preflight.close
    toolkit.notify = status.add_notice
    return proposer_registry.load_proposers(
        options.proposers or program.proposers,
        program,
        workbench.lab.folder,
        ledger.base_seed,
        toolkit,
    )


def uses_warm_pool(
    apparatus: Apparatus, device: Device, backend: SandboxBackend
) -> bool:
    """Whether the next processes import torch while a run trains."""
    cuda = device.device_type == "cuda"
    return apparatus.causal and cuda and backend.level == "full"


def count_baseline_runs(program: Program) -> int:
    """How many baseline runs come before the first idea."""
    return 1 if program.policy == "greedy" else BASELINE_RUNS


def list_start_notices(
    lab: Lab, hours: float | None, program: Program, ledger: Ledger
) -> Iterator[str]:
    """Yield what the user should know before anything runs."""
    champion = ledger.champion
    if champion and lab.read_file("train.py") != ledger.load_source(champion.blob):
        yield (
            "train.py in your folder is not the champion's and is left alone; to have "
            'it measured: autoresearch try train.py "what is new"'
        )
    if lab.pause_path.exists():
        yield "this lab is paused; to begin: autoresearch resume"
    if hours is None or program.budget_seconds is None or champion is not None:
        return
    runs = count_baseline_runs(program)
    least_seconds = runs * program.budget_seconds
    if 3600 * hours <= least_seconds:
        yield (
            f"{hours:g} hours leave no time for ideas: the baseline alone is {runs} "
            f"runs of {program.budget_seconds:g} s, at least "
            f"{least_seconds / 60:.3g} min, and is completed in any case. To have "
            f"ideas tried: --hours {2 * least_seconds / 3600:.2g} or more, or a "
            "smaller budget_seconds"
        )


def list_left_out_gpus(same: Sequence[Gpu], others: Sequence[Gpu]) -> Iterator[str]:
    """Yield what the user should know of GPUs of another model than the rest."""
    for gpu in others:
        yield (
            f"GPU {gpu.index} ({gpu.name}) is left out: its runs would not compare "
            f"with those on GPU {same[0].index} ({same[0].name}). For nights on it "
            f"alone, in a lab of its own: CUDA_VISIBLE_DEVICES={gpu.index}"
        )


def find_working_devices(
    devices: tuple[Device, ...],
    backend: SandboxBackend,
    lab: Lab,
    notice: Callable[[str], None],
) -> tuple[Device, ...]:
    """Return the devices that work inside the sandbox; LabError: none does.

    One that does not would turn every proposal it got into a crash.
    """
    working = tuple(
        device
        for device in devices
        if device.device_type != "cuda"
        or selftest.sees_only_its_gpu(backend, host_paths(lab), device)
    )
    if not working:
        raise LabError(
            f"CUDA finds no GPU inside the sandbox ({backend.level}). Next: "
            'nvidia-smi; if it lists one, write cage = "none" in program.md, and '
            "report this"
        )
    for device in devices:
        if device not in working:
            notice(
                f"GPU {device.index} is left out: CUDA does not find it in the sandbox"
            )
    if devices[0].device_type == "cuda":
        for words in list_left_out_gpus(
            *discovery.partition_same_model(discovery.list_visible_gpus())
        ):
            notice(words)
    return working


def compute_terms(session: Session) -> RunTerms:
    """Return the terms of a run; a token budget's time limit follows the champion's."""
    terms = session.workbench.terms
    champion = session.recorder.ledger.champion
    if terms.budget_tokens is None or champion is None:
        return terms
    row = session.recorder.ledger.load_row(champion.number)
    assert row is not None
    wall = max(SHORTEST_WALL_SECONDS, WALL_FACTOR * row.seconds / row.runs)
    return replace(terms, wall_seconds=wall)


class StopCondition:
    """Whether the limit of experiments or hours is reached, read anew on each call."""

    def __init__(
        self, recorder: Recorder, options: SessionOptions, status: LiveStatus
    ) -> None:
        self._recorder = recorder
        self._options = options
        self._status = status
        self._began, self._runs = time.time(), recorder.ledger.run_count

    def estimate_runs_left(self) -> float:
        """Estimate how many runs fit before the end, at the session's pace so far."""
        made = self._recorder.ledger.run_count - self._runs
        if self._status.ends_at is None or not made:
            return math.inf
        each = (time.time() - self._began) / made
        return max(0.0, self._status.ends_at - time.time()) / each

    def __call__(self, proposal_count: int) -> bool:
        limit = self.max_experiments
        if limit is not None and proposal_count >= limit:
            return True
        return self._status.ends_at is not None and time.time() >= self._status.ends_at

    @property
    def max_experiments(self) -> int | None:
        """The maximum of experiments in this session; None: no limit."""
        if self._options.experiments is not None:
            return self._options.experiments
        return self._recorder.program.experiments


def compute_series(
    apparatus: Apparatus,
    program: Program,
    device: Device,
    readonly: tuple[tuple[str, bytes], ...],
) -> tuple[str, dict[str, object]]:
    """Return (hash, facts) of what must be equal for scores to be comparable."""
    if program.budget_seconds is None:
        budget = f"{program.budget_tokens} tokens"
    else:
        budget = f"{program.budget_seconds:g} ± {program.tolerance_seconds:g} s"
    facts: dict[str, object] = {
        "apparatus": apparatus.blob,
        "data": apparatus.load_fingerprint(),
        "metric": apparatus.metric,
        "budget": budget,
        "cage": program.cage,
        **(
            discovery.collect_machine_facts(device)
            if apparatus.causal
            else {"device": "any"}
        ),
        **{
            f"readonly {name}": compute_blob_id(text.decode())
            for name, text in readonly
        },
    }
    return hash_facts(facts), facts


def hash_facts(facts: Mapping[str, object]) -> str:
    """Return a 12-character hash of a set of facts."""
    text = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:12]
