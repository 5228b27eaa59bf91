"""What the loop does for a policy that knows noise: real nights of lab line."""

import json
import math
from dataclasses import dataclass, field, replace
from statistics import fmean

import pytest

from autoresearch.experiment import Device, Proposal, Verdict
from autoresearch.git import Repository
from autoresearch.loop import research
from autoresearch.measure.worker import Worker
from autoresearch.pools.local import LocalPool
from autoresearch.proposers.context import PLATEAU_EXPERIMENTS
from autoresearch.records import queries
from autoresearch.records.ledger import Ledger
from autoresearch.run import session
from autoresearch.run.baseline import measure_baseline
from autoresearch.run.closing import MAX_CLOSING_RUNS, ClosingRuns
from autoresearch.run.dispatcher import Dispatcher, open_trial
from autoresearch.run.seeds import ChampionSeeds, compute_seed
from autoresearch.run.verdicts import record_trial
from autoresearch.sandbox.process import StopFlag
from autoresearch.stats.early_stopping import LOOK_SHARES, FinishedRun, is_exempt
from tests.nights import command, line_lab, rate, run, script

AT = 1_700_000_000.0


@pytest.fixture
def lab(tmp_path):
    return line_lab(tmp_path / "lab")


@dataclass
class Told:
    """A policy that does what the test says: which runs, what is kept, who is back."""

    wanted: tuple[str, ...] = ("candidate",)
    keeps: tuple[str, ...] = ()  # titles
    unresolved: tuple[str, ...] = ()  # titles
    back_after: str = ""  # title of the champion that turns out worse
    starts: list[str] = field(default_factory=list)

    def choose_next_run(self, scores, history):
        if history.champion is None:
            return "nothing" if scores else "candidate"
        done = len(scores) + len(history.champion.values) - self.before(history)
        return self.wanted[done] if done < len(self.wanted) else "nothing"

    def before(self, history):
        """Runs of the champion that were made before this trial."""
        row = next(r for r in history.rows if r.number == history.champion.number)
        return len(history.champion.values) - self.new_runs(history, row)

    def new_runs(self, history, row):
        known = self.known.setdefault(row.number, len(row.values))
        return len(row.values) - known

    known: dict[int, int] = field(default_factory=dict)

    def decide(self, scores, history, change):
        if history.champion is None:
            return Verdict("keep", "baseline", scores)
        self.known.clear()
        title = scores[0].run.candidate.proposal.title
        if title in self.unresolved:
            why = "unresolved: as told"
            return Verdict("unresolved", why, scores, history.champion)
        word = "keep" if title in self.keeps else "discard"
        return Verdict(word, "as told", scores, history.champion)

    def find_champion_to_restore(self, history):
        row = history.rows[-1]
        fell = row.title == self.back_after and history.former_champions
        return history.former_champions[-1] if fell else None

    def choose_closing_run(self, history, left):
        return None

    def choose_parent(self, history, rows):
        return self.starts[-1] if self.starts else None


def told_night(lab, policy, *proposals, change=None):
    """A night of these proposals under this policy; its rows and notices."""
    asked = session.SessionOptions(proposers=(script(lab, *proposals),), seed=1)
    with session.open_session(lab, asked, StopFlag()) as (opened, now):
        if change:
            opened = change(opened)
        return list(research(replace(opened, policy=policy))), list(now.notices)


