"""The loop on lab `line`: what a night does, and what it never does."""

import csv
import json
import pickle
import re
import signal
import subprocess
import textwrap
import time
from dataclasses import replace

import pytest

from autoresearch.commands.ablate import MinimumRunsRule
from autoresearch.errors import LabError
from autoresearch.experiment import HARNESS_AUTHOR, Candidate, Device, Proposal, Score
from autoresearch.git import Repository, parse_trailers
from autoresearch.lab import constants
from autoresearch.loop import research
from autoresearch.measure.messages import RunLost, RunResult
from autoresearch.measure.workbench import RunProgress
from autoresearch.measure.worker import Worker
from autoresearch.policies.base import OverridePolicy
from autoresearch.pools.inline import InlinePool
from autoresearch.pools.local import LocalPool
from autoresearch.records import queries
from autoresearch.records.ledger import Ledger
from autoresearch.run import dispatcher, session
from autoresearch.run.seeds import compute_seed
from autoresearch.sandbox.process import StopFlag
from tests import nights
from tests.nights import (
    command,
    guests_of,
    line_lab,
    rate,
    run,
    script,
    start,
    wait_for,
)


@pytest.fixture
def lab(tmp_path):
    return line_lab(tmp_path / "lab")


def git(lab, *words):
    return Repository(lab.folder).run_git(*words)


def train_py(lab, old, new):
    source = lab.read_file("train.py")
    assert old in source
    return source.replace(old, new)


def ledger_of(lab):
    return Ledger(lab.ledger_path)


# -- the ordinary night ----------------------------------------------------------------


def test_a_night_measures_the_baseline_first_and_keeps_what_is_better(tmp_path):
    lab = line_lab(tmp_path / "greedy", 'budget_tokens = 2000\npolicy = "greedy"')
    rows = run(lab, rate(0.02), rate(0.0001), rate(0.05))

    assert [row.decision for row in rows] == ["keep", "keep", "discard", "keep"]
    assert rows[0].title == "baseline"
    assert [row.number for row in rows] == [0, 1, 2, 3]
    assert rows[3].against == 1
    assert rows[3].delta == pytest.approx(rows[3].value - rows[1].value)
    assert "LEARNING_RATE = 0.05" in lab.read_file("train.py")


def test_git_log_reads_like_a_lab_notebook(lab):
    run(lab, rate(0.02, "LEARNING_RATE 0.01 -> 0.02"), rate(0.0001, "slower"))

    titles = git(lab, "log", "--format=%s").splitlines()
    assert titles[0].startswith("[AutoResearch] LEARNING_RATE 0.01 -> 0.02 | Δmse=-0.0")
    assert titles[1].startswith("[AutoResearch] baseline | mse=0.0")
    assert titles[2] == "A new lab"
    assert git(lab, "status", "--porcelain") == ""


def test_every_verdict_is_one_commit_that_changes_only_train_py(lab):
    rows = run(lab, rate(0.02), rate(0.0001), {"title": "boom", "source": "1/0\n"})

    for row in rows[1:]:
        assert git(lab, "rev-parse", f"autoresearch/{row.number}") == row.commit
        changed = git(lab, "diff", "--name-only", f"{row.commit}^", row.commit)
        assert changed == "train.py"
        assert git(lab, "rev-parse", f"{row.commit}:train.py") == row.blob
    assert git(lab, "log", "-1", "--format=%an|%cn", rows[1].commit) == (
        "script:script.json|AutoResearch"
    )


def test_results_tsv_begins_with_the_five_columns_and_a_failure_is_blank(lab):
    rows = run(lab, rate(0.02), {"title": "boom", "source": "1/0\n"}, rate(0.02))

    with lab.results_path.open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert list(table[0])[:5] == ["commit", "mse", "memory_gb", "status", "description"]
    assert [line["status"] for line in table] == ["keep", "keep", "crash"]
    assert table[2]["mse"] == ""
    assert table[2]["kind"] == "crash"
    assert rows[3].kind == "refused"  # nothing changed: in the ledger only
    assert len(table) == len(rows) - 1


def test_two_nights_with_one_seed_agree_to_the_last_digit(tmp_path):
    first, second = line_lab(tmp_path / "a"), line_lab(tmp_path / "b")

    values = [[row.values for row in run(lab, rate(0.02))] for lab in (first, second)]

    assert values[0] == values[1]


