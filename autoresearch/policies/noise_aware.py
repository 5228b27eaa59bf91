"""Noise-aware: explore along promising changes, keep only what fresh runs prove.

Two questions that greedy answers with one run are separate here.

Where to start from: the train.py with the best posterior mean (`posterior`). One run
is enough for that, and no gain is claimed: such a change is recorded as unresolved.

What to keep: a candidate becomes champion when its runs on fresh seeds are
significantly better than the champion's. The run that made it promising is left out of
the test, so there is no selection bias however promising candidates were picked. The
test is on all changes since the champion, so small gains add up until they are large
enough to prove, and a session has a few tests, not a hundred. A difference too large to
occur by chance in a hundred experiments is kept at once. A promising, unproven
candidate is tested at the end of the session, as a second look on new seeds.

Promises (measured in benchmarks/verdicts.py): at most one false champion expected in a
hundred experiments that change nothing. Zero variance: greedy's verdicts. Unknown
noise: nothing is kept. Drift: nothing is kept that did not run at the same time as the
champion.

Not covered: which of the changes along the line did it (`autoresearch ablate`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from autoresearch.experiment import (
    Champion,
    CodeSizeChange,
    History,
    Noise,
    Row,
    Scores,
    Verdict,
)
from autoresearch.policies import (
    NextRun,
    compute_gain,
    estimate_score_noise,
    has_earlier_runs,
)
from autoresearch.policies.greedy import GreedyPolicy
from autoresearch.stats import noise, posterior, quantiles
from autoresearch.stats.posterior import Posterior

BASELINE_RUNS = 3
# Degrees of freedom that the noise estimate needs. With fewer, three baseline runs may
# have agreed by chance, and what looks like three standard deviations may be one: the
# candidate runs again, unless it is far beyond that.
MIN_NOISE_DEGREES, EARLY_SINGLE_RUN_Z = 2, 4.5
MAX_CANDIDATE_RUNS = 6  # of one candidate
# Normal deviates. After one run: what a hundred experiments without effect do not reach
# by chance. After 1, 2, ... fresh runs: the boundaries of a sequential test, for a
# session that tests a few candidates, each several times.
SINGLE_RUN_Z = 3.0
SEQUENTIAL_BOUNDARIES_Z = (2.6, 2.1, 1.9, 1.8, 1.8)
PROMISING_Z = 2.5  # posterior gain over its standard deviation that starts a test
PROMISING_REMOVAL_Z = 1.0  # the same for a change that removes lines
FUTILITY_Z = 0.5  # below this, no further fresh runs
# A test costs about 1.5 runs, that is 1.5 * rate of gain. Without it, the next gains
# settle the question at no cost in about 5 / rate runs; if the session (of some 100
# runs) ends before, the gain at stake is lost. So: stake * 5 / rate / 100 > 1.5 * rate.
MIN_STAKE = 30.0
# Prior gain of a run, in noise units (from the mixture of `posterior`), and the runs
# that it counts for.
PRIOR_GAIN_RATE, PRIOR_RATE_RUNS = 0.45, 10
# Added to the degrees of freedom. Student's correction alone would need 20 standard
# deviations for the first large gains (three baseline runs leave 2 degrees of freedom)
# and cost a session 4 % of its gain. The measured rate of false keeps includes those
# that the milder correction causes.
PRIOR_DEGREES = 20
REMEASURE_INTERVAL = 30  # experiments per run of the champion until it runs again
REVERT_Z = 1.645  # normal deviate: the former champion was better, 95 % (one-sided)
MAX_REMOVAL_COST = 1.5  # noise units that a removal may cost, however much it removes
# Runs left of a session when the best unproven candidate gets its second look, and the
# posterior gain over its standard deviation that it needs. Its gain must also be more
# than the same runs would bring with new proposals.
PROOF_RUNS, SECOND_LOOK_Z = 3, 0.5
MIN_CONCURRENT_RUNS = 2  # champion runs during the candidate's, where scores drift


@dataclass(frozen=True, slots=True)
class CandidateStanding:
    """A candidate compared with the champion, in noise units, higher is better."""

    test_z: float  # of its fresh runs, or of its only run
    posterior_z: float  # posterior gain over its standard deviation
    stake: float  # posterior gain over the square of the session's gain per run


@dataclass(frozen=True, slots=True)
class NoiseAwarePolicy:
    """See the top of the file."""

    lower_is_better: bool = True
    gain_per_20_added_lines: float = 0.001
    # Posterior z that starts a test: a lower one proves smaller gains with more runs
    # (the curve: docs/decisions/0004-when-to-believe.md).
    promising_z: float = PROMISING_Z

    @property
    def greedy_policy(self) -> GreedyPolicy:
        """The policy for scores without noise."""
        return GreedyPolicy(self.lower_is_better, self.gain_per_20_added_lines)

    def choose_next_run(self, scores: Scores, history: History) -> NextRun:
        """Fresh seeds for a promising candidate, and for the champion in turn."""
        champion = history.champion
        if champion is None:
            return "candidate" if len(scores) < BASELINE_RUNS else "nothing"
        if not scores:
            return (
                "champion" if is_remeasurement_due(champion, history) else "candidate"
            )
        if not all(math.isfinite(score.value) for score in scores):
            return "nothing"
        known = estimate_score_noise(history)
        if known is None:  # one run of everything so far: a second one shows the noise
            better = (
                compute_gain(scores, champion, lower_is_better=self.lower_is_better) > 0
            )
            return "champion" if better and len(champion.values) == 1 else "nothing"
        if known.sd == 0 or len(scores) >= MAX_CANDIDATE_RUNS:
            return "nothing"
        return self.choose_further_run(scores, history, known)

    def choose_further_run(
        self, scores: Scores, history: History, known: Noise
    ) -> NextRun:
        """The next run of a candidate that has runs, where the noise is known."""
        champion = history.champion
        assert champion is not None
        price = self.compute_required_gain(
            history.change or CodeSizeChange(0, 0), known
        )
        standing = self.compute_standing(scores, history, known, price)
        runs = len(scores)
        unlearned = (
            runs == 1 < len(champion.values) and known.degrees < MIN_NOISE_DEGREES
        )
        if unlearned and SINGLE_RUN_Z <= standing.test_z < EARLY_SINGLE_RUN_Z:
            return "candidate"
        again = has_earlier_runs(scores, history)
        if is_proven(standing, runs + again):
            return "champion" if has_stale_champion(history) else "nothing"
        if runs + again > 1:
            is_promising = standing.posterior_z >= FUTILITY_Z
        elif price < 0:
            is_promising = standing.posterior_z >= PROMISING_REMOVAL_Z
        else:
            is_promising = (
                standing.posterior_z >= self.promising_z and standing.stake >= MIN_STAKE
            )
        if not is_promising:
            return "nothing"
        return "candidate" if len(champion.values) >= runs else "champion"

    def decide(
        self, scores: Scores, history: History, change: CodeSizeChange
    ) -> Verdict:
        """Keep what is significantly better, by more than its added lines cost."""
        champion = history.champion
        known = estimate_score_noise(history)
        if champion is None or (known is not None and known.sd == 0):
            return self.greedy_policy.decide(scores, history, change)
        won = compute_gain(scores, champion, lower_is_better=self.lower_is_better)
        if not math.isfinite(won):
            return Verdict("discard", "a score is not finite", scores, champion)
        if known is None:
            return decide_without_noise(won, scores, champion)
        price = self.compute_required_gain(change, known)
        standing = self.compute_standing(scores, history, known, price)
        times = "one run" if len(scores) == 1 else f"{len(scores)} runs"
        details = f"gain {won:.6f} in {times}, noise {known.sd:.6f} a run"
        if known.degrees < BASELINE_RUNS:
            details += f" (not yet sure: degrees of freedom {known.degrees:.0f})"
        if is_proven(standing, len(scores) + has_earlier_runs(scores, history)):
            if has_stale_champion(history):
                details += "; scores drift, the champion's runs are old"
                return Verdict("unresolved", f"unresolved: {details}", scores, champion)
            return Verdict("keep", details, scores, champion)
        if price > 0:
            details += f", {change.added_lines} added lines cost {price:.6f}"
        if standing.posterior_z > 0:
            return Verdict("unresolved", f"unresolved: {details}", scores, champion)
        return Verdict("discard", f"worse: {details}", scores, champion)

    def compute_required_gain(self, change: CodeSizeChange, known: Noise) -> float:
        """The gain a candidate needs, in the metric's units; negative for a removal.

        A removal may lose what as many added lines would have to gain, but no more than
        MAX_REMOVAL_COST standard deviations of a run.
        """
        net = change.added_lines - change.removed_lines
        price = self.gain_per_20_added_lines * net / 20
        return max(price, -MAX_REMOVAL_COST * known.sd)

    def compute_standing(
        self, scores: Scores, history: History, known: Noise, price: float
    ) -> CandidateStanding:
        """Test statistic, posterior and stake of a candidate.

        price: the gain it needs, in the metric's units.
        """
        champion = history.champion
        assert champion is not None
        unit = -known.sd if self.lower_is_better else known.sd
        known_levels = posterior.compute_posterior_state(history.rows, unit)
        found, shares = known_levels.posteriors, known_levels.weights
        values = [score.value / unit for score in scores]
        mean = fmean(champion.values) / unit
        reigning = found.get(champion.blob) or Posterior(mean, 1 / len(champion.values))
        start = found.get(scores[0].run.candidate.proposal.parent, reigning)
        before = found.get(scores[0].run.candidate.blob)
        if before is None:
            candidate = posterior.update_on_child_runs(
                start, fmean(values), len(values), shares
            )[1]
            voting = values[1:] or values
        else:  # a second look: all of its runs are fresh
            candidate = before.with_runs(fmean(values), len(values))
            voting = values
        price /= known.sd
        error = math.sqrt(1 / len(voting) + reigning.variance)
        z = (fmean(voting) - reigning.mean - price) / error
        ahead = candidate.mean - reigning.mean - price
        spread = math.sqrt(candidate.variance + reigning.variance)
        first = next(iter(found.values()), reigning)
        gained = max(reigning.mean, start.mean) - first.mean
        runs = sum(map(len, history.replicates))
        rate = (max(0.0, gained) + PRIOR_GAIN_RATE * PRIOR_RATE_RUNS) / (
            runs + PRIOR_RATE_RUNS
        )
        return CandidateStanding(
            quantiles.normal_quantile_from_t(z, known.degrees + PRIOR_DEGREES),
            ahead / spread,
            ahead / rate**2,
        )

    def find_champion_to_restore(self, history: History) -> Champion | None:
        """The former champion, if the posteriors now say that it was better."""
        champion = history.champion
        unit = compute_noise_unit(history, lower_is_better=self.lower_is_better)
        if champion is None or not history.former_champions or not unit:
            return None
        former = history.former_champions[-1]
        found = posterior.compute_posteriors(history.rows, unit)
        if champion.blob not in found or former.blob not in found:
            return None
        now, then = found[champion.blob], found[former.blob]
        z = (then.mean - now.mean) / math.sqrt(then.variance + now.variance)
        return former if z >= REVERT_Z else None

    def choose_closing_run(self, history: History, left: float) -> str | None:
        """The best unproven blob, while there is time to test it."""
        champion = history.champion
        unit = compute_noise_unit(history, lower_is_better=self.lower_is_better)
        if champion is None or not unit or left > PROOF_RUNS:
            return None
        found = posterior.compute_posteriors(history.rows, unit)
        head = posterior.find_best_blob(found)
        if head is None or head == champion.blob or champion.blob not in found:
            return None
        if sum(row.blob == head for row in history.rows) > 1:
            return None
        now, then = found[head], found[champion.blob]
        ahead, spread = now.mean - then.mean, math.sqrt(now.variance + then.variance)
        first = next(iter(found.values()))
        rate = max(0.0, now.mean - first.mean) / sum(map(len, history.replicates))
        worth = ahead >= SECOND_LOOK_Z * spread and ahead > rate * max(0.0, left)
        return head if worth else None

    def choose_parent(self, history: History, rows: Sequence[Row]) -> str | None:
        """The blob with the best posterior mean; None while the noise is unknown."""
        unit = compute_noise_unit(history, lower_is_better=self.lower_is_better)
        return (
            posterior.find_best_blob(posterior.compute_posteriors(rows, unit))
            if unit
            else None
        )


def decide_without_noise(won: float, scores: Scores, champion: Champion) -> Verdict:
    """The verdict while nothing has run twice, so that the noise is unknown."""
    if not won > 0:
        return Verdict("discard", f"worse by {abs(won):.6f}", scores, champion)
    why = f"unresolved: gain {won:.6f}, but nothing ran twice, so the noise is unknown"
    return Verdict("unresolved", why, scores, champion)


def compute_noise_unit(history: History, *, lower_is_better: bool) -> float | None:
    """The noise's sd, negative where lower is better; None: unknown, or no noise."""
    known = estimate_score_noise(history)
    if known is None or known.sd == 0:
        return None
    return -known.sd if lower_is_better else known.sd


