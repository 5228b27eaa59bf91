"""Constants and the offline proposer: what is read, changed, learned and never repeated."""

import base64
import math
import random
from dataclasses import replace

import pytest

from autoresearch.errors import LabError
from autoresearch.experiment import (
    Candidate,
    CodeSizeChange,
    Failure,
    Proposal,
    Run,
    Score,
    Verdict,
)
from autoresearch.git import compute_blob_id
from autoresearch.lab import constants, constraints
from autoresearch.proposers.search import Search
from autoresearch.records.ledger import Ledger

SOURCE = '''"""Not Δ ascii."""
import os  # CAPITALS = 3
LR = 0.04  # 0.001 .. 1, log; the rate
BATCH = 2**18  # 2**14 .. 2**20; tokens
BETA: float = 0.95
DEPTH = 6
EPS = 1e-8
BIG = 1_000_000
SHIFT = -0.5
USE_GATE = True
PATTERN = "SSSL"  # one of: "SSSL", "SL", "L"
NAME = "no choices, no constant"
SEED = 42
HEAD = 64  # fixed
DERIVED = os.cpu_count()
def f():
    INSIDE = 3
    return INSIDE
'''


def test_constants_are_read_with_what_may_be_tried():
    found = {c.name: c for c in constants.parse_constants(SOURCE)}

    assert set(found) == {
        "LR", "BATCH", "BETA", "DEPTH", "EPS", "BIG", "SHIFT", "USE_GATE", "PATTERN",
        "SEED", "HEAD",
    }  # fmt: skip
    assert (found["LR"].low, found["LR"].high, found["LR"].is_log_scale) == (
        0.001,
        1,
        True,
    )
    assert (found["BATCH"].value, found["BATCH"].low) == (2**18, 2**14)
    assert found["BETA"].high < 1
    assert found["PATTERN"].choices == ("SSSL", "SL", "L")
    assert found["SEED"].is_fixed
    assert found["HEAD"].is_fixed


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("LR", 0.05, "LR = 0.05  # 0.001 .. 1, log; the rate"),
        ("BATCH", 2**17, "BATCH = 2**17  # 2**14 .. 2**20; tokens"),
        ("BETA", 0.98, "BETA: float = 0.98"),
        ("EPS", 1e-10, "EPS = 1e-10"),
        ("BIG", 2_000_000, "BIG = 2_000_000"),
        ("SHIFT", -0.25, "SHIFT = -0.25"),
        ("USE_GATE", False, "USE_GATE = False"),
        ("PATTERN", "SL", 'PATTERN = "SL"  # one of: "SSSL", "SL", "L"'),
    ],
)
def test_replacing_changes_one_spelling_and_nothing_else(name, value, line):
    changed = constants.replace_constants(SOURCE, {name: value})

    before, after = SOURCE.splitlines(), changed.splitlines()
    assert [new for old, new in zip(before, after, strict=True) if old != new] == [line]
    assert constants.constant_values(changed)[name] == value
    assert constants.blank_constants(changed) == constants.blank_constants(SOURCE)


def test_an_unknown_constant_names_the_known_ones():
    with pytest.raises(LabError, match="LR"):
        constants.replace_constants(SOURCE, {"LEARNING": 1})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: "x = (" * 5000, "not Python"),
        (lambda s: s + "\0", "not Python"),
        (lambda s: s + "\nx = " + "1 + " * 400 + "1", "nested deeper than 150"),
        (lambda s: s + "#" * 200_000, "at most"),
        (
            lambda s: s + f"X = {base64.b64encode(random.Random(1).randbytes(70_000))}",
            "compress",
        ),
        (lambda s: s.replace("SEED = 42", "SEED = 43"), "seed"),
        (lambda s: s.replace("# fixed", "# something else"), "nothing changed"),
        (lambda s: s + "\n\n# more\n", "nothing changed"),
        (lambda s: s.replace("0.04", "0.05").replace("2**18", "2**17"), "2 constants"),
        (lambda s: s.replace("0.04", "0.05"), None),
        (lambda s: s + "y = 1\n" * 80, None),
        (lambda s: s + "y = 1\n" * 81, "81 lines"),
    ],
)
def test_rules_refuse_with_one_line(change, why):
    said = constraints.find_violation(
        change(SOURCE), SOURCE, constraints.ChangeLimits()
    )

    assert said is None if why is None else why in said


def test_added_lines_are_code_only():
    assert constraints.compare_code_size(
        "a = 1\n", "# why\n\na = 1\nb = 2\n"
    ) == CodeSizeChange(1, 0)
    assert constraints.compare_code_size("a = 1\nb = 2\n", "a = 1\n") == CodeSizeChange(
        0, 1
    )


# -- the proposer on a real ledger -----------------------------------------------------


class Bench:
    """A ledger, and a landscape that scores what is proposed."""

    def __init__(self, path, landscape, source):
        self.ledger = Ledger(path)
        self.ledger.begin_session("s", "{}", 0, "{}")
        self.landscape = landscape
        proposal = self.ledger.admit_proposal(
            Proposal(0, "baseline", source, "", "human"), compute_blob_id(source), "c"
        )
        self.decide(proposal, "keep", None)

    def decide(self, proposal, decision, against, failure=None):
        if failure:
            verdict = Verdict(
                "failed", "crash", Failure(proposal, "crash", "x"), against
            )
        else:
            value = self.landscape(constants.constant_values(proposal.source))
            run = Run(
                Candidate(proposal, "b"),
                0,
                1.0,
                1.0,
                1.0,
                None,
                (),
                type("P", (), {"name": "x"}),
            )
            if decision is None:
                decision = "keep" if value < against.values[0] else "discard"
            verdict = Verdict(decision, "", (Score(run, value, 0.0, 0.0),), against)
        self.ledger.record_verdict(verdict, commit=None, at=0.0)

    def night(self, proposer, count, fails=lambda values: False):
        seen = []
        for _ in range(count):
            proposal = proposer.propose(self.ledger)
            code = constraints.fingerprint_code(proposal.source)
            proposal = self.ledger.admit_proposal(
                proposal, compute_blob_id(proposal.source), code
            )
            seen.append((proposal.title, code, proposal.parent))
            failure = fails(constants.constant_values(proposal.source))
            self.decide(proposal, None, self.ledger.champion, failure)
        return seen


