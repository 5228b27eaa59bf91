"""The interface between a training run and its host: the harness or a terminal."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from autoresearch.sandbox.ipc import Message

if TYPE_CHECKING:
    from autoresearch.guest.safetensors_format import ModelState


BuildModel = Callable[[], Any]  # build_model of the lab's train.py
# One row of tokens, uint16 (T+1) -> the trained model's loss on each next token, in
# nats, float32 (T). Both as bytes.
ConsistencyAnswer = Callable[[memoryview], bytes]


class TrainingHost(Protocol):
    """Supplies the training data and takes the trained model."""

    terms: "TrainingTerms"

    def start_clock(self) -> memoryview:
        """Start the clock and return the training data."""
        ...

    def report_progress(self, message: Message) -> None:
        """Report the run's progress."""
        ...

    def submit_weights(
        self,
        state: "ModelState",
        facts: Mapping[str, object],
        probe: "ConsistencyAnswer",
    ) -> None:
        """Submit the weights. Ends the process; does not return."""
        ...


class TrainingTerms:
    """Seed, device and budget of one run."""

    def __init__(self, message: Message) -> None:
        self.seed: int = message["seed"]
        self.device: str = message["device"]
        self.budget_seconds: float | None = message["budget_seconds"]
        self.budget_tokens: int | None = message["budget_tokens"]