def test_a_second_night_goes_on_without_a_second_baseline(lab):
    run(lab, rate(0.02))

    rows = run(lab, rate(0.05))

    assert [row.number for row in rows] == [2]
    assert rows[0].against == 1


def test_two_devices_work_at_the_same_time_and_every_verdict_is_recorded_once(lab):
    proposals = [rate(0.0001 * n) for n in range(1, 9)]
    asked = session.SessionOptions(proposers=(script(lab, *proposals),), seed=1)
    with session.open_session(lab, asked, StopFlag()) as (opened, now):
        busy = []
        now.listener = lambda *_: busy.append(len(now._runs))
        local = LocalPool(Worker(opened.workbench), [Device(), Device()])
        rows = []
        for row in research(replace(opened, pool=local)):
            now.finish_experiment(row.number)
            rows.append(row)

    assert sorted(row.number for row in rows) == list(range(9))
    assert max(busy) == 2
    assert {row.kind for row in rows} == {None}
    assert guests_of(lab) == []


def test_a_baseline_runs_first_alone_and_then_on_several_devices(lab):
    asked = session.SessionOptions(proposers=(script(lab),), seed=1, experiments=0)
    with session.open_session(lab, asked, StopFlag()) as (opened, now):
        at_once = []
        folders = lab.state_folder / "runs"
        shown = []

        def look(*_):
            at_once.append({path.name for path in folders.glob("0-*")})
            shown.append(len(now._runs))

        now.listener = look
        local = LocalPool(Worker(opened.workbench), [Device(), Device(), Device()])
        rows = list(research(replace(opened, pool=local)))
        seeds = [compute_seed(opened.seed, run) for run in range(3)]

    assert at_once[0] == {f"0-{seeds[0]}"}
    assert {f"0-{seed}" for seed in seeds[1:]} in at_once  # three runs in all
    assert (shown[0], max(shown)) == (1, 2)  # and so says status
    assert [row.runs for row in rows] == [3]
    ledger = ledger_of(lab)
    assert queries.load_used_seeds(ledger, 0) == set(seeds)
    assert [run.holdout is None for run in ledger.load_run_records(0)] == [False] * 3


def test_what_finished_with_one_experiment_is_not_counted_with_the_next(tmp_path):
    now = session.LiveStatus(tmp_path / "now.json")
    champion = Candidate(Proposal(0, "champion", "", "", HARNESS_AUTHOR), "b")

    def runs(count):
        for _ in range(count):
            now(champion, RunProgress("starting", 0.0, 0.0))
            now(champion, RunProgress("scoring", 0.0, 1.0))
        return [run["finished"] for run in now._runs.values()]

    assert runs(2) == [1]
    now.finish_experiment(5)

    assert runs(1) == [0]


def test_a_baseline_that_fails_on_one_device_only_is_no_baseline(tmp_path):
    lab = line_lab(tmp_path / "lab")
    begin = "run = prepare.begin(build_model)"
    unlucky = f"{begin}\nassert run.seed != {compute_seed(1, 2)}"
    lab.file_path("train.py").write_text(train_py(lab, begin, unlucky))
    asked = session.SessionOptions(proposers=(script(lab),), seed=1)
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        slots = tuple(Device(index=index) for index in range(3))
        with pytest.raises(LabError) as told:
            list(
                research(
                    replace(
                        opened,
                        pool=LocalPool(Worker(opened.workbench), slots),
                        devices=slots,
                    )
                )
            )

    said = str(told.value)
    assert re.search(r"on GPU [012] \(on a further seed; before: 0\.\d+, 0\.\d+", said)
    assert "leave a GPU out by CUDA_VISIBLE_DEVICES" in said

    assert [row.decision for row in ledger_of(lab).load_rows()] == ["failed"]


def test_as_many_experiments_as_asked_for_and_no_more(lab):
    rows = run(lab, rate(0.02), rate(0.03), rate(0.04), experiments=2)

    assert len(rows) == 3  # the baseline is not counted


def test_the_optimiser_runs_a_night_by_itself(lab):
    done = command(lab, "run", "--proposer", "search", "--experiments", "4", "--json")

    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [verdict["experiment"] for verdict in verdicts] == [0, 1, 2, 3, 4]
    assert {verdict["proposed_by"] for verdict in verdicts[1:]} == {"search"}


# -- devices ---------------------------------------------------------------------------


