"""Run -> Score: measure a model where train.py cannot reach.

For text, claim and audit. A fresh guest, given only the committed weights, *claims* the
loss of every next token; it has seen the answers and may lie. Then positions are drawn
and a second fresh guest, which gets each row only up to its cut, with training text as
filler, returns whole logits there; the harness does the softmax in float64. The score
is the mean claim corrected by the mean of (audit - claim): its expectation is what the
model can do causally and normalised, whatever was claimed. A difference too large to be
rounding refuses the run. Other labs send inputs without answers and score the outputs
with their own prepare.py in this process.

Not covered yet: positions drawn where a claimed gain sits, the dispersion gate's
calibration per device, and an evaluation guest that uses its seconds to train.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoresearch import channel, sandbox
from autoresearch.cage import Exited, Guest, OverLimit, Slot
from autoresearch.channel import Junk
from autoresearch.errors import Failed
from autoresearch.experiment import Failure, Kind, Run, Score
from autoresearch.sandbox import Bench, Progress

if TYPE_CHECKING:
    from autoresearch.metric import Array

START_SECONDS = 180.0  # to build the model and load the weights
BATCH_SECONDS = 120.0  # the same in both phases, or a slow ensemble could answer audits
BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65536}
AUDITS = 256
LARGEST_OUTPUT_BYTES = 64 << 20

# Gates, in bits per byte where not said otherwise.
LARGEST_CORRECTION = 0.001
LARGEST_ERROR = 0.0005
FAR_NATS, LARGEST_FAR_SHARE = 0.1, 0.01
# Compiled against eager kernels in bf16 differ by about 0.01 nats; a model that lost
# its weights differs by whole nats.
LARGEST_PROBE_NATS = 0.1


@dataclass(frozen=True, slots=True)
class Sheet:
    """The rows a model is asked about."""

    rows: "Array"  # uint16 (R, T+1)
    scored: "Array"  # bool (R, T)
    text_bytes: int
    vocabulary: int
    per_batch: int


def score(bench: Bench, run: Run, *, slot: Slot, split: str = "validation") -> Score:
    """Run -> Score, or Failed, or Stopped."""
    begun = time.monotonic()
    bench.watch(run.candidate, Progress("scoring", 0.0, 1.0))
    try:
        if bench.apparatus.causal:
            value, error = audited(bench, run, slot, split)
        else:
            value, error = answered(bench, run, slot, split), 0.0
    except TimeoutError:
        raise failed(run, "timeout", "the model took too long to answer") from None
    except OverLimit as over:
        kind: Kind = "out of memory" if over.what == "memory" else "no score"
        raise failed(run, kind, f"while scoring: {over}") from None
    except Junk as junk:
        raise failed(run, "no score", f"the model's answer: {junk}") from None
    finally:
        shutil.rmtree(run.weights.parent, ignore_errors=True)
    if not math.isfinite(value):
        raise failed(run, "no score", f"the metric came out as {value}")
    return Score(run, value, error, time.monotonic() - begun)


def failed(run: Run, kind: Kind, detail: str) -> Failed:
    """A failure of this run, with its log."""
    return Failed(Failure(run, kind, detail, run.log))


@contextmanager
def model(
    bench: Bench, run: Run, slot: Slot, hello: dict[str, Any], *shared: int
) -> Iterator[Guest]:
    """A fresh guest that serves the run's weights, ready to answer."""
    folder = run.weights.parent / "served"
    sandbox.furnish(folder, bench, run.candidate.proposal.source)
    file = channel.sealed(run.weights.read_bytes(), "weights")
    try:
        with sandbox.enter(bench, folder, slot) as guest:
            greeting = {"mode": "serve", "device": slot.device, **hello}
            try:
                guest.send(greeting, file, *shared)
                expect(guest, "ready", START_SECONDS)
                yield guest
            except Exited:
                raise not_served(run, guest) from None
    finally:
        os.close(file)


def not_served(run: Run, guest: Guest) -> Failed:
    """Why a model guest left. Only its own reason for not fitting is passed on:

    everything else it prints may hold validation text, and a proposer reads this.
    """
    for line in guest.log.whole().decode(errors="replace").splitlines():
        if line.startswith("MISFIT ") and not guest.asked:
            return failed(
                run,
                "not the model you trained",
                sandbox.last_line(line.removeprefix("MISFIT ").encode()),
            )
    return failed(run, "no score", "the model could not be built and served")


def expect(guest: Guest, word: str, limit_seconds: float) -> list[int]:
    """Wait for one word from the model guest; the descriptors that came with it."""
    message, descriptors = guest.receive(time.monotonic() + limit_seconds)
    if message.get("say") != word:
        raise Junk(f"not {word!r}")
    return descriptors


