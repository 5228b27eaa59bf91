"""`search`: an optimiser over the constants of the champion's train.py. Offline, free.

Two choices per proposal. *Which constant*: a bandit (UCB) over the constants, from what
changing each has gained in this ledger, with a prior for names that usually matter.
*Which value*: Optuna's TPE (Bergstra et al. 2011, "Algorithms for Hyper-Parameter
Optimization") over that constant alone, from every experiment that differs from the
champion in nothing else, whoever proposed it. Until a constant has a few results there
is nothing to model, and bold steps are tried first: a factor, then the way that helped.

Promises: learns from every ledger row; a failure is infeasible, never a bad number;
never proposes what the ledger has; rebuilt from the ledger, so a restart changes
nothing. Not covered: effects of two constants together, and anything but constants.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autoresearch.errors import LabError
from autoresearch.experiment import Proposal, Row
from autoresearch.git import compute_blob_id
from autoresearch.lab import constants, constraints
from autoresearch.lab.constants import Constant, Value
from autoresearch.records.ledger import Ledger
from autoresearch.records.queries import adjusted_rows
from autoresearch.stats.history import compute_change_effects

if TYPE_CHECKING:
    import optuna

# What usually moves a training score most, first. Only an order to begin with.
WORDS_BY_IMPORTANCE = (
    "LR",
    "RATE",
    "BATCH",
    "DEPTH",
    "WIDTH",
    "ASPECT",
    "DIM",
    "WARMDOWN",
    "DECAY",
)
MIN_TPE_RESULTS = 4  # results of one constant before a model of it says more than steps
BOLD_FACTOR, FINE_FACTOR = 2.0, 1.3  # factors of a first and of a later step
UCB_EXPLORATION = 1.0
MAX_RANDOM_DRAWS = 40  # values to draw before calling a constant used up


@dataclass
class ConstantResults:
    """What changing one constant has brought so far."""

    points: list[tuple[Value, float | None]] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)  # against what it started from
    count: int = 0


class Search:
    """Proposes one changed constant at a time (program.md may allow more)."""

    name = "search"
    exhausted = False

    def __init__(self, seed: int = 0, max_constants: int = 1) -> None:
        require_optuna()
        self._seed = seed
        self._max_constants = max_constants
        self._values_by_blob: dict[str, dict[str, Value]] = {}
        self._skeleton_by_blob: dict[str, str] = {}

    def propose(self, ledger: Ledger) -> Proposal | None:
        """A new value for the constant that promises most; None if all are used up."""
        start = ledger.starting_point
        if start is None:
            return None
        source = ledger.load_source(start.blob)
        rows = adjusted_rows(ledger)
        taken = {
            constraints.fingerprint_code(p.source) for p in ledger.load_open_proposals()
        }
        rng = random.Random(f"{self._seed}:{len(rows)}:{len(taken)}:{start.blob}")
        knobs = {c.name: c for c in constants.parse_constants(source) if not c.is_fixed}
        history = self._collect_results(ledger, start.blob, knobs, rows)
        for name in rank_constants(knobs, history, rng):
            for value, reason in self._rank_values(
                knobs[name], history[name], ledger, rng
            ):
                changed = {name: value}
                if self._max_constants > 1:
                    changed |= add_companions(
                        knobs, history, name, self._max_constants - 1, rng
                    )
                text = constants.replace_constants(source, changed)
                code = constraints.fingerprint_code(text)
                known = ledger.find_same_code(code, start.blob, None) is not None
                if (
                    known
                    or code in taken
                    or code == constraints.fingerprint_code(source)
                ):
                    continue
                title = ", ".join(
                    format_change(knobs[n], v) for n, v in changed.items()
                )
                return Proposal(None, title, text, start.blob, self.name, reason)
        return None

    # -- memory ------------------------------------------------------------------------

    def _collect_results(
        self,
        ledger: Ledger,
        blob: str,
        knobs: dict[str, Constant],
        rows: Sequence[Row],
    ) -> dict[str, ConstantResults]:
        """Per constant: results near the champion in this series, and gains ever."""
        history = {name: ConstantResults() for name in knobs}
        here, shape = self._read_constants(ledger, blob)
        sign = 1.0 if ledger.lower_is_better else -1.0
        effect = compute_change_effects(rows)
        series = ledger.series or ledger.find_last_series()
        for row in rows:
            if row.kind == "refused" or row.kind == "duplicate" or not row.parent:
                continue
            there, theirs = self._read_constants(ledger, row.blob)
            before, _ = self._read_constants(ledger, row.parent)
            changed = [n for n in there if before.get(n) != there[n] and n in history]
            for name in changed:
                history[name].count += 1
                if row.number in effect:
                    gain = -sign * effect[row.number]
                    history[name].gains.append(gain / len(changed))
            if theirs == shape and row.series == series:
                apart = [n for n in there if here.get(n) != there[n]]
                if len(apart) == 1 and apart[0] in history:
                    history[apart[0]].points.append((there[apart[0]], row.value))
        # What waits, or runs on another device, is being tried as well.
        for waiting in (
            proposal for proposal in ledger.load_open_proposals() if proposal.parent
        ):
            there, _ = self._read_constants(ledger, compute_blob_id(waiting.source))
            before, _ = self._read_constants(ledger, waiting.parent)
            for name in (name for name in there if name in history):
                history[name].count += before.get(name) != there[name]
        return history

    def _read_constants(
        self, ledger: Ledger, blob: str
    ) -> tuple[dict[str, Value], str]:
        if blob not in self._values_by_blob:
            try:
                source = ledger.load_source(blob)
                self._values_by_blob[blob] = constants.constant_values(source)
                self._skeleton_by_blob[blob] = constraints.fingerprint_code(
                    constants.blank_constants(source)
                )
            except (SyntaxError, ValueError, RecursionError):
                self._values_by_blob[blob], self._skeleton_by_blob[blob] = (
                    {},
                    "not Python",
                )
        return self._values_by_blob[blob], self._skeleton_by_blob[blob]

    # -- values ------------------------------------------------------------------------

    def _rank_values(
        self, knob: Constant, tried: ConstantResults, ledger: Ledger, rng: random.Random
    ) -> list[tuple[Value, str]]:
        """Values to try for one constant, best first, each with its reason."""
        done = {value for value, _ in tried.points} | {knob.value}
        if knob.choices:
            rest = [value for value in knob.choices if value not in done]
            rng.shuffle(rest)
            return [(value, f"{knob.name} untried at {value!r}") for value in rest]
        found = propose_steps(knob, tried, rng, lower_is_better=ledger.lower_is_better)
        if len(tried.points) >= MIN_TPE_RESULTS:
            values = self._sample_tpe(knob, tried, ledger)
            found = [
                (v, f"TPE over {len(tried.points)} results") for v in values
            ] + found
        return [(value, why) for value, why in found if value not in done]

    def _sample_tpe(
        self, knob: Constant, tried: ConstantResults, ledger: Ledger
    ) -> list[Value]:
        """What TPE asks for next, a few times over, for one constant."""
        import optuna

        start = ledger.starting_point
        assert start is not None
        assert knob.low is not None
        assert knob.high is not None
        direction = "minimize" if ledger.lower_is_better else "maximize"
        sampler = optuna.samplers.TPESampler(
            seed=self._seed + len(tried.points), n_startup_trials=1
        )
        study = optuna.create_study(direction=direction, sampler=sampler)
        spread = optuna.distributions.FloatDistribution(
            knob.low, knob.high, log=knob.is_log_scale
        )
        mean = sum(start.values) / len(start.values)
        for value, score in [(knob.value, mean), *tried.points]:
            if knob.low <= float(value) <= knob.high:
                study.add_trial(
                    make_optuna_trial(knob.name, float(value), score, spread)
                )
        asked = [study.ask({knob.name: spread}) for _ in range(4)]
        return [round_value(knob, trial.params[knob.name]) for trial in asked]


def require_optuna() -> None:
    """LabError when the optimiser is not installed."""
    try:
        import optuna
    except ImportError:
        raise LabError(
            "proposer 'search' needs optuna. Next: pip install -e '.[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def make_optuna_trial(
    name: str,
    value: float,
    score: float | None,
    spread: "optuna.distributions.FloatDistribution",
) -> "optuna.trial.FrozenTrial":
    """A ledger result as Optuna knows it; a failure is a failed trial."""
    import optuna

    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.FAIL if score is None else states.COMPLETE,
        value=score,
        params={name: value},
        distributions={name: spread},
    )


def rank_constants(
    knobs: dict[str, Constant], history: dict[str, ConstantResults], rng: random.Random
) -> list[str]:
    """The constants, most promising first: what they gained, plus curiosity."""
    total = 1 + sum(tried.count for tried in history.values())
    every = [gain for tried in history.values() for gain in tried.gains if gain > 0]
    unit = max(every, default=0.0) or 1.0

    def promise(name: str) -> float:
        tried = history[name]
        best = max([0.0, *tried.gains]) / unit
        # A gain is worth less each time it was followed by nothing.
        late = 0.5 ** max(0, len(tried.gains) - 1 - find_last_gain(tried.gains))
        curious = UCB_EXPLORATION * math.sqrt(math.log(total + 1) / (tried.count + 0.5))
        return (
            best * late + curious * (1 + prior_importance(name)) + 0.01 * rng.random()
        )

    return sorted(knobs, key=promise, reverse=True)


def find_last_gain(gains: Sequence[float]) -> int:
    """Where the last positive gain stands; before the first when there is none."""
    return max((i for i, gain in enumerate(gains) if gain > 0), default=-1)


def prior_importance(name: str) -> float:
    """How much a constant of this name usually matters, 0 to 1."""
    words = name.split("_")
    for place, word in enumerate(WORDS_BY_IMPORTANCE):
        if word in words:
            return 1 - place / len(WORDS_BY_IMPORTANCE)
    return 0.0


def propose_steps(
    knob: Constant, tried: ConstantResults, rng: random.Random, *, lower_is_better: bool
) -> list[tuple[Value, str]]:
    """Steps away from the champion's value: bold at first, on where it helped."""
    gained = [gain > 0 for gain in tried.gains]
    up = rng.random() < 0.5
    worse = [float(value) > float(knob.value) for value, _ in tried.points]
    if worse and all(worse):
        up = False
    elif worse and not any(worse):
        up = True
    factor = BOLD_FACTOR if not any(gained) and len(tried.points) < 2 else FINE_FACTOR
    found: list[tuple[Value, str]] = []
    for size in (factor, math.sqrt(factor), factor * factor, 1.1):
        for way in (up, not up):
            value = round_value(knob, step_value(knob, size if way else 1 / size))
            why = (
                "untried" if not tried.points else f"{len(tried.points)} results so far"
            )
            found.append(
                (value, f"{knob.name}: {why}; {'up' if way else 'down'} a step")
            )
    for _ in range(MAX_RANDOM_DRAWS):
        found.append(
            (
                round_value(knob, sample_value(knob, rng)),
                f"{knob.name}: anywhere in range",
            )
        )
    return found


