"""Limits for a device, calibrated by the first run that is scored on it.

How much the answers of two processes differ by rounding, and how long starting and
answering take. Later runs are limited to a few times that: too little to train while
they should be starting or answering.

The file belongs to one apparatus, one kind of machine and one sandbox level. If it is
lost, the next run has the uncalibrated limits and calibrates again.
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
STARTUP_SECONDS = 180.0  # of train.py, for imports and compilation
START_SECONDS = 180.0  # to build the model and load the weights
BATCH_SECONDS = 120.0  # to answer one batch
CONSISTENCY_SECONDS = 60.0  # to answer the probe after training
# A trained and a served model differ by kernels and compilers, on average in nats.
CONSISTENCY_NATS, CONSISTENCY_NATS_CALIBRATED = 0.1, 0.02
# After it: multiples of what the first run took, and minima in seconds.
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
    """What was measured in the first scored run."""

    far_nats: float  # a larger difference is not rounding
    probe_nats: float  # the same, on average, between the trained and the served model
    startup_seconds: float  # of train.py, until it asked for the data
    start_seconds: float
    first_seconds: float
    batch_seconds: float

    @property
    def serving_limits(self) -> ServingTimes:
        """The limits for the next models."""
        return ServingTimes(
            max(START_AT_LEAST, START_TIMES * self.start_seconds),
            max(FIRST_AT_LEAST, FIRST_TIMES * self.first_seconds),
            max(BATCH_AT_LEAST, BATCH_TIMES * self.batch_seconds),
        )


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """The file of a calibration, and what it is valid for."""

    lab: Lab
    apparatus: str  # blob of prepare.py
    level: str  # of the sandbox
    device: Device

    @property
    def path(self) -> Path:
        """One file per apparatus, machine and level."""
        facts = {**cached_machine_facts(self.device), "cage": self.level}
        text = json.dumps([facts, self.apparatus], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.lab.state_folder / "audit" / f"{name}.json"

    def load_calibration(self) -> Calibration | None:
        """Load what the first run showed; None before it."""
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
        """Save what this run showed, for all later ones."""
        limit_nats = min(
            CONSISTENCY_NATS, max(CONSISTENCY_NATS_CALIBRATED, 4 * probe_nats)
        )
        calibration = Calibration(far_nats, limit_nats, startup_seconds, **asdict(pace))
        self.path.parent.mkdir(exist_ok=True)
        write_whole(self.path, json.dumps(asdict(calibration)))

    def compute_startup_limit(self, budget_seconds: float) -> float:
        """Compute how many seconds train.py may take until it requests the data.

        Twice the first run's, and a margin: a longer start-up could be training outside
        the budget.
        """
        calibration = self.load_calibration()
        if calibration is None:
            return STARTUP_SECONDS
        margin = max(STARTUP_MARGIN, STARTUP_SHARE * budget_seconds)
        allowed = STARTUP_TIMES * calibration.startup_seconds + margin
        return min(STARTUP_SECONDS, allowed)


@functools.cache
def cached_machine_facts(device: Device) -> dict[str, str]:
    """Collect the facts of the machine once: a GPU's driver answers slowly."""
    return discovery.collect_machine_facts(device)
