"""Lab `gpt`: causal, the same windows everywhere, every parameter stepped once, learns."""

import ast
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from autoresearch import constants, founding

LAB = Path(founding.__file__).parent / "labs" / "gpt"
SOURCE = (LAB / "train.py").read_text()


class Enough(Exception):
    """train.py has come to `prepare.begin`."""


def load(monkeypatch, source=SOURCE, vocabulary=61, context=32):
    """train.py down to the point where a model guest would serve."""

    def begin(build):
        raise Enough

    prepare = types.ModuleType("prepare")
    prepare.VOCABULARY, prepare.CONTEXT, prepare.begin = vocabulary, context, begin
    monkeypatch.setitem(sys.modules, "prepare", prepare)
    namespace = {"__name__": "train"}
    with pytest.raises(Enough):
        exec(compile(source, "train.py", "exec"), namespace)
    torch.manual_seed(0)
    return types.SimpleNamespace(**namespace)


def randomised(model):
    """Weights that are nowhere zero: an untrained model hides every mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_a_later_token_changes_no_earlier_logit(monkeypatch):
    train = load(monkeypatch)
    model = randomised(train.GPT()).eval()
    ids = torch.randint(61, (2, 32))
    changed = ids.clone()
    changed[:, 20:] = torch.randint(61, (2, 12))

    before, after = model(ids), model(changed)

    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


@pytest.mark.parametrize("window", [1, 3, 8, 32])
def test_a_query_sees_exactly_its_window(monkeypatch, window):
    train = load(monkeypatch)
    q, k, v = torch.randn(3, 2, 2, 32, 64)

    found = train.masked_attention(q, k, v, window)

    scores = q @ k.mT / 8
    for t in range(32):
        for s in range(32):
            if not 0 <= t - s < window:
                scores[..., t, s] = -torch.inf
    assert torch.allclose(found, scores.softmax(-1) @ v, atol=1e-5)


def test_flex_attention_has_the_same_window(monkeypatch):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    train = load(monkeypatch)
    q, k, v = torch.randn(3, 1, 2, 32, 64)

    def near(b, h, query, key):
        return (query >= key) & (query - key < 8)

    block = create_block_mask(near, None, None, 32, 32, device="cpu")

    assert torch.allclose(
        flex_attention(q, k, v, block_mask=block),
        train.masked_attention(q, k, v, 8),
        atol=1e-5,
    )


def test_the_pattern_of_windows_ends_with_a_long_one(monkeypatch):
    train = load(monkeypatch)

    assert train.WINDOWS[-1] == 32
    assert train.WINDOWS[:3] == [32 // train.SHORT_WINDOW] * 3


def test_every_layer_starts_as_the_identity(monkeypatch):
    model = load(monkeypatch).GPT()

    for block in model.blocks:
        assert not block.attention.out.weight.any()
        assert not block.mlp.down.weight.any()


def test_every_parameter_is_stepped_by_exactly_one_optimiser(monkeypatch):
    train = load(monkeypatch)
    model = train.GPT()

    matrices, groups = train.groups_of(model)

    stepped = [id(p) for p in matrices] + [id(p) for g in groups for p in g["params"]]
    assert sorted(stepped) == sorted(id(p) for p in model.parameters())
    assert all(m.ndim == 2 for m in matrices)


@pytest.mark.parametrize("shape", [(2, 64, 64), (3, 128, 32), (1, 32, 128)])
def test_newton_schulz_yields_nearly_orthogonal_matrices(monkeypatch, shape):
    train = load(monkeypatch)

    values = torch.linalg.svdvals(train.orthogonalise(torch.randn(shape)))

    assert values.quantile(0.1) > 0.7  # a square random matrix is nearly singular
    assert values.max() < 1.3


def test_the_loss_falls_in_twenty_steps(monkeypatch):
    train = load(monkeypatch)
    model = train.GPT()
    matrices, groups = train.groups_of(model)
    muon, adam = train.Muon(matrices), torch.optim.AdamW(groups, lr=0.0)
    text = torch.arange(33).repeat(8, 1)
    losses = []
    for _ in range(20):
        loss = train.loss_of(model, text[:, :-1], text[:, 1:])
        loss.backward()
        for group in adam.param_groups:
            group["lr"] = group["base"]
        adam.step()
        muon.step(train.MATRIX_LR, 0.9, 0.0)
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())

    assert losses[-1] < losses[0] / 2


def test_the_schedule_begins_full_and_ends_at_the_final_rate(monkeypatch):
    train = load(monkeypatch)

    assert train.rate_at(train.WARMUP) == 1
    assert train.rate_at(1.0) == pytest.approx(train.FINAL_LR)
    assert train.momentum_at(0.0) == train.MOMENTUM_START
    assert train.momentum_at(1.0) == train.MOMENTUM


def test_the_file_is_short_and_every_constant_is_used_and_explained():
    lines = SOURCE.splitlines()
    assert len(lines) <= 630

    names = [n.id for n in ast.walk(ast.parse(SOURCE)) if isinstance(n, ast.Name)]
    for constant in constants.read(SOURCE):
        (line,) = [x for x in lines if re.match(rf"{constant.name} = ", x)]
        assert "#" in line, constant.name
        assert names.count(constant.name) > 1, f"{constant.name} does nothing"


@pytest.mark.parametrize("profile", ["cpu", "gpu", "demo"])
def test_every_profile_makes_a_model_that_builds(monkeypatch, tmp_path, profile):
    founding.found(tmp_path / "lab", "gpt", None, None, profile)
    source = (tmp_path / "lab" / "train.py").read_text()
    prepare = (tmp_path / "lab" / "prepare.py").read_text()
    values = constants.values_of(prepare)

    train = load(monkeypatch, source, values["VOCABULARY"], values["CONTEXT"])
    with torch.device("meta"):
        model = train.GPT()

    assert train.WIDTH % train.HEAD_SIZE == 0
    assert train.TOTAL_BATCH % values["CONTEXT"] == 0
    assert sum(p.numel() for p in model.parameters()) > 100_000
    if profile == "gpu":
        assert (train.WIDTH, values["VOCABULARY"], values["CONTEXT"]) == (
            640,
            8192,
            2048,
        )


def test_a_search_over_the_flagship_changes_what_it_says(monkeypatch):
    changed = constants.replace(SOURCE, {"MATRIX_LR": 0.05, "TOTAL_BATCH": 2**12})

    assert "MATRIX_LR = 0.05  # 0.003 .. 0.3, log" in changed
    assert "TOTAL_BATCH = 2**12  #" in changed
