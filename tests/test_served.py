"""How a model gets out of one process and into another."""

import contextlib
import os
import socket
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from autoresearch import sealed_memory
from autoresearch.guest import safetensors_format, torch_model
from autoresearch.sandbox.ipc import (
    Channel,
    ChannelClosed,
)


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
    file = safetensors_format.encode(torch_model.export_state(model))
    return safetensors_format.decode(memoryview(file).toreadonly())


def test_what_is_loaded_equals_what_was_saved_and_may_be_written_to():
    trained, fresh = Counting(), Counting()
    trained(torch.ones(3))

    torch_model.load_state(fresh, read_only(trained), "cpu")
    fresh(torch.ones(3))

    assert fresh.asked.item() == 2
    assert trained.asked.item() == 1
    assert torch.equal(fresh.line.weight, trained.line.weight)
    assert fresh.short.dtype == torch.bfloat16
    assert fresh.nothing.shape == (0, 4)


ROWS, CONTEXT, VOCABULARY = 4, 16, 50
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    ),
]


class Knowing(nn.Sequential):
    """Says that it knows how to compile."""

    def compile(self):
        pass


class Losing(Knowing):
    """And has losses of its own, which say something else where `off` is set."""

    off = 0.0

    def losses(self, ids, y):
        flat = torch_model.compute_losses(self(ids).flatten(0, 1), y.flatten())
        return flat.view(y.shape) + self.off


class Halving(Losing):
    """Compiling it changes what is not hung on it, but in it; its losses tell."""

    off = 1.0

    def compile(self):
        self[1].weight.data.mul_(0.5)


@pytest.mark.parametrize(
    ("kind", "off", "compiles", "by_its_losses"),
    [
        (nn.Sequential, None, False, False),
        (Knowing, None, True, False),
        (Losing, 0.0, True, True),
        (Losing, 0.0015, True, False),
        (Losing, torch.tensor([0.05, -0.05]).repeat(CONTEXT // 2), True, False),
    ],
)
def test_claims_of_a_compiled_model_are_what_its_logits_say(
    kind, off, compiles, by_its_losses
):
    torch.manual_seed(1)
    model = kind(nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY))
    model.off = off
    batch = torch.randint(VOCABULARY, (ROWS, CONTEXT + 1))
    before = torch_model.claim_losses(model, batch, VOCABULARY)

    with torch.compiler.set_stance("force_eager"):
        quick = torch_model.try_compile(model, batch, VOCABULARY)
        after = (quick or torch_model.claim_losses)(model, batch, VOCABULARY)

    assert (quick is not None) == compiles
    assert (quick is torch_model.claim_model_losses) == by_its_losses
    torch.testing.assert_close(after, before)


def test_a_model_that_compiling_changed_for_good_serves_no_longer():
    torch.manual_seed(1)
    model = Halving(nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY))
    batch = torch.randint(VOCABULARY, (ROWS, CONTEXT + 1))

    with torch.compiler.set_stance("force_eager"), pytest.raises(SystemExit):
        torch_model.try_compile(model, batch, VOCABULARY)


def answering(link, model, device, descriptors):
    """What a process that serves does until nobody asks any more."""
    hello = {"rows": ROWS, "context": CONTEXT, "vocabulary": VOCABULARY}
    with contextlib.suppress(ChannelClosed):
        torch_model.serve_requests(link, hello | {"device": device}, model, descriptors)


@pytest.mark.parametrize("device", DEVICES)
def test_questions_asked_ahead_are_answered_in_order_and_each_in_its_half(device):
    torch.manual_seed(1)
    model = Knowing(nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)).to(device)
    text = np.random.default_rng(1).integers(VOCABULARY, size=(6, ROWS, CONTEXT + 1))
    expected = [
        torch_model.claim_losses(model, torch.from_numpy(part).to(device), VOCABULARY)
        .cpu()
        .numpy()
        for part in text
    ]
    asks, question = sealed_memory.create_shared_memory(
        2 * text[:2].size, "inputs", writer=False
    )
    floats = ROWS * VOCABULARY
    says, answer = sealed_memory.create_shared_memory(
        2 * 4 * floats, "outputs", writer=True
    )
    inputs = np.frombuffer(question, "<u2").reshape(2, ROWS, CONTEXT + 1)
    outputs = np.frombuffer(answer, "<f4").reshape(2, floats)
    ours, theirs = map(Channel, socket.socketpair())
    job = threading.Thread(target=answering, args=(theirs, model, device, [asks, says]))
    job.start()
    assert ours.receive(60)[0]["say"] == "ready"

    def ask(part):
        inputs[part % 2] = text[part]
        ours.send({"say": "claim", "half": part % 2})

    if device == "cuda":
        ours.send({"say": "compile", "half": 0})
        assert ours.receive(300)[0] == {"say": "done"}
    ask(0)
    for part in range(6):
        if part < 5:
            ask(part + 1)
        assert ours.receive(60)[0] == {"say": "done"}
        found = outputs[part % 2, : ROWS * CONTEXT].reshape(ROWS, CONTEXT)
        np.testing.assert_allclose(found, expected[part], rtol=1e-4)
    inputs[0] = text[0]
    ours.send({"say": "audit", "half": 0, "positions": [CONTEXT - 1, 0, 3, 5]})
    assert ours.receive(60)[0] == {"say": "done"}
    logits = outputs[0].reshape(ROWS, VOCABULARY)
    ours.close()
    job.join(60)
    os.close(asks)
    os.close(says)
    assert not job.is_alive()
    there = logits[0].max() + np.log(np.exp(logits[0] - logits[0].max()).sum())
    loss = there - logits[0, text[0, 0, CONTEXT]]
    assert loss == pytest.approx(expected[0][0, CONTEXT - 1], rel=1e-4)