# -- labs whose prepare.py scores outputs ----------------------------------------------


def answered(bench: Bench, run: Run, slot: Slot, split: str) -> float:
    """Ask for the outputs on a split's inputs, and score them here."""
    question = json.dumps(bench.apparatus.inputs(split)).encode()
    sent = channel.sealed(question, "inputs")
    try:
        with model(bench, run, slot, {}) as guest:
            guest.asked = True
            guest.send({"say": "answer"}, sent)
            descriptors = expect(guest, "done", BATCH_SECONDS)
            if len(descriptors) != 1:
                raise Junk("no outputs")
            outputs = read_outputs(descriptors[0])
    finally:
        os.close(sent)
    try:
        return bench.apparatus.score(outputs, split)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise Junk(f"outputs that prepare.py cannot score ({error})") from None


def read_outputs(descriptor: int) -> Any:
    """The outputs a model guest sealed."""
    try:
        return json.loads(channel.unseal(descriptor, LARGEST_OUTPUT_BYTES))
    except (ValueError, RecursionError):
        raise Junk("outputs that are not JSON") from None
    finally:
        os.close(descriptor)


# -- text: claim and audit -------------------------------------------------------------


def audited(bench: Bench, run: Run, slot: Slot, split: str) -> tuple[float, float]:
    """(bits per byte, standard error of its correction)."""
    from autoresearch import metric

    sheet = sheet_of(bench, slot, split)
    claims = claimed(bench, run, slot, sheet)
    if not (claims >= -1e-6).all():
        raise Junk("losses that are negative or not finite")
    total_nats = float(claims[sheet.scored].sum(dtype="float64"))
    drawn = draw(sheet)
    found = opened(bench, run, slot, sheet, drawn)
    targets = [int(sheet.rows[row, cut]) for row, cut in drawn]
    import numpy as np

    try:
        truth = metric.losses(found, np.array(targets))
    except metric.NotAScore as odd:
        raise Junk(str(odd)) from None
    said = np.array([claims[row, cut - 1] for row, cut in drawn], dtype="float64")
    scored = int(sheet.scored.sum())
    return corrected(run, total_nats, scored, sheet.text_bytes, truth - said)


def corrected(
    run: Run, claimed_nats: float, scored: int, text_bytes: int, differences: "Array"
) -> tuple[float, float]:
    """The difference estimator and its gates: (score, standard error)."""
    from autoresearch.metric import bits_per_byte

    mean = float(differences.mean())
    spread = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    correction = bits_per_byte(mean * scored, text_bytes)
    error = bits_per_byte(spread * scored, text_bytes)
    far = float((abs(differences) > FAR_NATS).mean())
    if abs(correction) > LARGEST_CORRECTION:
        raise failed(
            run,
            "cheat",
            f"claims and audit differ by {correction:+.4f} on average: logits at t "
            "may depend only on the weights and on tokens up to t of the same row",
        )
    if far > LARGEST_FAR_SHARE or error > LARGEST_ERROR:
        raise failed(
            run,
            "cheat",
            f"{far:.0%} of the audited losses differ from the claims: the model "
            "looks ahead, at other rows, or keeps state between them",
        )
    return bits_per_byte(claimed_nats, text_bytes) + correction, error


