"""The bandit, and thinking ahead: the best arm gets the GPU, and nobody is waited for."""

import threading
import time

import pytest

from autoresearch.experiment import Proposal
from autoresearch.git import compute_blob_id
from autoresearch.lab.program import Program
from autoresearch.proposers import prefetch
from autoresearch.proposers import registry as proposer_registry
from autoresearch.proposers.bandit import Bandit
from autoresearch.proposers.prefetch import Prefetch
from autoresearch.proposers.toolkit import open_toolkit
from autoresearch.records.ledger import Ledger
from autoresearch.stats.history import compute_change_effects
from tests import nights
from tests.test_context import SOURCE
from tests.test_context import night as short_night
from tests.test_search import Bench

GAINS = "".join(f"IDEA_{n} = 0\n" for n in range(1))


class Coder:
    """Adds a line that gains, or one that loses."""

    exhausted = False

    def __init__(self, name, gain):
        self.name, self._gain, self._count = name, gain, 0

    def propose(self, ledger):
        self._count += 1
        champion = ledger.champion
        line = f"{self.name.upper()}_{self._count} = {self._gain}  # fixed\n"
        source = ledger.load_source(champion.blob) + line
        return Proposal(None, line.strip(), source, champion.blob, self.name)


def score(values):
    """Lower by every gain that the file holds."""
    return 100.0 - sum(v for n, v in values.items() if n[:4] in ("GOOD", "POOR"))


def shares(first, second, count, tmp_path, seed=1):
    bench = Bench(tmp_path / f"{first.name}{seed}.db", score, SOURCE)
    bench.night(Bandit([first, second], seed), count)
    authors = [row.author for row in bench.ledger.load_rows()[1:]]
    return authors.count(first.name) / count, authors


def test_the_arm_that_gains_gets_most_of_the_gpu_and_the_other_keeps_a_floor(tmp_path):
    share, authors = shares(Coder("good", 0.1), Coder("poor", -0.1), 60, tmp_path)

    assert share > 0.6
    longest = max(len(run) for run in "".join(a[0] for a in authors).split("p"))
    assert longest <= 7  # the floor: one in seven for each of two arms


def test_two_equal_arms_share_about_evenly(tmp_path):
    found = [
        shares(Coder("good", 0.1), Coder("poor", 0.1), 40, tmp_path, seed)[0]
        for seed in range(4)
    ]

    assert 0.3 < sum(found) / 4 < 0.7


def test_who_crashes_every_time_does_not_keep_the_gpu(tmp_path):
    bench = Bench(tmp_path / "l.db", score, SOURCE)
    arms = [Coder("good", 0.1), Coder("poor", 0.2)]

    bench.night(Bandit(arms, 1), 60, fails=lambda v: any(n[:4] == "POOR" for n in v))

    authors = [row.author for row in bench.ledger.load_rows()[1:]]
    assert authors.count("good") > 36


def test_a_gain_that_was_not_kept_is_a_gain(tmp_path):
    bench = Bench(tmp_path / "l.db", score, SOURCE)
    hybrid = Bandit([Coder("good", 0.1), Coder("poor", -0.1)], 2)
    for _ in range(60):
        proposal = hybrid.propose(bench.ledger)
        proposal = bench.ledger.admit_proposal(
            proposal, compute_blob_id(proposal.source), proposal.source
        )
        bench.decide(proposal, "discard", bench.ledger.champion)

    authors = [row.author for row in bench.ledger.load_rows()[1:]]
    assert authors.count("good") > 36


def test_what_was_gained_in_another_series_says_nothing_here(tmp_path):
    bench = Bench(tmp_path / "l.db", score, SOURCE)
    bench.night(Coder("good", 0.1), 5)
    ledger = bench.ledger
    before = compute_change_effects(ledger.load_rows())
    ledger.begin_session("t", "{}", 0, "{}")
    blob = ledger.load_rows()[-1].blob
    again = Proposal(None, "again", ledger.load_source(blob), "", "autoresearch")
    again = ledger.admit_proposal(again, blob, "c")
    bench.landscape = lambda values: 7.0
    bench.decide(again, "keep", None)

    assert compute_change_effects(ledger.load_rows()) == before
    assert Bandit([Coder("good", 1), Coder("poor", 1)], 1).propose(ledger)


def test_a_restarted_bandit_asks_the_same_arms(tmp_path):
    orders = []
    bench = Bench(tmp_path / "l.db", score, SOURCE)
    bench.night(Bandit([Coder("good", 0.1), Coder("poor", -0.1)], 3), 20)
    for _ in range(2):
        ledger = Ledger(tmp_path / "l.db")
        ledger.series = "s"
        hybrid = Bandit([Coder("good", 0.1), Coder("poor", -0.1)], 3)
        orders.append(hybrid.propose(ledger).author)

    assert orders[0] == orders[1]


class Silent:
    """Never has an idea."""

    name, exhausted = "silent", False

    def propose(self, ledger):
        return None


def test_who_has_no_idea_is_passed_over_and_the_spare_takes_the_gpu(tmp_path):
    ledger = short_night(tmp_path / "l.db")

    found = Bandit([Silent(), Silent()], spare=Coder("good", 1)).propose(ledger)

    assert found.author == "good"
    assert Bandit([Silent()]).propose(ledger) is None


