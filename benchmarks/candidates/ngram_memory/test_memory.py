"""The n-gram memory of this folder's train.py, and its look-ups in the row."""

import tomllib
from pathlib import Path

import pytest
import torch

from autoresearch.lab import constants
from tests.test_gpt import load

HERE = Path(__file__).parent
SOURCE = (HERE / "train.py").read_text()
SIZES = {"NGRAM": 3, "NGRAM_ROWS": 8, "NGRAM_ASIDE": 0.25}


@pytest.fixture
def train(monkeypatch):
    return load(monkeypatch, constants.replace_constants(SOURCE, SIZES))


def taught(train, ids, steps=2):
    """A model whose memory has seen these rows of tokens."""
    model = train.GPT()
    for _ in range(steps):
        train.loss_of(model, ids[:, :-1], ids[:, 1:]).backward()
        model.memory.step(0.5, 1.0)
    return model


def text(rows=4, length=33):
    return torch.randint(6, (rows, length))  # of few tokens, so that n-grams recur


def test_rows_know_the_two_tokens_before_and_none_after(train):
    model = taught(train, text())
    ids = torch.randint(6, (2, 32))
    changed = ids.clone()
    changed[:, 9] = (ids[:, 9] + 1) % 6

    keys, _ = model.memory.eval().hashed(ids)
    moved = (keys != model.memory.hashed(changed)[0]).any(-1)

    assert moved.any(0).nonzero().flatten().tolist() == [9, 10, 11]


def test_a_later_token_changes_no_earlier_logit_of_a_model_with_a_memory(train):
    model = taught(train, text()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(6, (2, 32))
    changed = ids.clone()
    changed[:, 20:] = torch.randint(6, (2, 12))

    with torch.no_grad():
        before, after = model(ids), model(changed)
        cut = model(ids[:, :20])

    assert torch.equal(before[:, :20], after[:, :20])
    torch.testing.assert_close(cut, before[:, :20], atol=1e-4, rtol=1e-4)


def test_a_step_moves_the_rows_of_its_batch_and_no_others(train):
    ids = text()
    model = taught(train, ids)
    memory, before = model.memory, model.memory.rows.clone()
    few = ids[:1]
    train.loss_of(model, few[:, :-1], few[:, 1:]).backward()

    memory.step(0.5, 1.0)

    keys, aside = memory.hashed(few[:, :-1])
    table = memory.size * torch.arange(2)
    read = (keys % memory.size + table)[~aside.expand_as(keys)]
    moved = (memory.rows != before).any(-1).nonzero().flatten()
    assert len(moved)
    assert set(moved.tolist()) <= set(read.tolist())
    assert not memory.rows[-1].any()
    assert memory.counts[-1] == 0


def test_text_read_again_moves_no_row_and_reads_those_of_places_set_aside(train):
    ids = text()
    model = taught(train, ids)
    memory, rows = model.memory, model.memory.rows.clone()
    memory.rows[:-1].fill_(1)
    memory.again = True

    found, _ = memory(ids)
    train.loss_of(model, ids[:, :-1], ids[:, 1:]).backward()
    memory.rows.copy_(rows)
    memory.step(0.5, 1.0)

    keys, aside = memory.hashed(ids)
    seen = memory.counts[keys % (16 * memory.size) + 16 * memory.size * torch.arange(2)]
    expected = aside & (seen > 0)
    assert torch.equal(found.any(-1), expected)
    assert expected.any()
    assert not expected.all()
    assert torch.equal(memory.rows, rows)


def test_a_served_model_reads_all_rows_whatever_was_read_again(train):
    ids = text()
    model = taught(train, ids).eval()
    with torch.no_grad():
        before = model(ids[:, :-1])
        model.memory.again = True

        assert torch.equal(model(ids[:, :-1]), before)


def test_the_first_step_of_a_row_has_the_size_of_its_rate(train):
    weight, stats = torch.zeros(3, 64, dtype=torch.bfloat16), torch.zeros(3, 2)
    grad, moves = torch.randn(3, 64), torch.tensor([True, True, False])

    new, stats = train.row_update(weight, stats, 1e-6 * grad, moves, 0.5, 1.0)

    size = new.float().square().mean(-1).sqrt()
    assert size.tolist() == pytest.approx([0.5, 0.5, 0.0], rel=0.01)
    assert ((new[:2] * grad[:2]) <= 0).all()
    again, _ = train.row_update(new, stats, 1e-6 * grad, moves, 0.5, 1.0)
    second = (again - new).float().square().mean(-1).sqrt()[:2]
    assert second.tolist() == pytest.approx([0.5 * 2**-0.25] * 2, rel=0.05)


def looked_up_by_hand(row, count, mark):
    found = []
    for t in range(len(row)):
        start = max([0, *(i for i in range(t + 1) if row[i] == mark)])
        at = []
        for n in range(1, count + 1):
            padded = [mark] * count + row
            here = padded[t + count - n + 1 : t + count + 1]
            where = [
                j
                for j in range(start, t)
                if padded[j + count - n + 1 : j + count + 1] == here
            ]
            at.append(row[where[-1] + 1] if where else None)
        found.append(at)
    return found


def test_what_is_looked_up_followed_the_same_tokens_in_the_document(train):
    rows = torch.randint(4, (3, 32))
    rows[0, 11] = rows[1, 20] = rows[1, 25] = train.V - 1

    follows, ago, far = train.looked_up(rows)

    for i, row in enumerate(rows.tolist()):
        wanted = looked_up_by_hand(row, train.LOOKUPS, train.V - 1)
        for n, follow in enumerate(follows):
            tokens = [train.V if at[n] is None else at[n] for at in wanted]
            assert follow[i].tolist() == tokens
    assert far[0, :11].max() < 16
    assert far[0, 11] == 16
    assert ago[0, 0] == 0


def test_without_a_memory_nothing_waits_for_a_step(monkeypatch):
    train = load(monkeypatch, constants.replace_constants(SOURCE, {"NGRAM": 1, "LOOKUPS": 0}))
    model, ids = train.GPT(), text()

    train.loss_of(model, ids[:, :-1], ids[:, 1:]).backward()
    model.memory.step(0.5, 1.0)

    assert not model.memory.rows.any()
    assert list(train.TOLD) == []


def test_the_profiles_set_only_constants_that_this_train_py_or_prepare_py_has():
    profiles = tomllib.loads((HERE / "profiles.toml").read_text())
    known = set(constants.constant_values(SOURCE))
    known |= {"VOCABULARY", "CONTEXT", "VALIDATION_BYTES", "HOLDOUT_BYTES"}
    known |= {"MAXIMUM_BYTES", "budget_tokens"}

    assert {name for profile in profiles.values() for name in profile} <= known