class UnreliablePool:
    """A pool whose machine goes away at the end of some runs of experiment 1."""

    def __init__(self, pool, losses, seconds_away=0.0):
        self._pool, self._losses = pool, losses
        self._seconds_away, self._back_at = seconds_away, 0.0
        self.lost = []

    def __getattr__(self, name):
        return getattr(self._pool, name)

    @property
    def free_count(self):
        return self._pool.free_count if time.monotonic() >= self._back_at else 0

    def next_result(self):
        ended = self._pool.next_result()
        if not isinstance(ended, RunResult) or len(self.lost) == self._losses:
            return ended
        if ended.request.candidate.proposal.number != 1:
            return ended
        if isinstance(ended.outcome, Score):
            self._pool.release(ended.outcome)
        self.lost.append(ended.request)
        self._back_at = time.monotonic() + self._seconds_away
        return RunLost(ended.request, "unplugged")


def open_lab(lab, *proposals, **options):
    asked = session.SessionOptions(
        proposers=(script(lab, *proposals),), seed=1, **options
    )
    return session.open_session(lab, asked, StopFlag())


@pytest.mark.parametrize("seconds_away", [0.0, 0.7])
def test_a_run_whose_machine_went_away_is_made_again_and_decided_once(
    lab, monkeypatch, seconds_away
):
    monkeypatch.setattr(dispatcher, "NO_MACHINE_SECONDS", 0.1)
    with open_lab(lab, rate(0.0001)) as (opened, _):
        pool = UnreliablePool(opened.pool, 1, seconds_away)
        rows = list(research(replace(opened, pool=pool)))

    assert [row.number for row in rows] == [0, 1]
    assert rows[1].kind is None
    (lost,) = pool.lost
    runs = ledger_of(lab).load_run_records(1)
    assert [run.seed for run in runs].count(lost.seed) == 1
    assert len(runs) == rows[1].runs


def test_a_run_whose_machines_all_go_away_ends_the_night_with_one_sentence(lab):
    with open_lab(lab, rate(0.02)) as (opened, _):
        pool = UnreliablePool(opened.pool, 99)
        with pytest.raises(LabError, match="3 machines went away during one run"):
            list(research(replace(opened, pool=pool)))

    assert len(pool.lost) == dispatcher.MAX_ATTEMPTS
    assert [p.number for p in ledger_of(lab).load_open_proposals()] == [1]


class LoggedPool:
    """Writes down which experiment a run is of, when it is sent and received."""

    def __init__(self, pool, log):
        self._pool, self._log = pool, log

    def __getattr__(self, name):
        return getattr(self._pool, name)

    def submit(self, request):
        self._log.append(("sent", request.candidate.proposal.number))
        self._pool.submit(request)

    def next_result(self):
        ended = self._pool.next_result()
        if ended is not None:
            number = ended.request.candidate.proposal.number
            self._log.append(("received", number))
        return ended


def test_the_runs_of_a_proof_go_to_all_free_devices_at_one_time(lab):
    log = []
    with open_lab(lab, rate(0.02)) as (opened, _):
        local = LocalPool(Worker(opened.workbench), [Device()] * 3)
        policy = OverridePolicy(opened.policy, MinimumRunsRule(4))
        changed = replace(opened, pool=LoggedPool(local, log), policy=policy)
        rows = list(research(changed))

    proof = log[log.index(("sent", 1)) :]
    assert proof[:2] == [("sent", 1), ("received", 1)]  # the first run goes alone
    assert [what for what, _ in proof[2:5]] == ["sent"] * 3
    assert rows[1].runs >= 4


class EagerPool:
    """Two devices that have made a run as soon as it is sent."""

    capacity = 2

    def __init__(self, worker):
        self._worker, self._ended = worker, []
        self.release = worker.release

    @property
    def free_count(self):
        return self.capacity - len(self._ended)

    @property
    def has_result(self):
        return bool(self._ended)

    def submit(self, request):
        self._ended.append(self._worker(request, Device()))

    def next_result(self):
        return self._ended.pop(0) if self._ended else None


class LoggedProposer:
    def __init__(self, proposer, log):
        self._proposer, self._log = proposer, log

    def __getattr__(self, name):
        return getattr(self._proposer, name)

    def propose(self, ledger):
        self._log.append(("asked", None))
        return self._proposer.propose(ledger)