# -- ahead -----------------------------------------------------------------------------


class Slow:
    """A thinker that takes its time and then changes one line."""

    exhausted = False

    def __init__(self, seconds, change=("DEPTH = 4", "DEPTH = 8")):
        self.name, self._seconds, self._change = "slow", seconds, change
        self.resting_until, self.asked, self.closed = 0.0, 0, threading.Event()

    def propose(self, ledger):
        self.asked += 1
        number, champion = self.asked, ledger.champion
        source = ledger.load_source(champion.blob)
        self.closed.wait(self._seconds)
        new = f"import x{number}\n" + source.replace(*self._change)
        return Proposal(None, f"idea {number}", new, champion.blob, self.name)

    def close(self):
        self.closed.set()


@pytest.fixture
def lab(tmp_path):
    found = nights.line_lab(tmp_path / "lab")
    short_night(found.ledger_path).close()
    return found


@pytest.fixture
def thinking(lab):
    """(make, ledger): Ahead over a thinker, closed after the test."""
    made = []
    ledger = Ledger(lab.ledger_path)
    ledger.series = "s"

    def make(inner, most=6):
        made.append(Prefetch(inner, open_toolkit(lab.folder, Program()), most))
        return made[-1]

    yield make, ledger
    for one in made:
        one.close()


def test_nobody_waits_for_a_slow_thinker(thinking):
    make, ledger = thinking
    one = make(Slow(0.3))
    begun = time.monotonic()

    assert one.propose(ledger) is None
    assert time.monotonic() - begun < 0.25
    nights.wait_for(lambda: one.propose(ledger) is not None)


def test_more_ideas_are_under_way_the_more_often_none_was_ready(thinking):
    make, ledger = thinking
    inner = Slow(5.0)
    one = make(inner, most=3)

    for _ in range(9):
        one.propose(ledger)

    nights.wait_for(lambda: inner.asked == 3)
    time.sleep(0.1)
    assert inner.asked == 3


def new_champion(ledger, source):
    """Somebody else's idea is kept meanwhile."""
    bench = Bench.__new__(Bench)
    bench.ledger, bench.landscape = ledger, lambda values: 0.5
    old = ledger.champion
    proposal = Proposal(None, "other", source, old.blob, "human")
    proposal = ledger.admit_proposal(proposal, compute_blob_id(source), source)
    bench.decide(proposal, "keep", old)


def test_an_idea_is_carried_over_to_a_new_champion(thinking):
    make, ledger = thinking
    one = make(Slow(0.05))
    one.propose(ledger)
    nights.wait_for(lambda: one._ready)
    new_champion(ledger, SOURCE.replace("return DEPTH", "return DEPTH + 1"))

    proposal = one.propose(ledger)

    assert proposal.parent == ledger.champion.blob
    assert "return DEPTH + 1" in proposal.source
    assert "DEPTH = 8" in proposal.source


def test_an_idea_that_conflicts_with_the_new_champion_is_asked_anew(thinking):
    make, ledger = thinking
    inner = Slow(0.05)
    one = make(inner, most=1)
    one.propose(ledger)
    nights.wait_for(lambda: one._ready)
    new_champion(ledger, SOURCE.replace("DEPTH = 4", "DEPTH = 6"))

    assert one.propose(ledger) is None

    nights.wait_for(lambda: inner.asked > 1)


def test_a_night_that_ends_leaves_no_thread_behind(thinking):
    make, ledger = thinking
    one = make(Slow(30))
    one.propose(ledger)

    one.close()

    assert not any(thread.is_alive() for thread in one._threads)


def test_merging_keeps_both_changes_or_says_no():
    base = "a\nb\nc\nd\ne\nf\n"

    assert prefetch.merge_texts("A\nb\nc\nd\ne\nf\n", base, "a\nb\nc\nd\ne\nF\n") == (
        "A\nb\nc\nd\ne\nF\n"
    )
    assert (
        prefetch.merge_texts("A\nb\nc\nd\ne\nf\n", base, "Z\nb\nc\nd\ne\nf\n") is None
    )


def test_a_changed_constant_is_carried_over_beside_another_changed_line(thinking):
    _, ledger = thinking
    old = ledger.champion.blob
    ours = SOURCE.replace("RATE = 0.1 ", "RATE = 0.3 ")
    new_champion(ledger, ours)
    theirs = SOURCE.replace("DEPTH = 4", "DEPTH = 8")
    proposal = Proposal(None, "deeper", theirs, old, "slow")

    found = prefetch.rebase_proposal(ledger, proposal, ledger.champion.blob)

    assert found.source == ours.replace("DEPTH = 4", "DEPTH = 8")


def test_one_fast_proposer_is_itself_and_several_are_a_bandit(lab):
    def kind(*specs):
        return type(
            proposer_registry.load_proposers(specs, Program(), lab.folder, 0)
        ).__name__

    assert kind("search") == "Search"
    assert kind("search", "mailbox") == "Bandit"
    assert kind("ollama:x@http://127.0.0.1:9") == "Bandit"
