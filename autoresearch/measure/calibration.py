"""What an honest run does on this device, learned once from the first that is scored.

How much two processes' answers differ by rounding, and how long starting and answering
take. Later runs are measured against it: a guest that gets a few times what an honest
one took has no time to train while it should be starting or answering.

The file belongs to one apparatus, one kind of machine and one cage level. Losing it
costs nothing but the next run's strictness: that one calibrates again.
"""

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from autoresearch.atomic_file import write_whole
from autoresearch.devices import discovery
from autoresearch.experiment import Device
from autoresearch.lab.folder import Lab

# Before there is a calibration, in seconds.
STARTUP_SECONDS = 180.0  # train.py's imports and compilation
START_SECONDS = 180.0  # to build the model and load the weights
BATCH_SECONDS = 120.0  # to answer one batch
CONSISTENCY_SECONDS = 60.0  # to answer the probe after training
# A trained and a served model differ by kernels and compilers, on average in nats.
CONSISTENCY_NATS, CONSISTENCY_NATS_CALIBRATED = 0.1, 0.02
# Afterwards: so many times what the first run took, and at least so many seconds.
STARTUP_TIMES, STARTUP_MARGIN, STARTUP_SHARE = 2.0, 5.0, 0.05  # of the budget
START_TIMES, START_AT_LEAST = 3.0, 20.0
FIRST_TIMES, FIRST_AT_LEAST = 3.0, 10.0  # the first batch may compile
BATCH_TIMES, BATCH_AT_LEAST = 10.0, 5.0


@dataclass(frozen=True, slots=True)
class ServingTimes:
    """How long a model took to start, for its first batch, and for each later one."""

    start_seconds: float = START_SECONDS
    first_seconds: float = BATCH_SECONDS
    batch_seconds: float = BATCH_SECONDS


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the first scored run showed."""

    far_nats: float  # a difference beyond this is no rounding
    probe_nats: float  # the same, between trained and served
    startup_seconds: float  # of train.py, until it asked for the data
    start_seconds: float
    first_seconds: float
    batch_seconds: float

    @property
    def serving_limits(self) -> ServingTimes:
        """How long the next models may take."""
        return ServingTimes(
            max(START_AT_LEAST, START_TIMES * self.start_seconds),
            max(FIRST_AT_LEAST, FIRST_TIMES * self.first_seconds),
            max(BATCH_AT_LEAST, BATCH_TIMES * self.batch_seconds),
        )


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """Where a calibration lies, and so what it is valid for."""

    lab: Lab
    apparatus: str  # blob of prepare.py
    level: str  # of the cage
    slot: Device

    @property
    def path(self) -> Path:
        """One file per apparatus, machine and level."""
        known = {**cached_machine_facts(self.slot), "cage": self.level}
        text = json.dumps([known, self.apparatus], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.lab.state_folder / "audit" / f"{name}.json"

    def load_calibration(self) -> Calibration | None:
        """What the first run showed; None before it."""
        try:
            return Calibration(**json.loads(self.path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def save_calibration(
        self,
        far_nats: float,
        probe_nats: float,
        startup_seconds: float,
        pace: ServingTimes,
    ) -> None:
        """Write down what this run showed, for all later ones."""
        close = min(CONSISTENCY_NATS, max(CONSISTENCY_NATS_CALIBRATED, 4 * probe_nats))
        found = Calibration(far_nats, close, startup_seconds, **asdict(pace))
        self.path.parent.mkdir(exist_ok=True)
        write_whole(self.path, json.dumps(asdict(found)))

    def compute_startup_limit(self, budget_seconds: float) -> float:
        """How long train.py may take until it asks for the data.

        Twice the first run's, and a margin: what a start-up takes beyond need is
        training that nobody counts.
        """
        known = self.load_calibration()
        if known is None:
            return STARTUP_SECONDS
        margin = max(STARTUP_MARGIN, STARTUP_SHARE * budget_seconds)
        allowed = STARTUP_TIMES * known.startup_seconds + margin
        return min(STARTUP_SECONDS, allowed)


@functools.cache
def cached_machine_facts(slot: Device) -> dict[str, str]:
    """What the machine is; asking a GPU's driver takes a moment."""
    return discovery.collect_machine_facts(slot)