def test_results_are_received_before_anything_new_is_proposed(lab):
    log = []
    with open_lab(lab, rate(0.0001), rate(0.0002), rate(0.0003)) as (opened, _):
        changed = replace(
            opened,
            pool=LoggedPool(EagerPool(Worker(opened.workbench)), log),
            proposer=LoggedProposer(opened.proposer, log),
        )
        rows = list(research(changed))

    assert [row.number for row in rows] == [0, 1, 2, 3]
    under_way = 0
    for what, _ in log:
        under_way += {"sent": 1, "received": -1, "asked": 0}[what]
        assert what != "asked" or under_way == 0
    assert log.count(("asked", None)) >= 3


class PicklingPool:
    """A pool behind a wire: all that passes is pickled, as for another machine."""

    def __init__(self, pool):
        self._pool = pool

    def __getattr__(self, name):
        return getattr(self._pool, name)

    def submit(self, request):
        self._pool.submit(pickle.loads(pickle.dumps(request)))

    def next_result(self):
        return pickle.loads(pickle.dumps(self._pool.next_result()))


def test_requests_and_results_survive_pickle(tmp_path):
    proposals = (rate(0.02), rate(0.0001), {"title": "boom", "source": "1/0\n"})
    plain = run(line_lab(tmp_path / "plain"), *proposals)

    with open_lab(line_lab(tmp_path / "wire"), *proposals) as (opened, _):
        pool = PicklingPool(InlinePool(Worker(opened.workbench), [Device()]))
        rows = list(research(replace(opened, pool=pool)))

    assert [(row.number, row.decision, row.kind) for row in rows] == [
        (row.number, row.decision, row.kind) for row in plain
    ]
    assert [row.values for row in rows] == [row.values for row in plain]


def test_when_the_loop_ends_for_any_reason_no_run_continues(lab):
    endless = slow(lab)
    log = []
    with open_lab(lab, {"title": "sleeps", "source": endless}) as (opened, _):
        local = LocalPool(Worker(opened.workbench), [Device(), Device()])

        class FailingProposer:
            exhausted = False

            def propose(self, ledger):
                if ("sent", 1) in log:
                    raise LabError("the disk is full")
                return opened.proposer.propose(ledger)

        pool = LoggedPool(local, log)
        with pytest.raises(LabError, match="the disk is full"):
            list(research(replace(opened, pool=pool, proposer=FailingProposer())))
        assert local.free_count == 2  # its child was ended, not waited for

    assert guests_of(lab) == []


# -- proposals that do not run ---------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: "def (", "not Python"),
        (lambda s: s, "nothing"),
        (lambda s: s + "\n# only a comment\n", "nothing"),
        (lambda s: s + "x = 1\n" * 200, "lines"),
        (
            lambda s: constants.replace_constants(
                s, {"LEARNING_RATE": 0.02, "BATCH": 8}
            ),
            "constants",
        ),
        (
            lambda s: s.replace("import prepare", "random.seed(7)\nimport prepare"),
            "seed",
        ),
    ],
)
def test_program_md_refuses_before_anything_is_trained(lab, change, why):
    source = change(lab.read_file("train.py"))

    rows = run(lab, {"title": "no", "source": source})

    assert rows[1].kind == "refused"
    assert why in rows[1].why
    assert rows[1].runs == 0
    assert rows[1].commit is None


def test_a_repeat_is_refused_and_names_the_experiment_it_repeats(lab):
    rows = run(lab, rate(0.0001), {**rate(0.0001), "title": "the same again"})

    assert rows[2].kind == "duplicate"
    assert "experiment 1" in rows[2].why


# -- runs that fail --------------------------------------------------------------------

