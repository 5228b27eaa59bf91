"""Run -> Score: evaluate a model outside the reach of train.py.

For text, claim and audit. A fresh process, given only the submitted weights, *claims*
the loss of every next token; it has seen the answers and may lie. Then positions are
drawn and a second fresh process, which gets each row only up to its cut, with training
text as filler, returns whole logits there; the harness computes the softmax in float64.
The score is the mean claim corrected by the mean of (audit - claim): its expectation is
what the model achieves causally and normalised, whatever was claimed (`audit`). A
difference too large for rounding fails the run. Other labs send inputs without answers
and score the outputs with their own prepare.py in this process.

The first run that is scored on a device calibrates it: how much honest answers differ,
and how long they take. Later processes get a few times that, so that none can train
while it should answer.

Not covered: a model that trains for the seconds it does get (docs/security.md says how
many), and two processes that communicate through the machine's timing.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from autoresearch import sealed_memory
from autoresearch.devices import gpu_specs
from autoresearch.experiment import Device, Kind, Run, Score
from autoresearch.lab.folder import Lab
from autoresearch.measure import compile_cache
from autoresearch.measure.calibration import (
    CONSISTENCY_NATS,
    CalibrationFile,
    ServingTimes,
)
from autoresearch.measure.model_process import expect_message, run_failure, serve_model
from autoresearch.measure.outputs_task import score_outputs_task
from autoresearch.measure.workbench import RunProgress, Workbench
from autoresearch.sandbox.process import LimitExceeded, ProcessExited, SandboxedProcess
from autoresearch.sealed_memory import ProtocolError

if TYPE_CHECKING:
    from autoresearch.data.bits_per_byte import Array


# After TIMED_BATCHES, a model is compiled if the rest would take LONG_SECONDS: compiled
# it takes half of that, and compiling takes 3 to 5 s where the code is lent. A model
# with new shapes compiles for 10 to 20 s, and gains on still longer texts only.
TIMED_BATCHES, LONG_SECONDS = 4, {"cuda": 10.0}
COMPILE_SECONDS = 120.0  # after that the claims are requested without compiling
LARGEST_CLAIM = 6e4  # in nats; logits of 1e4 cannot lose more, and half floats hold it

NOT_TRAINED = (
    "on a text neither had seen it is {:.2f} nats a token off; usual causes: state "
    "that is in no parameter or buffer, build_model() reads a global that training "
    "changes, or training that went on after the weights were submitted"
)


@dataclass(frozen=True, slots=True)
class EvaluationRows:
    """The rows a model is asked about."""

    rows: "Array"  # uint16 (R, T+1)
    scored_mask: "Array"  # bool (R, T)
    text_bytes: int
    vocabulary: int
    per_batch: int


def score_run(
    workbench: Workbench, run: Run, *, device: Device, split: str = "validation"
) -> Score:
    """Run -> Score. The run's files stay until `trainer.discard_runs`.

    Raises ExperimentFailed, RunStopped and LabError.
    """
    began = time.monotonic()
    workbench.apparatus.verify_unchanged()
    workbench.watch(run.candidate, RunProgress("scoring", 0.0, 1.0))
    try:
        if workbench.apparatus.causal:
            value, error = score_text_task(workbench, run, device, split)
        else:
            value, error = score_outputs_task(workbench, run, device, split), 0.0
    except TimeoutError:
        raise run_failure(run, "timeout", "the model took too long to answer") from None
    except LimitExceeded as exceeded:
        kind: Kind = "out of memory" if exceeded.resource == "memory" else "no score"
        raise run_failure(run, kind, f"while scoring: {exceeded}") from None
    except ProtocolError as broken:
        raise run_failure(run, "no score", f"the model's answer: {broken}") from None
    workbench.apparatus.verify_unchanged()
    if not math.isfinite(value):
        raise run_failure(run, "no score", f"the metric came out as {value}")
    return Score(run, value, error, time.monotonic() - began, time.time())


def add_holdout_score(workbench: Workbench, score: Score, *, device: Device) -> Score:
    """Add the score on the sealed third split, which no policy ever reads."""
    began = time.monotonic()
    value = score_run(workbench, score.run, device=device, split="holdout").value
    return replace(
        score, holdout=value, seconds=score.seconds + time.monotonic() - began
    )


# -- text: claim and audit -------------------------------------------------------------


def score_text_task(
    workbench: Workbench, run: Run, device: Device, split: str
) -> tuple[float, float]:
    """Score by claim and audit: (bits per byte, standard error of the correction)."""
    import numpy as np

    from autoresearch.data import bits_per_byte
    from autoresearch.measure import audit

    evaluation = load_evaluation_rows(workbench, device, split)
    calibration_file = locate_calibration(workbench, device)
    calibration = calibration_file.load_calibration()
    limits = calibration.serving_limits if calibration else ServingTimes()
    # The calibrating run compiles from nothing, as later ones may have to.
    lends = calibration is not None
    claims, on_probe, pace = collect_claims(
        workbench, run, device, evaluation, limits, lends=lends
    )
    if not ((claims >= -1e-6) & (claims < LARGEST_CLAIM)).all():
        raise ProtocolError("losses that are negative, not finite or absurd")
    rng = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    reference = load_reference_losses(workbench, evaluation, split)
    mask = evaluation.scored_mask
    probability = audit.compute_draw_probabilities(claims, mask, reference)
    count = audit.compute_sample_size(len(claims), device.device_type)
    drawn = audit.draw_audit_positions(probability, count, rng)
    truth = audit_losses(workbench, run, device, evaluation, drawn.positions, limits)
    claimed = claims.ravel()[drawn.positions].astype("float64")
    far_nats = calibration.far_nats if calibration else audit.FAR_NATS
    estimate = audit.estimate_correction(
        drawn, truth - claimed, int(mask.sum()), evaluation.text_bytes, far_nats
    )
    if why := audit.find_objection(estimate):
        raise run_failure(run, "cheat", why)
    off_nats = compute_trained_distance(run, on_probe)
    if not off_nats <= (calibration.probe_nats if calibration else CONSISTENCY_NATS):
        detail = NOT_TRAINED.format(off_nats)
        raise run_failure(run, "not the model you trained", detail)
    if calibration is None:
        far_nats = audit.calibrate_far_nats(estimate.largest_nats)
        cold_seconds = compile_cache.load_note(workbench.lab, "train").seconds
        startup_seconds = max(cold_seconds, run.startup_seconds)
        calibration_file.save_calibration(far_nats, off_nats, startup_seconds, pace)
    if split == "validation":
        save_claims(workbench, run, claims)
    nats = float(claims[mask].sum(dtype="float64"))
    value = bits_per_byte.bits_per_byte(nats, evaluation.text_bytes)
    return value + estimate.correction, estimate.error


def load_evaluation_rows(
    workbench: Workbench, device: Device, split: str
) -> EvaluationRows:
    """Cut a held-out split into rows; document marks are inputs but not scored."""
    from autoresearch.data import bits_per_byte

    apparatus = workbench.apparatus
    tokens, widths = apparatus.load_text(split)
    context = apparatus.context
    rows, inside = bits_per_byte.cut_rows(tokens, context, filler=int(tokens[0]))
    width = widths[rows[:, 1:]] * inside
    return EvaluationRows(
        rows,
        width > 0,
        int(width.sum(dtype="int64")),
        apparatus.vocabulary,
        gpu_specs.rows_at_a_time(
            context, apparatus.vocabulary, device.device_type, device.memory_gb
        ),
    )


@contextmanager
def serve_with_buffers(
    workbench: Workbench,
    run: Run,
    device: Device,
    evaluation: EvaluationRows,
    floats: int,
    allowed: ServingTimes,
    *,
    lends: bool = False,
) -> Iterator[tuple[SandboxedProcess, Any, Any]]:
    """Serve a model with shared memory for two questions, and two answers of `floats`.

    Yield (process, questions uint16 (2, per_batch, T+1), answers float32 (2, floats)).
    lends: give it the code that earlier processes compiled.
    """
    import numpy as np

    context = evaluation.rows.shape[1] - 1
    shape = (2, evaluation.per_batch, context + 1)
    question_fd, question = sealed_memory.create_shared_memory(
        2 * math.prod(shape), "inputs", writer=False
    )
    answer_fd, answer = sealed_memory.create_shared_memory(
        2 * 4 * floats, "outputs", writer=True
    )
    hello = {"rows": evaluation.per_batch, "context": context}
    hello["vocabulary"] = evaluation.vocabulary
    try:
        with serve_model(
            workbench, run, device, hello, allowed, question_fd, answer_fd, lends=lends
        ) as process:
            process.has_seen_held_out = True
            questions = np.frombuffer(question, dtype="<u2").reshape(shape)
            answers = np.frombuffer(answer, dtype="<f4").reshape(2, floats)
            yield process, questions, answers
    finally:
        os.close(question_fd)
        os.close(answer_fd)


def collect_claims(
    workbench: Workbench,
    run: Run,
    device: Device,
    evaluation: EvaluationRows,
    allowed: ServingTimes,
    *,
    lends: bool,
) -> tuple["Array", "Array", ServingTimes]:
    """Collect a model's claims on all rows and on the consistency row.

    Return (claims float32 (R, T), claims on the consistency row (T,) or (0,), the
    times). That row is inserted at a random place, where nothing tells it apart.
    """
    import numpy as np

    rows = evaluation.rows
    probe, at = np.frombuffer(read_consistency_row(run), "<u2"), len(rows)
    if len(probe):
        at = int.from_bytes(os.urandom(4), "little") % (len(rows) + 1)
        rows = np.insert(rows, at, probe, axis=0)
    whole = replace(evaluation, rows=rows)
    long_seconds = LONG_SECONDS.get(device.device_type)
    lends = lends and long_seconds is not None
    try:
        claims, took = request_claims(
            workbench, run, device, whole, allowed, long_seconds, lends=lends
        )
    except CompilationFailed:
        claims, took = request_claims(
            workbench, run, device, whole, allowed, None, lends=False
        )
    if not len(probe):
        return claims, np.empty(0, dtype="<f4"), took
    return np.delete(claims, at, axis=0), claims[at], took


class CompilationFailed(Exception):
    """A process that was told to compile has failed, or not finished in time."""


def request_claims(
    workbench: Workbench,
    run: Run,
    device: Device,
    evaluation: EvaluationRows,
    allowed: ServingTimes,
    long_seconds: float | None,
    *,
    lends: bool,
) -> tuple["Array", ServingTimes]:
    """Request one process's claims on all rows: (claims float32 (R, T), the times).

    It compiles the model if the rows would take more than `long_seconds`. That gives it
    unwatched time with text that it has seen; but another process is audited, and only
    processes that claim are lent the code that it compiles.
    """
    began, floats = (
        time.monotonic(),
        evaluation.per_batch * (evaluation.rows.shape[1] - 1),
    )
    with serve_with_buffers(
        workbench, run, device, evaluation, floats, allowed, lends=lends
    ) as (
        process,
        asks,
        says,
    ):
        start_seconds = time.monotonic() - began
        claims, pace, compiled = stream_claims(
            evaluation.rows, process, asks, says, allowed, long_seconds
        )
        if compiled:
            process.kill()
            compile_cache.store_compiled(
                workbench.lab, run.candidate.proposal, process.folder, "serve"
            )
    return claims, ServingTimes(start_seconds, pace[0], median(pace))


def stream_claims(
    rows: "Array",
    process: SandboxedProcess,
    asks: Any,
    says: Any,
    allowed: ServingTimes,
    long_seconds: float | None,
) -> tuple["Array", list[float], bool]:
    """Return (claims float32 (R, T), seconds of each batch, whether it compiled).

    Asks one batch ahead of the answers, so that the GPU never waits.
    """
    import numpy as np

    size, context = asks.shape[1], asks.shape[2] - 1
    claims = np.empty((len(rows), context), dtype="<f4")
    pace: list[float] = []
    compiled = False

    def ask(start: int) -> None:
        half, part = start // size % 2, rows[start : start + size]
        asks[half] = 0
        asks[half, : len(part)] = part
        process.send({"say": "claim", "half": half})

    ask(0)
    left, asked_at = allowed.first_seconds, time.monotonic()
    for start in range(0, len(rows), size):
        half, after = start // size % 2, start + size
        compiles = start == TIMED_BATCHES * size and is_worth_compiling(
            rows[after:], size, pace, long_seconds
        )
        if after < len(rows) and not compiles:
            ask(after)
        expect_message(process, "done", left)
        pace.append(time.monotonic() - asked_at)
        # A private copy first: the process could still write there.
        copy = says[half].copy().reshape(size, context)
        claims[start:after] = copy[: len(rows) - start]
        if compiles:
            request_compilation(process, half)
            compiled = True
            ask(after)
        left, asked_at = allowed.batch_seconds, time.monotonic()
    return claims, pace, compiled


def is_worth_compiling(
    rows: "Array", size: int, pace: list[float], long_seconds: float | None
) -> bool:
    """Whether so many rows are left that compiling pays."""
    if long_seconds is None or not len(rows):
        return False
    return len(rows) / size * median(pace[1:]) > long_seconds


def request_compilation(process: SandboxedProcess, half: int) -> None:
    """Wait until a process has compiled its model on the rows of a half."""
    process.send({"say": "compile", "half": half})
    try:
        expect_message(process, "done", COMPILE_SECONDS)
    except (TimeoutError, ProcessExited, LimitExceeded):
        raise CompilationFailed from None


def read_consistency_row(run: Run) -> bytes:
    """Read the consistency row of the trained model; b"" for a foreign checkpoint."""
    path = run.weights.with_name("probe.u2")
    return path.read_bytes() if path.exists() else b""


def compute_trained_distance(run: Run, on_probe: "Array") -> float:
    """Mean difference of the served and the trained model's losses, in nats."""
    import numpy as np

    if not len(on_probe):
        return 0.0
    trained = np.frombuffer(run.weights.with_name("probe.f4").read_bytes(), "<f4")
    return float(np.abs(on_probe.astype("float64") - trained).mean())