def step_value(knob: Constant, factor: float) -> float:
    """The champion's value, a step away on the scale that suits it."""
    value = float(knob.value)
    assert knob.low is not None
    assert knob.high is not None
    if knob.is_log_scale and value > 0:
        return value * factor
    if 0.5 < value < 1 and knob.high <= 1:
        return 1 - (1 - value) / factor
    share = 0.25 * math.log2(factor) if factor != 1 else 0.0
    return value + share * (knob.high - knob.low)


def sample_value(knob: Constant, rng: random.Random) -> float:
    """Any value of the range."""
    assert knob.low is not None
    assert knob.high is not None
    if knob.is_log_scale and knob.low > 0:
        return math.exp(rng.uniform(math.log(knob.low), math.log(knob.high)))
    return rng.uniform(knob.low, knob.high)


def round_value(knob: Constant, value: float) -> Value:
    """Inside the range, of the constant's type, and as a person would write it."""
    assert knob.low is not None
    assert knob.high is not None
    value = min(max(value, knob.low), knob.high)
    if isinstance(knob.value, int):
        if "**" in knob.spelling and value > 0:
            return int(2 ** round(math.log2(value)))
        whole = round(value)
        return int(constants.round_significant(whole)) if whole > 100 else int(whole)
    if 0.9 < value < 1:
        return round(1 - constants.round_significant(1 - value), 6)
    return constants.round_significant(value)


def add_companions(
    knobs: dict[str, Constant],
    history: dict[str, ConstantResults],
    name: str,
    most: int,
    rng: random.Random,
) -> dict[str, Value]:
    """Further constants to change along, where program.md allows more than one."""
    others = [n for n in rank_constants(knobs, history, rng) if n != name][
        : rng.randint(0, most)
    ]
    found: dict[str, Value] = {}
    for other in others:
        knob = knobs[other]
        if knob.choices:
            found[other] = rng.choice(knob.choices)
        else:
            found[other] = round_value(
                knob, step_value(knob, rng.choice((FINE_FACTOR, 1 / FINE_FACTOR)))
            )
    return found


def format_change(knob: Constant, value: Value) -> str:
    """`MATRIX_LR 0.04 -> 0.05`"""
    return f"{knob.name} {knob.spelling} -> {constants.format_value(value, knob)}"