BUDGET = "budget_seconds = 1\nbudget_tolerance_seconds = 0.5"
FAILING = {
    "crash": ("points = json", "raise SystemExit('broken pipe dream')\npoints = json"),
    "no score": ("run.submit(model, batch=BATCH)", "pass"),
    "diverged": ("run.submit(", "model.weight = float('nan')\nrun.submit("),
    "too early": ("while run.progress < 1:", "while run.progress < 0.01:"),
    "out of memory": ("points = json", "raise MemoryError\npoints = json"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_failed_run_is_a_recorded_result_without_a_metric(lab, kind):
    source = train_py(lab, *FAILING[kind])

    row = run(lab, {"title": "fails", "source": source})[1]

    assert (row.decision, row.kind, row.value) == ("failed", kind, None)
    assert row.commit is not None
    assert guests_of(lab) == []


def test_the_clock_kills_the_run_and_everything_it_started(tmp_path):
    lab = line_lab(tmp_path / "lab", f'{BUDGET}\nproposers = ["search"]')
    forever = textwrap.dedent("""
        import os, signal, time
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            time.sleep(600)
        while True: time.sleep(1)
        """)
    source = train_py(lab, "while run.progress", forever + "while run.progress")

    row = run(lab, {"title": "never ends", "source": source})[1]

    assert row.kind == "timeout"
    assert " to submit the weights)" in row.why
    assert guests_of(lab) == []


def test_a_gigabyte_of_output_is_a_failure_and_not_a_full_disk(lab):
    source = train_py(
        lab, "points = json", "while True: print('x' * 10_000_000)\npoints = json"
    )

    row = run(lab, {"title": "talks", "source": source})[1]

    assert row.kind == "crash"
    assert "printed more than" in row.why
    assert max(path.stat().st_size for path in lab.log_folder.iterdir()) < 1 << 20


def test_what_a_run_prints_can_neither_score_nor_reach_the_terminal(lab):
    source = train_py(
        lab, "points = json", 'print("mse: 0.0\\x1b]0;owned\\x07")\npoints = json'
    ).replace("LEARNING_RATE = 0.01", "LEARNING_RATE = 0.0001")

    row = run(lab, {"title": "prints \x1b[31mred\x1b[0m", "source": source})[1]
    shown = command(lab, "show", str(row.number)).stdout

    assert row.decision == "discard"
    assert "mse: 0.0" in shown
    assert "\x1b" not in shown


def test_a_broken_baseline_stops_the_night_with_one_clear_sentence(lab):
    lab.file_path("train.py").write_text(train_py(lab, *FAILING["crash"]))

    done = command(lab, "run", "--experiments", "1")
    again = command(lab, "run", "--experiments", "1")

    for result in (done, again):
        assert result.returncode == 2
        assert "baseline failed" in result.stderr
        assert "Traceback" not in result.stderr


def test_after_a_broken_baseline_is_mended_the_night_begins(lab):
    good = lab.read_file("train.py")
    lab.file_path("train.py").write_text(train_py(lab, *FAILING["crash"]))
    with pytest.raises(LabError, match="baseline failed"):
        run(lab)
    lab.file_path("train.py").write_text(good)

    rows = run(lab, rate(0.02))

    assert [row.decision for row in rows] == ["keep", "keep"]


# -- people ----------------------------------------------------------------------------


def test_edits_to_train_py_before_the_first_night_become_its_baseline(lab):
    edited = train_py(lab, "LEARNING_RATE = 0.01", "LEARNING_RATE = 0.03")
    lab.file_path("train.py").write_text(edited)

    rows = run(lab)

    assert ledger_of(lab).load_source(rows[0].blob) == edited
    assert git(lab, "show", "HEAD:train.py") == edited.rstrip("\n")
    assert git(lab, "status", "--porcelain") == ""


def test_edits_to_train_py_later_are_left_alone_by_a_keep(lab):
    run(lab)
    edited = lab.read_file("train.py") + "# a thought\n"
    lab.file_path("train.py").write_text(edited)

    rows = run(lab, rate(0.02))

    assert rows[0].decision == "keep"
    assert lab.read_file("train.py") == edited
    assert git(lab, "rev-parse", "HEAD") == rows[0].commit


def test_edits_to_train_py_are_offered_as_a_try(lab):
    run(lab)
    lab.file_path("train.py").write_text(lab.read_file("train.py") + "# a thought\n")

    said = command(lab, "run", "--proposer", script(lab)).stdout

    assert 'autoresearch try train.py "what is new"' in said


def test_a_full_disk_stops_the_night_before_it_loses_anything(lab, monkeypatch):
    monkeypatch.setattr("autoresearch.lab.folder.FREE_BYTES_NEEDED", 1 << 60)

    with pytest.raises(LabError, match="make space"):
        run(lab)


def test_a_commit_of_the_human_in_mid_night_is_built_on(lab):
    run(lab)
    lab.file_path("program.md").write_text(
        lab.read_file("program.md") + "\nTry bolder rates.\n"
    )
    git(lab, "-c", "user.name=h", "-c", "user.email=h@h", "commit", "-qam", "bolder")

    rows = run(lab, rate(0.02))

    titles = git(lab, "log", "--format=%s").splitlines()
    assert titles[0].startswith("[AutoResearch] rate 0.02")
    assert titles[1] == "bolder"
    assert "bolder rates" in lab.read_file("program.md")
    assert git(lab, "diff", "--name-only", "HEAD^", "HEAD") == "train.py"
    assert rows[0].commit == git(lab, "rev-parse", "HEAD")


def test_try_queues_a_file_and_the_next_night_takes_it_first(lab):
    run(lab)
    mine = lab.state_folder / "mine.py"
    mine.write_text(train_py(lab, "LEARNING_RATE = 0.01", "LEARNING_RATE = 0.02"))

    queued = command(lab, "try", str(mine), "my rate", "--by", "ada", "--json")
    rows = run(lab)

    assert json.loads(queued.stdout)["experiment"] == 1
    assert [(row.number, row.author) for row in rows] == [(1, "human:ada")]


def test_try_waits_for_a_night_in_progress_and_its_exit_code_is_the_verdict(lab):
    mine = lab.state_folder / "mine.py"
    mine.write_text(train_py(lab, "LEARNING_RATE = 0.01", "LEARNING_RATE = 0.0001"))
    running = start(lab, "run", "--proposer", "mailbox")
    wait_for(
        lambda: lab.results_path.exists() and "baseline" in lab.results_path.read_text()
    )

    done = command(lab, "try", str(mine), "slow", "--wait", "30")
    stopped = command(lab, "stop")
    running.communicate(timeout=30)

    assert done.returncode == 4, done.stderr
    assert "discard" in done.stdout
    assert stopped.returncode == 0
    assert running.returncode == 0


def test_program_md_is_read_afresh_and_a_broken_one_never_stops_a_night(lab):
    run(lab)
    source = train_py(lab, "import json\n", "import json\n" + "X = 1\n" * 90)
    lab.file_path("program.md").write_text(
        "```toml\nbudget_tokens = 2000\nmax_changed_lines = 100\n```\n"
    )
    allowed = run(lab, {"title": "long", "source": source})

    running = start(lab, "run", "--proposer", "mailbox")
    wait_for(lambda: (lab.state_folder / "run.log").exists())
    lab.file_path("program.md").write_text("```toml\nmax_changed_lnes = 1\n```\n")
    wait_for(
        lambda: "max_changed_lnes" in (lab.state_folder / "run.log").read_text(),
        what="the notice about program.md",
    )
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=30)

    assert allowed[0].kind is None
    assert running.returncode == 0
    assert "'max_changed_lines'" in said
    assert "stays in force" in said


# -- endings ---------------------------------------------------------------------------


def slow(lab, seconds=600):
    return train_py(
        lab, "points = json", f"import time; time.sleep({seconds})\npoints = json"
    )


def test_one_ctrl_c_waits_for_the_run_and_a_second_loses_nothing(lab):
    run(lab)
    mine = lab.state_folder / "slow.py"
    mine.write_text(slow(lab))
    command(lab, "try", str(mine), "sleeps")
    running = start(lab, "run", "--proposer", "mailbox")
    wait_for(lambda: nights.trains(lab, "sleeps"), what="the run")

    running.send_signal(signal.SIGINT)
    with pytest.raises(Exception, match="timed out"):
        running.wait(1)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=20)

    assert running.returncode == 0
    assert guests_of(lab) == []
    assert [p.title for p in ledger_of(lab).load_open_proposals()] == ["sleeps"]


