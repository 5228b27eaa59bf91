"""Where runs of a lab happen: its apparatus, its terms, its sandbox.

`Workbench.open` is how every command gets one: the loop, `check`, `score`,
`verify-ledger`, the exploits and the benchmarks.
"""

from collections.abc import Callable
from dataclasses import dataclass

from autoresearch.data import corpus
from autoresearch.devices import discovery
from autoresearch.devices.nvml import NvmlQuery
from autoresearch.experiment import Candidate, Device
from autoresearch.git import Repository
from autoresearch.lab.apparatus import Apparatus, load_apparatus
from autoresearch.lab.folder import Lab
from autoresearch.lab.program import Program
from autoresearch.measure.warm_pool import WarmPool
from autoresearch.sandbox import selftest
from autoresearch.sandbox.process import ResourceLimits, SandboxBackend, StopFlag
from autoresearch.sandbox.selftest import HostPaths

FIRST_WALL_SECONDS = 3600.0  # of a token budget, until the champion says more


@dataclass(frozen=True, slots=True)
class RunTerms:
    """What every run of a series is granted."""

    budget_seconds: float | None  # None: a token budget holds
    budget_tokens: int | None  # None: a time budget holds
    tolerance_seconds: float
    wall_seconds: float  # of a token budget, which has no clock of its own
    limits: ResourceLimits
    readonly: tuple[tuple[str, bytes], ...] = ()

    @property
    def kill_after_seconds(self) -> float:
        """When a run that has not handed in its weights is killed."""
        if self.budget_seconds is None:
            return self.wall_seconds
        return self.budget_seconds + self.tolerance_seconds

    @property
    def kill_after_detail(self) -> str:
        """What the last seconds are made of, to be read by whoever ran out of them."""
        if self.budget_seconds is None:
            return ""
        more = f"{self.tolerance_seconds:g} to hand in the weights"
        return f" (budget_seconds {self.budget_seconds:g}, and {more})"


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is: for views, and claimed by the run itself."""

    phase: str  # "starting", "training" or "scoring"
    seconds: float
    share: float
    loss: float | None = None  # None: it has not said
    tokens: int = 0


ProgressCallback = Callable[[Candidate, RunProgress], None]


@dataclass(frozen=True, slots=True)
class Workbench:
    """Where runs of a lab happen, and what they are given."""

    lab: Lab
    apparatus: Apparatus
    terms: RunTerms
    stop: StopFlag
    watch: ProgressCallback
    walls: SandboxBackend
    nvml: Callable[[Device], NvmlQuery | None] = (
        discovery.open_device_nvml
    )  # None: no GPU to ask
    waiting: WarmPool | None = None  # None: every guest starts when it is needed

    @classmethod
    def open(
        cls,
        lab: Lab,
        *,
        stop: StopFlag | None = None,
        watch: "ProgressCallback | None" = None,
        found: Apparatus | None = None,
        device: Device | None = None,
    ) -> "Workbench":
        """Load a lab's apparatus and program, build its sandbox and test it.

        `found`: the apparatus, where it is loaded already. `device`: what the sandbox
        is tested with; the first of this machine where none is named. Raises LabError.
        """
        found = found or load_apparatus(lab, Repository(lab.folder))
        program = lab.load_program()
        walls = selftest.require_backend(
            host_paths(lab), program.cage, device or list_usable_devices(found)[0]
        )
        return cls(
            lab,
            found,
            terms_from_program(program, read_readonly_files(lab, program)),
            stop or StopFlag(),
            watch or (lambda candidate, progress: None),
            walls,
        )


def host_paths(lab: Lab) -> HostPaths:
    """What a sandbox of this lab hides."""
    return HostPaths(lab.folder, lab.state_folder, corpus.cache_root())


def list_usable_devices(found: Apparatus) -> tuple[Device, ...]:
    """The devices that a lab can use; one CPU where it trains no torch model."""
    return discovery.discover_devices() if found.causal else (Device(),)


def terms_from_program(
    program: Program, readonly: tuple[tuple[str, bytes], ...]
) -> RunTerms:
    """What program.md grants every run."""
    most = program.max_memory_gb
    return RunTerms(
        program.budget_seconds,
        program.budget_tokens,
        program.tolerance_seconds,
        FIRST_WALL_SECONDS,
        ResourceLimits(
            memory_gb=discovery.default_memory_limit_gb() if most is None else most
        ),
        readonly,
    )


def read_readonly_files(lab: Lab, program: Program) -> tuple[tuple[str, bytes], ...]:
    """The further files that program.md shows to train.py."""
    return tuple((name, lab.read_file(name).encode()) for name in program.readonly)
