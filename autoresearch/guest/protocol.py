"""What a training run needs from whatever hosts it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from autoresearch.sandbox.ipc import Message

if TYPE_CHECKING:
    from autoresearch.guest.safetensors_format import ModelState


BuildModel = Callable[[], Any]  # build_model of the lab's train.py
# One row of tokens uint16 (T+1) -> the trained model's loss of each next one, float32.
ConsistencyAnswer = Callable[[memoryview], bytes]


class TrainingHost(Protocol):
    """Where a training run gets its data from and hands its model to."""

    terms: "TrainingTerms"

    def start_clock(self) -> memoryview:
        """Start the clock and return the training data."""
        ...

    def report_progress(self, message: Message) -> None:
        """Show how far the run is."""
        ...

    def submit_weights(
        self,
        state: "ModelState",
        facts: Mapping[str, object],
        probe: "ConsistencyAnswer",
    ) -> None:
        """Hand in the weights; does not return to a guest of the harness."""
        ...


class TrainingTerms:
    """What the harness grants one run."""

    def __init__(self, message: Message) -> None:
        self.seed: int = message["seed"]
        self.device: str = message["device"]
        self.budget_seconds: float | None = message["budget_seconds"]
        self.budget_tokens: int | None = message["budget_tokens"]
