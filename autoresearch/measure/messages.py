"""What travels between the loop and a device: plain values that can be pickled.

    RunRequest --pool, worker--> RunResult | RunLost

The unit of work is one run. Whatever needs the ledger (the seed, the runs to compare
with, the champion's source) is in the request when it leaves, and whatever the ledger
or a person has to hear comes back in the result.
"""

from dataclasses import dataclass

from autoresearch.experiment import Candidate, Device, Failure, Score
from autoresearch.measure.workbench import RunTerms
from autoresearch.stats.early_stopping import Pruner


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Train a candidate once and score it; or score a trained run on the holdout."""

    id: int  # unique within a session
    candidate: Candidate
    seed: int
    terms: RunTerms
    holdout: bool = False  # score the holdout too, and keep nothing of the run
    pruner: Pruner | None = None  # None: the run goes on to its end
    paces: tuple[float, ...] = ()  # tokens per second of the champion's runs
    score: Score | None = (
        None  # given: nothing is trained, this run's holdout is scored
    )


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the person, said once a session for each `about`."""

    words: str
    about: str


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a request ended, and where."""

    request: RunRequest
    outcome: Score | Failure
    device: Device
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class RunLost:
    """The machine went away before the run ended. The run is made again."""

    request: RunRequest
    why: str
