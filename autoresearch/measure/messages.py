"""Messages between the loop and a device: plain values that can be pickled.

    RunRequest --pool, worker--> RunResult | RunLost

The unit of work is one run. A request holds everything that is read from the ledger
(the seed, the runs to compare with, the champion's source); a result holds everything
that is written to the ledger or shown to the user.
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
    holdout: bool = False  # score the holdout too, and delete the weights
    pruner: Pruner | None = None  # None: the run goes on to its end
    paces: tuple[float, ...] = ()  # tokens per second of the champion's runs
    # Not None: nothing is trained; the run of this score is scored on the holdout.
    score: Score | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the user, shown once a session for each `about`."""

    words: str
    about: str


@dataclass(frozen=True, slots=True)
class RunResult:
    """The outcome of a request, and the device it ran on."""

    request: RunRequest
    outcome: Score | Failure
    device: Device
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class RunLost:
    """The machine went away before the run ended. The request is sent again."""

    request: RunRequest
    why: str