def bowl(values):
    """Best at LR 0.2, BATCH 2**16, BETA 0.9, DEPTH 8; the others do nothing."""
    return (
        1.0
        + 0.01 * math.log(values["LR"] / 0.2) ** 2
        + 0.002 * (math.log2(values["BATCH"]) - 16) ** 2
        + 0.5 * (values["BETA"] - 0.9) ** 2
        + 0.001 * (values["DEPTH"] - 8) ** 2
    )


def test_a_night_of_search_finds_most_of_what_there_is(tmp_path):
    bench = Bench(tmp_path / "l.db", bowl, SOURCE)

    bench.night(Search(seed=1), 60)

    assert bench.ledger.champion.values[0] < 1.008  # from 1.039


def test_search_never_repeats_itself_and_changes_one_constant_at_a_time(tmp_path):
    bench = Bench(tmp_path / "l.db", bowl, SOURCE)

    seen = bench.night(Search(seed=2), 60)

    assert len({(code, parent) for _, code, parent in seen}) == 60
    assert all(title.count("->") == 1 for title, _, _ in seen)


def test_what_another_device_is_trying_is_not_tried_beside_it(tmp_path):
    bench = Bench(tmp_path / "l.db", bowl, SOURCE)

    constants_tried = []
    for _ in range(3):  # on three devices, and none has its result yet
        idea = Search(seed=2).propose(bench.ledger)
        code = constraints.fingerprint_code(idea.source)
        bench.ledger.admit_proposal(idea, compute_blob_id(idea.source), code)
        constants_tried.append(idea.title.split()[0])

    assert len(set(constants_tried)) == 3


def test_search_never_touches_what_is_fixed_or_leaves_the_range(tmp_path):
    bench = Bench(tmp_path / "l.db", bowl, SOURCE)

    bench.night(Search(seed=3), 80)

    for row in bench.ledger.load_rows():
        values = constants.constant_values(bench.ledger.load_source(row.blob))
        assert (values["SEED"], values["HEAD"]) == (42, 64)
        assert 0.001 <= values["LR"] <= 1
        assert 2**14 <= values["BATCH"] <= 2**20
        assert math.log2(values["BATCH"]).is_integer()


def test_a_restarted_proposer_goes_on_as_if_it_had_never_stopped(tmp_path):
    first = Bench(tmp_path / "a.db", bowl, SOURCE)
    second = Bench(tmp_path / "b.db", bowl, SOURCE)
    search = Search(seed=4)

    straight = first.night(search, 30)
    restarted = [s for _ in range(30) for s in second.night(Search(seed=4), 1)]

    assert straight == restarted


def test_a_failure_is_infeasible_and_not_a_bad_number(tmp_path):
    bench = Bench(tmp_path / "l.db", bowl, SOURCE)

    bench.night(Search(seed=5), 60, fails=lambda values: values["DEPTH"] > 6)

    assert (
        constants.constant_values(bench.ledger.load_source(bench.ledger.champion.blob))[
            "DEPTH"
        ]
        <= 6
    )
    assert bench.ledger.champion.values[0] < 1.01


def test_a_constant_that_a_model_named_is_tuned_by_the_optimiser(tmp_path):
    bench = Bench(
        tmp_path / "l.db",
        lambda values: bowl(values) + 0.05 * (values.get("GATE", 1.0) - 0.3) ** 2,
        SOURCE,
    )
    start = bench.ledger.champion
    named = bench.ledger.load_source(start.blob) + "GATE = 0.8  # 0 .. 1\n"
    idea = Proposal(None, "a gate", named, start.blob, "ollama:x")
    idea = bench.ledger.admit_proposal(
        idea, compute_blob_id(named), constraints.fingerprint_code(named)
    )
    bench.decide(idea, None, start)
    assert bench.ledger.champion.number == idea.number  # kept

    bench.night(Search(seed=7), 40)

    source = bench.ledger.load_source(bench.ledger.champion.blob)
    assert abs(constants.constant_values(source)["GATE"] - 0.3) < 0.2


def test_what_a_model_tried_is_not_tried_again_by_the_optimiser(tmp_path):
    bench = Bench(tmp_path / "l.db", bowl, SOURCE)
    search = Search(seed=8)
    wanted = search.propose(bench.ledger)
    theirs = replace(wanted, author="ollama:x")
    code = constraints.fingerprint_code(theirs.source)
    theirs = bench.ledger.admit_proposal(theirs, compute_blob_id(theirs.source), code)
    bench.decide(theirs, "discard", bench.ledger.champion)

    following = Search(seed=8).propose(bench.ledger)

    assert constraints.fingerprint_code(following.source) != code
    assert following.title != wanted.title


def test_several_constants_where_program_md_allows_them(tmp_path):
    bench = Bench(tmp_path / "l.db", bowl, SOURCE)

    seen = bench.night(Search(seed=6, max_constants=3), 30)

    counts = {title.count("->") for title, _, _ in seen}
    assert max(counts) > 1
    assert max(counts) <= 3