def sheet_of(bench: Bench, slot: Slot, split: str) -> Sheet:
    """Cut a held-out split into rows; marks of documents are read but not scored."""
    from autoresearch import metric

    apparatus = bench.apparatus
    tokens, widths = apparatus.text(split)
    context = apparatus.context
    rows, inside = metric.rows(tokens, context, filler=int(tokens[0]))
    width = widths[rows[:, 1:]] * inside
    return Sheet(
        rows,
        width > 0,
        int(width.sum(dtype="int64")),
        apparatus.vocabulary,
        max(1, BATCH_TOKENS[slot.device] // context),
    )


@contextmanager
def asking(
    bench: Bench, run: Run, slot: Slot, sheet: Sheet, outputs_bytes: int
) -> Iterator[tuple[Guest, Any, Any]]:
    """A model guest with memory for questions and answers: (guest, in, out)."""
    import numpy as np

    context = sheet.rows.shape[1] - 1
    shape = (sheet.per_batch, context + 1)
    asks, question = channel.shared(2 * math.prod(shape), "inputs", writer=False)
    says, answer = channel.shared(outputs_bytes, "outputs", writer=True)
    hello = {"rows": sheet.per_batch, "context": context}
    hello["vocabulary"] = sheet.vocabulary
    try:
        with model(bench, run, slot, hello, asks, says) as guest:
            guest.asked = True
            inputs = np.frombuffer(question, dtype="<u2").reshape(shape)
            yield guest, inputs, np.frombuffer(answer, dtype="<f4")
    finally:
        os.close(asks)
        os.close(says)


def claimed(bench: Bench, run: Run, slot: Slot, sheet: Sheet) -> "Array":
    """Every row's claimed losses, float32 (R, T), after the served model was probed."""
    import numpy as np

    count, context = sheet.rows.shape[0], sheet.rows.shape[1] - 1
    claims = np.empty((count, context), dtype="<f4")
    size = sheet.per_batch
    with asking(bench, run, slot, sheet, 4 * size * context) as (guest, asks, says):
        guest.asked = False
        # A checkpoint from elsewhere brings no probe; nothing else rests on it.
        if run.weights.with_name("probe.f32").exists():
            compare_with_trained(bench, run, guest, asks, says)
        guest.asked = True
        for at in range(0, count, size):
            part = sheet.rows[at : at + size]
            asks[:] = 0
            asks[: len(part)] = part
            guest.send({"say": "claim"})
            expect(guest, "done", BATCH_SECONDS)
            # A private copy first: the guest could still be writing there.
            copy = says[: size * context].copy().reshape(size, context)
            claims[at : at + size] = copy[: len(part)]
    return claims


def compare_with_trained(
    bench: Bench, run: Run, guest: Guest, asks: Any, says: Any
) -> None:
    """A diagnostic on training text: does the served model do what was trained?"""
    import numpy as np

    context = asks.shape[1] - 1
    trained = np.frombuffer(run.weights.with_name("probe.f32").read_bytes(), "<f4")
    first = np.frombuffer(channel.view(bench.apparatus.training()), dtype="<u2")
    row = first[: context + 1]
    if len(trained) != context or len(row) != context + 1:
        raise Junk("a probe of another size")
    asks[:] = row
    guest.send({"say": "claim"})
    expect(guest, "done", BATCH_SECONDS)
    off = float(np.abs(says[:context].copy() - trained).mean())
    if not off <= LARGEST_PROBE_NATS:
        raise failed(
            run,
            "not the model you trained",
            f"on training text it is {off:.2f} nats a token off; usual causes: state "
            "that is in no parameter or buffer, or build_model() reads a global that "
            "training changes",
        )


def draw(sheet: Sheet) -> list[tuple[int, int]]:
    """Positions to audit, (row, cut), drawn after the claims are in our memory."""
    import numpy as np

    rng = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    places = np.flatnonzero(sheet.scored)
    chosen = rng.choice(places, size=min(AUDITS, len(places)), replace=False)
    context = sheet.scored.shape[1]
    return [(int(p) // context, int(p) % context + 1) for p in chosen]


def batches(drawn: list[tuple[int, int]], size: int) -> Iterator[list[int]]:
    """Indices into `drawn`: a row's shorter cuts first, never two of one batch.

    A longer prefix of a row contains the answer to a shorter one.
    """
    waiting = sorted(range(len(drawn)), key=lambda index: drawn[index][1])
    while waiting:
        batch: list[int] = []
        rest: list[int] = []
        rows: set[int] = set()
        for index in waiting:
            row = drawn[index][0]
            if len(batch) < size and row not in rows:
                batch.append(index)
            else:
                rest.append(index)
            rows.add(row)
        yield batch
        waiting = rest


def opened(
    bench: Bench, run: Run, slot: Slot, sheet: Sheet, drawn: list[tuple[int, int]]
) -> "Array":
    """Whole logits at the drawn positions, float32 (K, V), from a second guest."""
    import numpy as np

    size, context = sheet.per_batch, sheet.rows.shape[1] - 1
    vocabulary = sheet.vocabulary
    text = np.frombuffer(channel.view(bench.apparatus.training()), dtype="<u2")
    found = np.empty((len(drawn), vocabulary), dtype="<f4")
    rng = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    with asking(bench, run, slot, sheet, 4 * size * vocabulary) as (guest, asks, says):
        for batch in batches(drawn, size):
            starts = rng.integers(max(1, len(text) - context - 1), size=size)
            asks[:] = text[
                np.minimum(starts[:, None] + np.arange(context + 1), len(text) - 1)
            ]
            positions = [0] * size
            for line, index in enumerate(batch):
                row, cut = drawn[index]
                asks[line, :cut] = sheet.rows[row, :cut]
                positions[line] = cut - 1
            guest.send({"say": "audit", "positions": positions})
            expect(guest, "done", BATCH_SECONDS)
            copy = says[: size * vocabulary].copy().reshape(size, vocabulary)
            found[batch] = copy[: len(batch)]
    return found
