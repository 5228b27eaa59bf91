"""What every run of a lab needs: its apparatus, its terms, its sandbox.

`Workbench.open` is how a command gets one: `check`, `score`, `verify-ledger`.
`run.session` builds its own.
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

FIRST_WALL_SECONDS = 3600.0  # of a token budget, until there is a champion


@dataclass(frozen=True, slots=True)
class RunTerms:
    """The budget and the limits of every run of a series."""

    budget_seconds: float | None  # None: a token budget applies
    budget_tokens: int | None  # None: a time budget applies
    tolerance_seconds: float
    wall_seconds: float  # time limit of a token budget, which sets none itself
    limits: ResourceLimits
    readonly: tuple[tuple[str, bytes], ...] = ()

    @property
    def kill_after_seconds(self) -> float:
        """When a run that has not submitted its weights is killed."""
        if self.budget_seconds is None:
            return self.wall_seconds
        return self.budget_seconds + self.tolerance_seconds

    @property
    def kill_after_detail(self) -> str:
        """How the limit is made up, for the message of a timeout; "" for tokens."""
        if self.budget_seconds is None:
            return ""
        more = f"{self.tolerance_seconds:g} to submit the weights"
        return f" (budget_seconds {self.budget_seconds:g}, and {more})"


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The progress of a run, for views. The run itself claims it."""

    phase: str  # "starting", "training" or "scoring"
    seconds: float
    share: float  # of its budget, 0 to 1
    loss: float | None = None  # None: not reported
    tokens: int = 0


ProgressCallback = Callable[[Candidate, RunProgress], None]


@dataclass(frozen=True, slots=True)
class Workbench:
    """What every run of a lab needs, opened once."""

    lab: Lab
    apparatus: Apparatus
    terms: RunTerms
    stop: StopFlag
    watch: ProgressCallback
    backend: SandboxBackend
    # Opens NVML for a device; None: it has none.
    nvml: Callable[[Device], NvmlQuery | None] = discovery.open_device_nvml
    warm_pool: WarmPool | None = None  # None: every process starts when it is needed

    @classmethod
    def open(
        cls,
        lab: Lab,
        *,
        stop: StopFlag | None = None,
        watch: ProgressCallback | None = None,
        apparatus: Apparatus | None = None,
        device: Device | None = None,
    ) -> "Workbench":
        """Load a lab's apparatus and program, build its sandbox and test it.

        apparatus: if it is loaded already. device: what the sandbox is tested with,
        by default the first of this machine. Raises LabError.
        """
        apparatus = apparatus or load_apparatus(lab, Repository(lab.folder))
        program = lab.load_program()
        backend = selftest.require_backend(
            host_paths(lab), program.cage, device or list_usable_devices(apparatus)[0]
        )
        return cls(
            lab,
            apparatus,
            terms_from_program(program, read_readonly_files(lab, program)),
            stop or StopFlag(),
            watch or (lambda candidate, progress: None),
            backend,
        )


def host_paths(lab: Lab) -> HostPaths:
    """Return the paths that a sandbox of this lab hides."""
    return HostPaths(lab.folder, lab.state_folder, corpus.cache_root())


def list_usable_devices(apparatus: Apparatus) -> tuple[Device, ...]:
    """List the devices that a lab can use; one CPU if it trains no torch model."""
    return discovery.discover_devices() if apparatus.causal else (Device(),)


def terms_from_program(
    program: Program, readonly: tuple[tuple[str, bytes], ...]
) -> RunTerms:
    """Return the terms that program.md sets for every run."""
    memory_gb = program.max_memory_gb
    if memory_gb is None:
        memory_gb = discovery.default_memory_limit_gb()
    return RunTerms(
        program.budget_seconds,
        program.budget_tokens,
        program.tolerance_seconds,
        FIRST_WALL_SECONDS,
        ResourceLimits(memory_gb=memory_gb),
        readonly,
    )


def read_readonly_files(lab: Lab, program: Program) -> tuple[tuple[str, bytes], ...]:
    """Read the further files that program.md shows to train.py: (name, content)."""
    return tuple((name, lab.read_file(name).encode()) for name in program.readonly)