def test_a_closed_terminal_ends_nothing(lab):
    running = start(lab, "run", "--proposer", "mailbox")
    wait_for(
        lambda: lab.results_path.exists() and "baseline" in lab.results_path.read_text()
    )

    running.send_signal(signal.SIGHUP)
    running.stdout.close()
    mine = lab.state_folder / "mine.py"
    mine.write_text(train_py(lab, "LEARNING_RATE = 0.01", "LEARNING_RATE = 0.02"))
    done = command(lab, "try", str(mine), "after", "--wait", "30")
    command(lab, "stop")
    running.wait(20)

    assert done.returncode == 0
    assert running.returncode == 0


def test_stop_while_idle_ends_a_night_that_waits_for_letters(lab):
    running = start(lab, "run", "--proposer", "mailbox")
    wait_for(
        lambda: lab.results_path.exists() and "baseline" in lab.results_path.read_text()
    )

    command(lab, "stop")
    running.communicate(timeout=20)

    assert running.returncode == 0
    assert command(lab, "stop").returncode == 3


def test_an_interrupted_experiment_is_taken_up_again_under_its_number(lab):
    run(lab)
    stop = StopFlag()
    stop.soon = stop.now = True  # as if Ctrl-C came twice before the first run
    mine = lab.state_folder / "mine.py"
    mine.write_text(train_py(lab, "LEARNING_RATE = 0.01", "LEARNING_RATE = 0.02"))
    command(lab, "try", str(mine), "mine")

    nothing = run(lab, stop=stop)
    rows = run(lab)

    assert nothing == []
    assert [(row.number, row.title) for row in rows] == [(1, "mine")]


