"""Where runs of a lab happen: its apparatus, its terms, its sandbox.

`Workbench.open` is how every command gets one: the loop, `check`, `score`,
`verify-ledger`, the exploits and the benchmarks.
"""

from collections.abc import Callable
from dataclasses import dataclass

from autoresearch.data import corpus
from autoresearch.devices import discovery
from autoresearch.devices.nvml import Nvml
from autoresearch.experiment import Candidate, Slot
from autoresearch.git import Notebook
from autoresearch.lab.apparatus import Apparatus, load
from autoresearch.lab.folder import Lab
from autoresearch.lab.program import Program
from autoresearch.measure.warm_pool import Waiting
from autoresearch.sandbox import selftest
from autoresearch.sandbox.process import ResourceLimits, StopFlag, SandboxBackend
from autoresearch.sandbox.selftest import HostPaths

FIRST_WALL_SECONDS = 3600.0  # of a token budget, until the champion says more


@dataclass(frozen=True, slots=True)
class Terms:
    """What every run of a series is granted."""

    budget_seconds: float | None  # None: a token budget holds
    budget_tokens: int | None  # None: a time budget holds
    tolerance_seconds: float
    wall_seconds: float  # of a token budget, which has no clock of its own
    limits: ResourceLimits
    readonly: tuple[tuple[str, bytes], ...] = ()

    @property
    def last_second(self) -> float:
        """When a run that has not handed in its weights is killed."""
        if self.budget_seconds is None:
            return self.wall_seconds
        return self.budget_seconds + self.tolerance_seconds

    @property
    def last_second_granted(self) -> str:
        """What the last seconds are made of, to be read by whoever ran out of them."""
        if self.budget_seconds is None:
            return ""
        more = f"{self.tolerance_seconds:g} to hand in the weights"
        return f" (budget_seconds {self.budget_seconds:g}, and {more})"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: for views, and claimed by the run itself."""

    phase: str  # "starting", "training" or "scoring"
    seconds: float
    share: float
    loss: float | None = None  # None: it has not said
    tokens: int = 0


Watch = Callable[[Candidate, Progress], None]


@dataclass(frozen=True, slots=True)
class Workbench:
    """Where runs of a lab happen, and what they are given."""

    lab: Lab
    apparatus: Apparatus
    terms: Terms
    stop: StopFlag
    watch: Watch
    walls: SandboxBackend
    nvml: Callable[[Slot], Nvml | None] = discovery.nvml_of  # None: no GPU to ask
    waiting: Waiting | None = None  # None: every guest starts when it is needed

    @classmethod
    def open(
        cls,
        lab: Lab,
        *,
        stop: StopFlag | None = None,
        watch: "Watch | None" = None,
        found: Apparatus | None = None,
        device: Slot | None = None,
    ) -> "Workbench":
        """Load a lab's apparatus and program, build its sandbox and test it.

        `found`: the apparatus, where it is loaded already. `device`: what the sandbox
        is tested with; the first of this machine where none is named. Raises LabError.
        """
        found = found or load(lab, Notebook(lab.folder))
        program = lab.program()
        walls = selftest.require_backend(
            host_paths(lab), program.cage, device or devices_for(found)[0]
        )
        return cls(
            lab,
            found,
            terms_of(program, read_readonly(lab, program)),
            stop or StopFlag(),
            watch or (lambda candidate, progress: None),
            walls,
        )


def host_paths(lab: Lab) -> HostPaths:
    """What a sandbox of this lab hides."""
    return HostPaths(lab.folder, lab.state, corpus.cache())


def devices_for(found: Apparatus) -> tuple[Slot, ...]:
    """The devices that a lab can use; one CPU where it trains no torch model."""
    return discovery.slots() if found.causal else (Slot(),)


def terms_of(program: Program, readonly: tuple[tuple[str, bytes], ...]) -> Terms:
    """What program.md grants every run."""
    most = program.max_memory_gb
    return Terms(
        program.budget_seconds,
        program.budget_tokens,
        program.tolerance_seconds,
        FIRST_WALL_SECONDS,
        ResourceLimits(memory_gb=discovery.memory_gb() if most is None else most),
        readonly,
    )


def read_readonly(lab: Lab, program: Program) -> tuple[tuple[str, bytes], ...]:
    """The further files that program.md shows to train.py."""
    return tuple((name, lab.read(name).encode()) for name in program.readonly)