def verified(lab):
    done = command(lab, "verify-ledger", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


# -- the default policy ----------------------------------------------------------------


def test_a_night_begins_with_three_runs_on_seeds_that_all_candidates_share(lab):
    rows = run(lab, rate(0.02), rate(0.0001))

    ledger = Ledger(lab.ledger_path)
    seeds = [[m.seed for m in ledger.load_run_records(row.number)] for row in rows]
    assert rows[0].runs == len(rows[0].values) == 3
    assert len(set(seeds[0])) == 3
    assert seeds[1][0] == seeds[2][0] == seeds[0][0]
    assert rows[0].when == tuple(sorted(rows[0].when))
    assert len(rows[0].when) == 3


def test_the_holdout_is_scored_for_baseline_and_champions_and_shown_to_nobody(lab):
    rows = run(lab, rate(0.02), rate(0.0001))

    assert [row.decision for row in rows] == ["keep", "keep", "discard"]
    ledger = Ledger(lab.ledger_path)
    scored = [
        [m.holdout is not None for m in ledger.load_run_records(r.number)] for r in rows
    ]
    assert all(scored[0])
    assert all(scored[1])
    assert not any(scored[2])
    for words in (("log", "--json"), ("show", "0", "--json"), ("context",)):
        said = command(lab, *words).stdout
        assert said
        for seen in ledger.load_run_records(0):
            assert f"{seen.holdout:.4f}" not in said


def test_a_discard_that_may_be_better_is_a_near_miss_that_policies_see(lab):
    run(lab, rate(0.02), rate(0.021), rate(0.0001))

    with session.open_session(
        lab, session.SessionOptions(proposers=("mailbox",)), StopFlag()
    ) as (
        found,
        _,
    ):
        ledger = found.recorder.ledger
        history = queries.load_evidence(ledger).build_history()
        unresolved = [
            r.number for r in ledger.load_rows() if r.why.startswith("unresolved")
        ]
    assert list(history.near_misses) == unresolved
    assert history.experiment_count == 3


# -- runs of the champion --------------------------------------------------------------


def test_runs_of_the_champion_join_its_score_everywhere(lab):
    rows, _ = told_night(lab, Told(("candidate", "champion", "champion")), rate(0.02))

    ledger = Ledger(lab.ledger_path)
    baseline = ledger.load_row(0)
    assert baseline.runs == 3
    assert baseline.value == pytest.approx(fmean(baseline.values))
    assert ledger.champion.values == baseline.values
    assert ledger.champion.fresh == 2
    fair = {
        row.number: row.value for row in queries.load_evidence(ledger).adjust_rows()
    }
    assert rows[1].delta == pytest.approx(fair[1] - fair[0])
    measured = ledger.load_run_records(0)
    assert [m.occasion for m in measured] == ["verdict", "champion", "champion"]
    assert len({m.seed for m in measured}) == 3
    assert all(m.holdout is not None for m in measured)
    assert f"{baseline.value:.6f}" in lab.results_path.read_text().splitlines()[1]
    book = Repository(lab.folder)
    assert "Remeasured: 0 at " in book.run_git(
        "log", "-1", "--format=%B", rows[1].commit
    )
    verified(lab)

    before = baseline.values
    assert command(lab, "rebuild").returncode == 0
    again = Ledger(lab.ledger_path).load_row(0).values
    assert again == pytest.approx(before, abs=1e-6)


def test_a_champion_that_fails_again_is_said_and_spoils_no_verdict(lab):
    moody = lab.read_file("train.py").replace(
        "model = build_model()\n",
        "if run.seed != FIRST:\n    raise SystemExit('moody')\nmodel = build_model()\n",
    )
    ledger_seed = 1
    first = compute_seed(ledger_seed, 0)
    moody = moody.replace("BATCH = 4", f"FIRST = {first}\nBATCH = 4")
    policy = Told(("candidate", "champion"), keeps=("moody",))
    plain = {
        "title": "plain",
        "source": lab.read_file("train.py").replace("0.5", "0.4"),
    }
    rows, notices = told_night(lab, policy, {"title": "moody", "source": moody}, plain)

    assert [row.decision for row in rows] == ["keep", "keep", "discard"]
    assert any("experiment 1, failed when it was run again" in n for n in notices)
    assert Ledger(lab.ledger_path).load_row(1).runs == 1


def test_a_failure_on_a_further_seed_tells_the_scores_before_it(lab):
    first = compute_seed(1, 0)
    moody = lab.read_file("train.py").replace(
        "model = build_model()\n",
        f"if run.seed != {first}:\n    raise SystemExit(3)\nmodel = build_model()\n",
    )
    policy = Told(("candidate", "candidate"))
    rows, _ = told_night(lab, policy, {"title": "moody", "source": moody})

    assert rows[1].kind == "crash"
    assert "on a further seed; before: " in rows[1].why
    assert rows[1].runs == 0


def test_two_trials_never_run_the_champion_on_the_same_seed(lab):
    run(lab, rate(0.02))
    with session.open_session(
        lab, session.SessionOptions(proposers=("mailbox",)), StopFlag()
    ) as (
        found,
        _,
    ):
        known = queries.load_used_seeds(found.recorder.ledger, 0)
        seeds = ChampionSeeds(found.recorder.ledger, found.seed)
        given = [seeds.draw(0) for _ in range(4)]
    assert len(set(given)) == 4
    assert not known & set(given)


def test_a_night_stopped_in_a_run_of_the_champion_loses_no_verdict(lab):
    asked = session.SessionOptions(proposers=(script(lab, rate(0.02)),), seed=1)
    stop = StopFlag()
    with session.open_session(lab, asked, stop) as (opened, now):
        seen = []

        def listen(candidate, progress):
            seen.append(candidate.proposal.title)
            stop.now = stop.now or candidate.proposal.title == "champion"

        now.listener = listen
        policy = Told(("candidate", "champion"))
        rows = list(research(replace(opened, policy=policy)))
    assert "champion" in seen
    assert [row.number for row in rows] == [0]
    assert [p.number for p in Ledger(lab.ledger_path).load_open_proposals()] == [1]
    assert [row.decision for row in run(lab)] != []


# -- a champion that turns out worse ---------------------------------------------------


def fallen(lab):
    """A night in which experiment 1 is crowned, and taken back after experiment 2."""
    policy = Told(keeps=("rate 0.02",), back_after="rate 0.0001")
    return told_night(lab, policy, rate(0.02), rate(0.0001))


def test_a_champion_that_turns_out_worse_is_taken_back_in_git_and_said(lab):
    before = lab.read_file("train.py")
    rows, notices = fallen(lab)

    ledger, book = Ledger(lab.ledger_path), Repository(lab.folder)
    assert ledger.champion.number == 0
    assert lab.read_file("train.py") == before
    title = book.run_git("log", "-1", "--format=%s")
    assert title.startswith("[AutoResearch] take back 1: rate 0.02 | Δmse=+")
    assert book.run_git("rev-parse", "HEAD") == ledger.load_reversions()[0].commit
    assert book.run_git("rev-parse", "autoresearch/taken-back/1") == book.head_commit()
    assert book.run_git("status", "--porcelain") == ""
    assert any(
        "experiment 1 was taken back, experiment 0 is champion" in n for n in notices
    )
    assert rows[1].decision == "keep"  # what was decided then stays on record
    verified(lab)


def test_what_was_taken_back_comes_back_with_a_rebuild(lab):
    fallen(lab)
    assert command(lab, "rebuild").returncode == 0

    ledger = Ledger(lab.ledger_path)
    assert ledger.champion.number == 0
    assert [back.reverted_number for back in ledger.load_reversions()] == [1]
    verified(lab)


def test_what_was_unresolved_is_so_after_a_rebuild(lab):
    told_night(lab, Told(unresolved=("rate 0.02",)), rate(0.02))
    assert command(lab, "rebuild").returncode == 0

    rows = Ledger(lab.ledger_path).load_rows()
    assert [row.decision for row in rows] == ["keep", "unresolved"]
    verified(lab)


def test_a_night_killed_between_ledger_and_branch_takes_back_at_the_next_start(lab):
    policy = Told(keeps=("rate 0.02",))
    told_night(lab, policy, rate(0.02))
    before = Repository(lab.folder).run_git("show", "HEAD^:train.py") + "\n"
    with session.open_session(
        lab, session.SessionOptions(proposers=("mailbox",)), StopFlag()
    ) as (
        found,
        _,
    ):
        made, ledger = found.recorder, found.recorder.ledger
        now, former = ledger.champion, ledger.load_champions()[0]
        entry = made.build_reversion_commit(now, former, "killed", AT)
        commit = made.repository.create_commit(
            entry, former.blob, made.repository.head_commit()
        )
        ledger.record_reversion(former, now, "killed", commit, AT)  # and then: kill -9

    told_night(lab, Told())
    assert lab.read_file("train.py") == before
    assert Ledger(lab.ledger_path).load_reversions()[0].is_in_git
    verified(lab)


def test_somebody_who_edits_what_was_taken_back_is_found(lab):
    fallen(lab)
    ledger = Ledger(lab.ledger_path)
    ledger.db.execute("update taken_back set why = 'x'")
    ledger.close()

    done = command(lab, "verify-ledger", "--json")
    assert done.returncode == 5
    assert "the reversion of experiment 1 was changed" in done.stdout


# -- how a night ends ------------------------------------------------------------------


@dataclass
class Closing(Told):
    """Gives the first thing that it did not keep a second look."""

    def choose_closing_run(self, history, left):
        looked = [row for row in history.rows if row.title.startswith("again")]
        return None if looked or left > 0 else history.rows[1].blob


def test_a_second_look_is_an_experiment_of_its_own_on_seeds_of_its_own(lab):
    asked = session.SessionOptions(
        proposers=(script(lab, rate(0.02), rate(0.03)),), seed=1, experiments=1
    )
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        policy = Closing(keeps=("again: rate 0.02",))
        rows = list(research(replace(opened, policy=policy)))

    assert [row.title for row in rows] == ["baseline", "rate 0.02", "again: rate 0.02"]
    assert [row.decision for row in rows] == ["keep", "discard", "keep"]
    assert rows[2].blob == rows[1].blob
    assert rows[2].parent == rows[1].parent
    assert not set(rows[2].seeds) & set(rows[1].seeds)
    assert Ledger(lab.ledger_path).champion.number == rows[2].number
    verified(lab)


def test_the_last_runs_of_a_night_make_its_claim_surer(lab):
    run(lab, rate(0.02), experiments=1)

    ledger = Ledger(lab.ledger_path)
    runs = [m for number in (0, 1) for m in ledger.load_run_records(number)]
    closing = [m for m in runs if m.occasion == "champion"]
    assert 0 < len(closing) <= MAX_CLOSING_RUNS
    assert all(m.holdout is not None for m in closing)
    assert len(ledger.load_rows()) == 2  # they are no experiments
    verified(lab)


def test_the_last_runs_of_a_night_are_made_on_several_devices_at_once(lab):
    asked = session.SessionOptions(
        proposers=(script(lab, rate(0.02)),), seed=1, experiments=1
    )
    with session.open_session(lab, asked, StopFlag()) as (opened, now):
        at_once = set()
        folders = lab.state_folder / "runs"
        now.listener = lambda *_: at_once.add(
            frozenset(path.name.split("-")[0] for path in folders.glob("[01]-*"))
        )
        slots = (Device(), Device())
        rows = list(
            research(
                replace(
                    opened,
                    pool=LocalPool(Worker(opened.workbench), slots),
                    devices=slots,
                )
            )
        )

    assert [row.title for row in rows] == ["baseline", "rate 0.02"]
    assert {"0", "1"} in at_once  # baseline and champion
    ledger = Ledger(lab.ledger_path)
    runs = {number: ledger.load_run_records(number) for number in (0, 1)}
    closing = [m for one in runs.values() for m in one if m.occasion == "champion"]
    assert 2 <= len(closing) <= MAX_CLOSING_RUNS
    assert all(len({m.seed for m in one}) == len(one) for one in runs.values())
    verified(lab)


@pytest.mark.parametrize(
    ("left", "over", "wanted"),
    [(9.0, False, 0), (0.9, False, 8), (0.0, False, 0), (0.9, True, 8), (0.0, True, 0)],
)
def test_the_last_runs_begin_while_there_is_time_for_them(lab, left, over, wanted):
    run(lab, rate(0.02))
    with session.open_session(lab, session.SessionOptions(seed=1), StopFlag()) as (
        opened,
        _,
    ):
        pool = LocalPool(Worker(opened.workbench), (Device(),) * 8)
        end = replace(opened, estimate_runs_left=lambda: left, pool=pool)
        blobs = ClosingRuns(end, Dispatcher(end), before=-99).choose_runs(is_over=over)

    assert bool(blobs) == bool(wanted)
    assert len(blobs) <= wanted


def test_the_hours_that_are_left_are_told_in_runs(lab):
    asked = session.SessionOptions(proposers=("mailbox",), seed=1, hours=1)
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        assert (
            opened.estimate_runs_left() == math.inf
        )  # nobody knows yet what a run takes
        measure_baseline(opened, Dispatcher(opened))

        assert 1 < opened.estimate_runs_left() < math.inf


def test_a_night_whose_proposers_have_nothing_left_does_not_linger(lab):
    run(lab, rate(0.02))

    runs = Ledger(lab.ledger_path).load_run_records(0)
    assert [m.occasion for m in runs] == ["verdict"] * 3


# -- where proposals start -------------------------------------------------------------


def test_proposals_start_where_the_policy_says_and_are_judged_against_the_champion(lab):
    policy = Told()
    rows, _ = told_night(lab, policy, rate(0.02))
    policy.starts.append(rows[1].blob)
    more, _ = told_night(lab, policy, {"title": "x", "set": {"MOMENTUM": 0.6}})

    assert more[0].parent == rows[1].blob
    assert more[0].against == 0
    source = Ledger(lab.ledger_path).load_source(more[0].blob)
    assert "LEARNING_RATE = 0.02" in source
    assert "MOMENTUM = 0.6" in source
    ledger = Ledger(lab.ledger_path)
    assert ledger.starting_point.number == 1
    assert ledger.champion.number == 0
    said = command(lab, "context").stdout
    assert "It is experiment 1's: believed better than the champion's" in said


def test_a_near_miss_names_what_it_stands_on_wherever_it_is_shown(lab):
    policy = Told()
    rows, _ = told_night(lab, policy, rate(0.02))
    policy.starts.append(rows[1].blob)
    more, _ = told_night(lab, policy, {"title": "x", "set": {"MOMENTUM": 0.6}})
    policy.starts.append(more[0].blob)
    last, _ = told_night(lab, policy, {"title": "y", "set": {"WARMDOWN": 0.4}})

    assert (
        rows[1].unproven_ancestors,
        more[0].unproven_ancestors,
        last[0].unproven_ancestors,
    ) == ((), (1,), (1, 2))
    named = "y (on top of 1 and 2)"
    for words in (("log",), ("status",), ("show", "3")):
        assert named in command(lab, *words).stdout
    assert named in lab.results_path.read_text()
    command(lab, "report")
    assert named in lab.file_path("report.html").read_text()
    assert "(on top of 1, 2)" in command(lab, "context").stdout
    shown = command(lab, "show", "3").stdout.partition("--- all 3 changes since")[2]
    assert "+LEARNING_RATE = 0.02" in shown
    title = Repository(lab.folder).run_git("log", "-1", "--format=%s", last[0].commit)
    assert title.strip().endswith(", 3 changes")
    parents = [row.parent for row in Ledger(lab.ledger_path).load_rows()]
    assert command(lab, "rebuild").returncode == 0
    assert [row.parent for row in Ledger(lab.ledger_path).load_rows()] == parents
    assert Ledger(lab.ledger_path).load_row(3).unproven_ancestors == (1, 2)


def test_a_keep_names_every_change_that_it_brings_with_it(lab):
    policy = Told(keeps=("x",))
    rows, _ = told_night(lab, policy, rate(0.02))
    policy.starts.append(rows[1].blob)
    more, _ = told_night(lab, policy, {"title": "x", "set": {"MOMENTUM": 0.6}})

    message = Repository(lab.folder).run_git("log", "-1", "--format=%B", more[0].commit)
    assert more[0].decision == "keep"
    assert message.splitlines()[0].endswith(", 2 changes")
    assert "\nOn-the-way: 1\n" in message
    verified(lab)
    assert command(lab, "rebuild").returncode == 0
    assert Ledger(lab.ledger_path).load_row(more[0].number).title == "x"


# -- hopeless runs ---------------------------------------------------------------------

SLOW = "run.report(sum(e * e for e in errors) / BATCH)\n"


def hopeless_lab(tmp_path):
    """A lab, a proposal whose run takes eight seconds, and a past that condemns it."""
    lab = line_lab(tmp_path / "slow")
    source = lab.read_file("train.py").replace(
        SLOW, "import time\n    time.sleep(0.016)\n    run.report(9.0)\n"
    )
    source = source.replace("MOMENTUM = 0.5", "MOMENTUM = 0.4")  # another score
    assert "sleep" in source
    past = tuple(
        FinishedRun(
            tuple((look, 1 + n / 100) for look in LOOK_SHARES),
            0.07 + n / 1e4,
            False,
            0.07,
        )
        for n in range(20)
    )
    return lab, {"title": "slow", "source": source}, past


def ended(lab, slow, past, *, spare):
    """Its row, after a trial that meets this past and this coin."""
    asked = session.SessionOptions(proposers=("mailbox",), seed=1)
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        coin = next(s for s in range(999) if is_exempt(s, 1) == spare)
        opened = replace(opened, policy=Told(), seed=coin)
        measure_baseline(opened, Dispatcher(opened))
        blob = opened.recorder.ledger.champion.blob
        made = Proposal(None, slow["title"], slow["source"], blob, "human:t")
        candidate = opened.recorder.store_candidate(
            opened.recorder.admit_proposal(made)
        )
        trial = open_trial(opened, candidate)
        trial.finished_runs, trial.changes_schedule = past, False
        return record_trial(opened, Dispatcher(opened).run_alone(trial))


def test_a_hopeless_run_is_ended_early_and_is_a_discard_without_a_score(tmp_path):
    lab, slow, past = hopeless_lab(tmp_path)
    row = ended(lab, slow, past, spare=False)

    assert (row.decision, row.kind, row.value) == ("discard", "ended early", None)
    assert row.why.startswith("ended early at ")
    assert row.runs == 0
    ledger = Ledger(lab.ledger_path)
    assert queries.load_pruned_shares(ledger, row.series) == (
        pytest.approx(0.15, abs=0.2),
    )
    assert ledger.count_experiments()["ended_early"] == 1
    verified(lab)
    assert command(lab, "rebuild").returncode == 0
    again = Ledger(lab.ledger_path).load_row(row.number)
    assert (again.decision, again.kind) == ("discard", "ended early")
    assert len(queries.load_pruned_shares(Ledger(lab.ledger_path), row.series)) == 1


def test_a_spared_run_goes_on_and_tells_whether_it_beat_its_bar(tmp_path):
    lab, slow, past = hopeless_lab(tmp_path)
    row = ended(lab, slow, past, spare=True)

    assert row.value is not None
    ((run, won),) = queries.load_finished_runs(Ledger(lab.ledger_path), row.series)
    assert won == (row.value < Ledger(lab.ledger_path).load_row(0).value)
    assert [at for at, _ in run.curve] == list(LOOK_SHARES)


def test_early_kill_can_be_switched_off(tmp_path):
    lab, slow, past = hopeless_lab(tmp_path)
    text = lab.read_file("program.md").replace(
        "```toml\n", "```toml\nearly_kill = false\n"
    )
    lab.file_path("program.md").write_text(text)
    row = ended(lab, slow, past, spare=False)

    assert row.value is not None


# -- what is said ----------------------------------------------------------------------


def test_a_plateau_is_said_once(lab):
    low = [rate(0.0001 * n) for n in range(1, PLATEAU_EXPERIMENTS + 3)]
    _, notices = told_night(lab, Told(), *low)

    assert sum("structurally different" in notice for notice in notices) == 1