def is_proven(standing: CandidateStanding, runs: int) -> bool:
    """Whether it is significantly better; runs: how many it has, and one more if it has
    an earlier experiment.

    After a single run the bar is higher (SINGLE_RUN_Z).
    """
    bar = (
        SINGLE_RUN_Z
        if runs == 1
        else SEQUENTIAL_BOUNDARIES_Z[min(runs - 1, len(SEQUENTIAL_BOUNDARIES_Z)) - 1]
    )
    return standing.test_z >= bar


def has_stale_champion(history: History) -> bool:
    """Whether scores drift and the champion has no recent runs to compare with."""
    champion = history.champion
    if (
        champion is None
        or noise.detect_drift(history.replicates, history.end_times) is None
    ):
        return False
    others = [
        max(times)
        for values, times in zip(history.replicates, history.end_times, strict=False)
        if times and values != champion.values
    ]
    runs = zip(history.replicates, history.end_times, strict=False)
    own = next((times for values, times in runs if values == champion.values), ())
    recent = sum(time > max(others, default=0.0) for time in own)
    return recent < MIN_CONCURRENT_RUNS


def is_remeasurement_due(champion: Champion, history: History) -> bool:
    """Whether it is time to run the champion again."""
    since = sum(row.number > champion.number for row in history.rows)
    return since >= REMEASURE_INTERVAL * len(champion.values)
