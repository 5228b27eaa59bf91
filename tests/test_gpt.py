"""Lab `gpt`: causal, the same windows everywhere, every parameter stepped once, learns."""

import ast
import re
import sys
import tomllib
import types
from functools import partial
from pathlib import Path

import pytest
import torch

import autoresearch
from autoresearch.commands import new
from autoresearch.lab import constants

LAB = Path(autoresearch.__file__).parent / "labs" / "gpt"
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


def by_hand(q, k, v, window):
    """Attention (B, T, H, D) as a formula: nothing fused, nothing masked by a library."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    for t in range(q.shape[2]):
        for s in range(q.shape[2]):
            if not 0 <= t - s < window:
                scores[..., t, s] = -torch.inf
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("window", [1, 3, 8, 32])
def test_a_query_sees_exactly_its_window(monkeypatch, window):
    train = load(monkeypatch)
    q, k, v = torch.randn(3, 2, 32, 2, 64)

    found = train.masked(q, k, v, window)

    assert torch.allclose(found, by_hand(q, k, v, window), atol=1e-5)


def test_flex_attention_has_the_same_window(monkeypatch):
    train = load(monkeypatch)
    q, k, v = torch.randn(3, 1, 32, 2, 64)

    found = train.flex(compiled=False)(q, k, v, 8)

    assert torch.allclose(found, train.masked(q, k, v, 8), atol=1e-5)


def test_a_back_end_whose_window_is_one_off_is_not_chosen(monkeypatch):
    train = load(monkeypatch)

    def one_more():
        return lambda q, k, v, window: train.masked(q, k, v, window + 1)

    def absent():
        import no_such_kernels_for_this_chip  # noqa: F401

    first = {"wrong": one_more, "absent": absent}
    groups = [first, {"right": lambda: train.masked}, {"never tried": None}]

    assert train.fastest(groups, 8, "cpu", False)[0] == "right"
    with pytest.raises(RuntimeError, match="no attention works"):
        train.fastest([first], 8, "cpu", False)


def test_kernels_that_are_not_torchs_are_called_as_they_want_to_be(monkeypatch):
    """What the two packages document; neither runs without its chip."""
    train = load(monkeypatch)

    def documented(q, k, v, *, causal, window_size):
        left, right = window_size
        assert causal
        assert right == 0
        return train.masked(q, k, v, left + 1)

    def with_sums(*tensors, **options):
        return documented(*tensors, **options), None

    flash3 = types.SimpleNamespace(flash_attn_func=documented)
    flash4 = types.SimpleNamespace(flash_attn_func=with_sums)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", flash3)
    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(cute=flash4))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", flash4)

    for make in (train.flash3, train.flash4):
        assert train.fastest([{"it": make}], 8, "cpu", False)[0] == "it"


def test_processes_that_serve_take_the_first_that_is_right_however_fast_another_is(
    monkeypatch,
):
    train = load(monkeypatch)
    taken = {"slow": 2.0, "quick": 1.0}
    train.fastest.__globals__["seconds_of"] = lambda attend, *_: taken[attend]
    group = {name: partial(str, name) for name in taken}

    assert train.fastest([group], 8, "cpu", False)[0] == "quick"
    assert train.fastest([group], 8, "cpu", True)[0] == "slow"


def test_the_choice_of_a_back_end_is_remembered_and_checked_anew(monkeypatch, tmp_path):
    train = load(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Card")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tried = []

    def candidate(name, off=0):
        def make():
            tried.append(name)
            return lambda q, k, v, window: train.masked(q, k, v, window + off)

        return {name: make}

    def choose(*groups, window=8):
        tried.clear()
        return train.remembered(list(groups), window, "cpu")[0], list(tried)

    one, other = candidate("one"), candidate("other")
    assert choose(other, one) == ("other", ["other"])
    assert choose(one, other) == ("other", ["other"])
    assert choose(one, other, window=4) == ("one", ["one"])  # another question
    assert choose(one, candidate("other", off=1)) == ("one", ["other", "one"])
    assert choose(one) == ("one", ["one"])

    (tmp_path / "attention.json").write_text('["no", "note"')
    assert choose(other, one) == ("other", ["other"])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "nowhere"))
    assert choose(one, other) == ("one", ["one"])


def test_back_ends_are_chosen_while_a_model_is_served(monkeypatch):
    train = load(monkeypatch)

    with torch.inference_mode():
        name, _ = train.fastest([{"plain": train.causal}], 32, "cpu", True)

    assert name == "plain"


def test_choosing_back_ends_spends_none_of_the_runs_randomness(monkeypatch):
    train = load(monkeypatch)
    state = torch.get_rng_state()

    train.fastest([{"plain": train.causal}], 32, "cpu", True)

    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("still", [0.0, 0.5, 0.75])
def test_still_channels_do_not_turn_and_the_others_keep_their_length(
    monkeypatch, still
):
    source = constants.replace_constants(SOURCE, {"STILL": still})
    train = load(monkeypatch, source)
    model = train.GPT()
    x = torch.randn(1, 32, 1, 64)

    turned = train.rotate(x, model.cos, model.sin)

    assert int(model.still.sum()) == int(64 * still)
    assert torch.equal(turned[..., model.still], x[..., model.still])
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-4)


def test_scores_of_turned_queries_and_keys_depend_on_their_distance(monkeypatch):
    train = load(monkeypatch)
    model = train.GPT()
    q, k = torch.randn(2, 1, 1, 1, 64).expand(2, 1, 32, 1, 64)

    q, k = (train.rotate(x, model.cos, model.sin)[0, :, 0] for x in (q, k))

    scores = q @ k.T
    assert torch.allclose(scores.diagonal(-5)[:1], scores.diagonal(-5), atol=1e-3)
    assert not torch.allclose(scores[0, 0], scores[5, 0], atol=1e-3)


def test_the_embedding_knows_the_token_before(monkeypatch):
    source = constants.replace_constants(SOURCE, {"NGRAM": 3})
    train = load(monkeypatch, source)
    model = randomised(train.GPT())
    ids = torch.randint(61, (2, 32))
    changed = ids.clone()
    changed[:, 9] = (ids[:, 9] + 1) % 61

    moved = (model.embedded(ids) != model.embedded(changed)).any(-1).any(0)

    assert moved.nonzero().flatten().tolist() == [9, 10, 11]


def test_the_loss_and_its_gradients_are_those_of_whole_logits(monkeypatch):
    train = load(monkeypatch)
    monkeypatch.setitem(train.Unembed.forward.__globals__, "PIECE", 24)
    model = randomised(train.GPT())
    ids, y = torch.randint(61, (2, 2, 32))
    whole = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), y.flatten())
    whole.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    (2 * train.loss_of(model, ids, y)).backward()

    loss = train.loss_of(model, ids, y)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, 2 * gradient, atol=1e-5)


def test_its_own_losses_are_those_of_its_logits(monkeypatch):
    train = load(monkeypatch)
    model = randomised(train.GPT()).eval()
    ids, y = torch.randint(61, (2, 3, 32))

    wanted = torch.nn.functional.cross_entropy(
        model(ids).flatten(0, 1), y.flatten(), reduction="none"
    )

    torch.testing.assert_close(model.losses(ids, y).flatten(), wanted)


@pytest.mark.parametrize(("tokens", "part"), [(2**11, "layer"), (2**20, "mixed")])
def test_small_layers_are_compiled_whole_and_large_ones_in_pieces(
    monkeypatch, tokens, part
):
    sizes = {"DEVICE_BATCH": tokens, "TOTAL_BATCH": tokens}
    train = load(monkeypatch, constants.replace_constants(SOURCE, sizes))
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    model = train.GPT()

    model.compile()

    assert {"layer", "mixed"} & set(vars(model)) == {part}


def test_the_pattern_of_windows_ends_with_a_long_one(monkeypatch):
    train = load(monkeypatch)

    assert train.KINDS == ["S", "S", "S", "L"]
    assert train.WINDOWS == {"S": 32 // train.SHORT_WINDOW, "L": 32}


def test_every_layer_starts_as_the_identity(monkeypatch):
    model = load(monkeypatch).GPT()

    assert not model.attend[:, 3].any()
    assert not model.down.any()


def test_every_parameter_is_stepped_by_exactly_one_optimiser(monkeypatch):
    train = load(monkeypatch)
    model = train.GPT()

    stacks, groups = train.groups_of(model)

    stepped = [id(p) for p, _ in stacks] + [id(p) for g in groups for p in g["params"]]
    assert sorted(stepped) == sorted(id(p) for p in model.parameters())
    assert all(weight.ndim >= 3 for weight, _ in stacks)


@pytest.mark.parametrize("shape", [(2, 64, 64), (3, 128, 32), (1, 32, 128)])
def test_newton_schulz_yields_nearly_orthogonal_matrices(monkeypatch, shape):
    train = load(monkeypatch)

    values = torch.linalg.svdvals(train.orthogonalise(torch.randn(shape)))

    assert values.quantile(0.1) > 0.7  # a square random matrix is nearly singular
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(2, 16, 16), (2, 48, 12), (2, 12, 48)])
def test_muon_levels_rows_and_keeps_the_size_of_each_matrix(monkeypatch, shape):
    train = load(monkeypatch)
    g, momentum, weight = (torch.randn(shape).double() for _ in range(3))
    variance = torch.rand(*shape[:2], 1).double()
    ortho = train.orthogonalise(torch.lerp(g, torch.lerp(momentum, g, 0.1), 0.9))
    rows = torch.lerp(variance, ortho.square().mean(-1, keepdim=True), 0.1)
    level = ortho / rows.sqrt()
    norms = [x.flatten(1).norm(dim=1)[:, None, None] for x in (ortho, level)]
    wanted = level * norms[0] / norms[1]
    decayed = torch.where(wanted * weight > 0, 0.1 * weight, 0.0)
    wanted = weight - 0.02 * (wanted + decayed)

    train.muon_update(g, momentum, variance, weight, lr=0.02, beta=0.9, decay=0.1)

    torch.testing.assert_close(variance, rows)
    torch.testing.assert_close(weight, wanted)


def test_a_matrix_without_a_gradient_stays_where_it_is(monkeypatch):
    train = load(monkeypatch)
    nothing, weight = torch.zeros(1, 8, 8), torch.randn(1, 8, 8)
    before, variance = weight.clone(), torch.zeros(1, 8, 1)

    train.muon_update(nothing, nothing.clone(), variance, weight, 0.02, 0.9, 0.1)

    assert torch.equal(weight, before)


def test_the_loss_falls_in_twenty_steps(monkeypatch):
    train = load(monkeypatch)
    model = train.GPT()
    stacks, groups = train.groups_of(model)
    muon, adam = train.Muon(stacks), torch.optim.AdamW(groups, lr=0.0)
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


def test_passes_shrink_until_they_fit_and_a_step_stays_as_large(monkeypatch):
    train = load(monkeypatch)
    tried = []

    def attempt(rows):
        tried.append(rows)
        if rows > 16:
            raise torch.OutOfMemoryError("no memory for more than 16 rows")

    assert train.fitted(64, 2, attempt) == (16, 8)
    assert tried == [64, 32, 16]


def test_a_card_too_small_for_one_row_says_so(monkeypatch):
    train = load(monkeypatch)

    def attempt(rows):
        raise torch.OutOfMemoryError("no memory at all")

    with pytest.raises(torch.OutOfMemoryError):
        train.fitted(4, 1, attempt)


def test_the_file_is_short_and_every_constant_is_used_and_explained():
    lines = SOURCE.splitlines()
    assert len(lines) <= 630

    names = [n.id for n in ast.walk(ast.parse(SOURCE)) if isinstance(n, ast.Name)]
    for constant in constants.parse_constants(SOURCE):
        (line,) = [x for x in lines if re.match(rf"{constant.name} = ", x)]
        assert "#" in line, constant.name
        assert names.count(constant.name) > 1, f"{constant.name} does nothing"


PROFILES = tomllib.loads((LAB / "profiles.toml").read_text())


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_makes_a_model_that_builds(monkeypatch, tmp_path, profile):
    new.create_lab(tmp_path / "lab", "gpt", None, None, profile)
    source = (tmp_path / "lab" / "train.py").read_text()
    prepare = (tmp_path / "lab" / "prepare.py").read_text()
    values = constants.constant_values(prepare)

    train = load(monkeypatch, source, values["VOCABULARY"], values["CONTEXT"])
    with torch.device("meta"):
        model = train.GPT()

    assert train.WIDTH % train.HEAD_SIZE == 0
    assert train.TOTAL_BATCH % values["CONTEXT"] == 0
    assert sum(p.numel() for p in model.parameters()) > 100_000
    if profile == "gpu":
        sizes = (train.DEPTH, train.WIDTH, values["VOCABULARY"], values["CONTEXT"])
        assert sizes == (6, 1024, 8192, 2048)


@pytest.mark.parametrize(
    ("memories_gb", "profile"),
    [([], "cpu"), ([150.8], "gpu"), ([25.8, 25.8], "gpu24"), ([25.8, 4.3], "gpu4")],
)
def test_the_smallest_gpu_decides_the_profile(memories_gb, profile):
    assert new.choose_profile(memories_gb) == profile
    assert profile in PROFILES


def test_a_search_over_the_flagship_changes_what_it_says(monkeypatch):
    changed = constants.replace_constants(
        SOURCE, {"MATRIX_LR": 0.05, "TOTAL_BATCH": 2**12}
    )

    assert "MATRIX_LR = 0.05  # 0.003 .. 0.3, log" in changed
    assert "TOTAL_BATCH = 2**12  #" in changed