# -- series and clones -----------------------------------------------------------------


def test_another_budget_is_a_new_series_and_the_champion_is_measured_again_first(lab):
    run(lab, rate(0.02))
    text = lab.read_file("program.md").replace(
        "budget_tokens = 2000", "budget_tokens = 4000"
    )
    lab.file_path("program.md").write_text(text)

    rows = run(lab, rate(0.05))

    assert rows[0].title == "champion again"
    assert "2000 tokens -> 4000 tokens" in rows[0].reason
    assert "LEARNING_RATE = 0.02" in ledger_of(lab).load_source(rows[0].blob)
    assert rows[1].against == rows[0].number


def test_what_was_measured_is_a_duplicate_whatever_it_is_a_change_of(tmp_path):
    lab = line_lab(tmp_path / "greedy", 'budget_tokens = 2000\npolicy = "greedy"')

    rows = run(lab, rate(0.02), {"title": "undo", "set": {"LEARNING_RATE": 0.01}})

    assert rows[1].decision == "keep"
    assert rows[2].kind == "duplicate"
    assert "the same code as experiment 0" in rows[2].why


def test_the_ledger_is_rebuilt_from_a_clone(lab, tmp_path):
    rows = run(
        lab,
        rate(0.02),
        rate(0.0001),
        {"title": "boom", "source": "1/0\n", "reason": "why not"},
    )
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", lab.folder, clone], check=True)
    refs = "refs/autoresearch/*:refs/autoresearch/*"
    subprocess.run(["git", "-C", clone, "fetch", "-q", "origin", refs], check=True)

    done = command(clone, "rebuild")
    again = [
        json.loads(line) for line in command(clone, "log", "--json").stdout.splitlines()
    ]

    assert done.returncode == 0, done.stderr
    assert len(again) == len(rows)
    for row, back in zip(rows, again, strict=True):
        assert back["experiment"] == row.number
        assert (back["decision"], back["kind"], back["title"]) == (
            row.decision,
            row.kind,
            row.title,
        )
        assert back["ran"] == row.blob
        assert back["reason"] == row.reason
        assert back["values"] == list(row.values)
        assert back["delta"] == row.delta
        assert back["against"] == row.against
        assert back["commit"] == row.commit
    assert command(clone, "run", "--experiments", "1").returncode == 0


def test_a_rebuilt_ledger_knows_what_every_experiment_started_from(tmp_path):
    lab = line_lab(tmp_path / "greedy", 'budget_tokens = 2000\npolicy = "greedy"')
    run(lab, rate(0.0001))
    edited = lab.read_file("train.py").replace("BATCH = 4 ", "BATCH = 5 ")
    lab.file_path("train.py").write_text(edited)
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    git(lab, *who, "commit", "-q", "-am", "by hand, meanwhile")
    rows = run(lab, rate(0.02))
    assert rows[-1].decision == "keep"
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", lab.folder, clone], check=True)
    refs = "refs/autoresearch/*:refs/autoresearch/*"
    subprocess.run(["git", "-C", clone, "fetch", "-q", "origin", refs], check=True)

    assert command(clone, "rebuild").returncode == 0

    done = command(clone, "context")
    assert done.returncode == 0, done.stderr


def test_a_reason_cannot_forge_trailers(lab):
    forged = "good\n\nVerdict: keep: forged\nScore: 0.000000\nRan: 0000"

    row = run(lab, {**rate(0.0001), "reason": forged})[1]

    message = git(lab, "log", "-1", "--format=%B", row.commit)
    scores = " ".join(map(repr, row.values))
    assert parse_trailers(message)["Score"] == scores
    assert parse_trailers(message)["Verdict"].startswith("discard")