def batch_audit_cuts(drawn: list[tuple[int, int]], size: int) -> Iterator[list[int]]:
    """Batch indices into `drawn` (row, cut): a row's shorter cuts first, one a batch.

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


def audit_losses(
    workbench: Workbench,
    run: Run,
    device: Device,
    evaluation: EvaluationRows,
    positions: "Array",
    allowed: ServingTimes,
) -> "Array":
    """Losses at flat positions, float64 (K,), from a second process's logits."""
    import numpy as np

    from autoresearch.data import bits_per_byte

    size, context = evaluation.per_batch, evaluation.rows.shape[1] - 1
    vocabulary = evaluation.vocabulary
    drawn = [(int(at) // context, int(at) % context + 1) for at in positions]
    text = np.frombuffer(
        sealed_memory.map_read_only(workbench.apparatus.seal_training_data()),
        dtype="<u2",
    )
    losses = np.empty(len(drawn))
    rng = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    with serve_with_buffers(
        workbench, run, device, evaluation, size * vocabulary, allowed
    ) as (process, (question, _), (answer, _)):
        left = allowed.first_seconds
        for batch in batch_audit_cuts(drawn, size):
            starts = rng.integers(max(1, len(text) - context - 1), size=size)
            question[:] = text[
                np.minimum(starts[:, None] + np.arange(context + 1), len(text) - 1)
            ]
            cuts = [0] * size
            for line, index in enumerate(batch):
                row, cut = drawn[index]
                question[line, :cut] = evaluation.rows[row, :cut]
                cuts[line] = cut - 1
            process.send({"say": "audit", "half": 0, "positions": cuts})
            expect_message(process, "done", left)
            left = allowed.batch_seconds
            copy = answer.copy().reshape(size, vocabulary)
            targets = np.array([int(evaluation.rows[drawn[i]]) for i in batch])
            try:
                losses[batch] = bits_per_byte.compute_token_losses(
                    copy[: len(batch)], targets
                )
            except bits_per_byte.InvalidLogits as error:
                raise ProtocolError(str(error)) from None
    return losses


# -- state from earlier runs -----------------------------------------------------------


def locate_calibration(workbench: Workbench, device: Device) -> CalibrationFile:
    """Return the calibration file of a device."""
    return CalibrationFile(
        workbench.lab, workbench.apparatus.blob, workbench.backend.level, device
    )


def load_reference_losses(
    workbench: Workbench, evaluation: EvaluationRows, split: str
) -> "Array":
    """Load losses to compare claims with, (R, T): the champion's, or unigram losses."""
    import numpy as np

    from autoresearch.measure import audit

    path = workbench.lab.state_folder / "claims" / "champion.f2"
    if split == "validation" and path.exists():
        losses = np.fromfile(path, dtype="<f2")
        if losses.size == evaluation.scored_mask.size:
            return np.asarray(
                losses.reshape(evaluation.scored_mask.shape).astype("float64")
            )
    text = np.frombuffer(
        sealed_memory.map_read_only(workbench.apparatus.seal_training_data()),
        dtype="<u2",
    )
    sample = text[: 1 << 22]
    return audit.compute_unigram_losses(
        sample, evaluation.rows[:, 1:], evaluation.vocabulary
    )


def save_claims(workbench: Workbench, run: Run, claims: "Array") -> None:
    """Save the claims of a scored run until its verdict."""
    number = run.candidate.proposal.number
    folder = workbench.lab.state_folder / "claims"
    folder.mkdir(exist_ok=True)
    half = folder / f"{number}-{run.seed}.half"  # one experiment may run on two devices
    claims.astype("<f2").tofile(half)
    half.replace(folder / f"{number}.f2")


def settle_claims(lab: Lab, number: int, *, kept: bool) -> None:
    """After a verdict, keep the claims of a champion as the next reference."""
    path = lab.state_folder / "claims" / f"{number}.f2"
    with contextlib.suppress(FileNotFoundError):
        if kept:
            path.replace(path.with_name("champion.f2"))
        else:
            path.unlink()
