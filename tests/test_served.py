"""How a model gets out of one process and into another."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from autoresearch import served, weights  # noqa: E402


class Counting(nn.Module):
    """Writes into its own buffer whenever it is asked."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 5)
        self.short = nn.Parameter(torch.full((2,), 0.5, dtype=torch.bfloat16))
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nothing", torch.zeros(0, 4))

    def forward(self, x):
        self.asked += 1
        return self.line(x)


def read_only(model):
    """Its weights as they come out of sealed memory."""
    file = weights.encode(served.state_of(model))
    return weights.decode(memoryview(file).toreadonly())


def test_what_is_loaded_equals_what_was_saved_and_may_be_written_to():
    trained, fresh = Counting(), Counting()
    trained(torch.ones(3))

    served.load(fresh, read_only(trained), "cpu")
    fresh(torch.ones(3))

    assert fresh.asked.item() == 2
    assert trained.asked.item() == 1
    assert torch.equal(fresh.line.weight, trained.line.weight)
    assert fresh.short.dtype == torch.bfloat16
    assert fresh.nothing.shape == (0, 4)


def test_a_model_is_built_on_the_device_where_it_will_be_served():
    model = served.built(Counting, "meta")

    assert model.line.weight.device.type == "meta"

    model.to_empty(device="cpu")
    served.load(model, read_only(Counting()), "cpu")
    assert model(torch.ones(3)).isfinite().all()


def test_a_model_that_builds_only_on_the_cpu_is_built_there():
    def build():
        dice = torch.Generator()
        model = Counting()
        with torch.no_grad():
            model.line.weight += torch.randn(5, 3, generator=dice).numpy()[0, 0]
        return model

    assert served.built(build, "meta").line.weight.device.type == "cpu"


def test_a_model_that_builds_nowhere_says_why():
    def build():
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        served.built(build, "cpu")
