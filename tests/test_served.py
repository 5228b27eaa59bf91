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
