"""The locked prepare.py, as the harness uses it.

The source comes from the lab's commit, never from the working tree, and is refused if
the two differ. It is the user's own code and trusted; what it offers is checked once,
here, so that a mistake in it is one clear sentence.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from autoresearch import sealed_memory
from autoresearch.errors import LabError
from autoresearch.git import Repository
from autoresearch.lab.folder import Lab

MAX_CONSISTENCY_ROWS = 64  # withheld from training
MAX_WITHHELD_SHARE = 0.02  # of the text
REQUIRED_OFFERS = (
    "METRIC",
    "LOWER_IS_BETTER",
    "CAUSAL",
    "prepare",
    "fingerprint",
    "training",
)
TEXT_OFFERS = ("VOCABULARY", "CONTEXT", "text")
OUTPUT_OFFERS = ("inputs", "score")


class Apparatus:
    """The data, metric and direction of a lab."""

    def __init__(self, lab: Lab, blob: str, source: bytes) -> None:
        self.blob = blob
        self.source = source
        self._path = lab.file_path("prepare.py")
        offers = vars(execute_module(self._path, source))
        self._offers = offers
        self._training: int | None = None  # descriptor; None: not sealed yet
        self._withheld: bytes = b""
        self.causal = bool(self._require_offer("CAUSAL"))
        for name in REQUIRED_OFFERS + (TEXT_OFFERS if self.causal else OUTPUT_OFFERS):
            self._require_offer(name)
        self.metric = str(self._require_offer("METRIC"))
        self.lower_is_better = bool(self._require_offer("LOWER_IS_BETTER"))

    @property
    def short_metric(self) -> str:
        """The metric as commit titles show it: val_bpb is bpb."""
        return self.metric.removeprefix("val_")

    @property
    def vocabulary(self) -> int:
        return int(self._require_offer("VOCABULARY"))

    @property
    def context(self) -> int:
        return int(self._require_offer("CONTEXT"))

    def prepare_data(self, show: Callable[[str, int, int], None]) -> None:
        """Build and seal the data."""
        self._require_offer("prepare")(show)

    def load_fingerprint(self) -> str:
        """Return the hash of the sealed data; LabError if there is none."""
        return str(self._require_offer("fingerprint")())

    def verify_unchanged(self) -> None:
        """Raise LabError if prepare.py or the sealed data have changed.

        A lab whose data lies in files offers `verify()`, which checks their hashes.
        """
        if self._path.read_bytes() != self.source:
            raise LabError(
                f"{self._path} changed while the session was running; it is locked, "
                "and later scores would not be comparable. Next: git checkout -- "
                "prepare.py, then: autoresearch run"
            )
        if "verify" in self._offers:
            self._require_offer("verify")()

    def seal_training_data(self) -> int:
        """Return a descriptor of the sealed training data, the same for every run.

        The last rows of a text are withheld, for `draw_consistency_row`.
        """
        if self._training is None:
            data = self._require_offer("training")()
            if isinstance(data, Path):
                with data.open("rb") as file:
                    data = sealed_memory.map_read_only(file.fileno())
            whole = memoryview(data).cast("B")
            end = len(whole) - self._count_withheld_bytes(len(whole))
            self._withheld = bytes(whole[end:])
            self._training = sealed_memory.seal_bytes(whole[:end], "training")
        return self._training

    def _count_withheld_bytes(self, size_bytes: int) -> int:
        """Count the bytes at the end that no train.py sees; 0 without a text."""
        if not self.causal:
            return 0
        row_bytes = 2 * (self.context + 1)
        return row_bytes * min(
            MAX_CONSISTENCY_ROWS, int(MAX_WITHHELD_SHARE * size_bytes) // row_bytes
        )

    def draw_consistency_row(self) -> bytes:
        """Draw a row of tokens, uint16 (T+1), that no run has seen; b"" without a text.

        Drawn anew each time, so that no answer can be prepared.
        """
        self.seal_training_data()
        row_bytes = 2 * (self.context + 1) if self.causal else 1
        count = len(self._withheld) // row_bytes
        if not self.causal or count == 0:
            return b""
        at = row_bytes * int.from_bytes(os.urandom(4), "little") % (row_bytes * count)
        at -= at % row_bytes
        return self._withheld[at : at + row_bytes]

    def load_text(self, split: str) -> tuple[Any, Any]:
        """Load (tokens uint16 (N,), raw bytes of each vocabulary entry (V,))."""
        tokens, widths = self._require_offer("text")(split)
        return tokens, widths

    def load_inputs(self, split: str) -> Any:
        """Load the model's inputs of a split, without answers."""
        return self._require_offer("inputs")(split)

    def score_outputs(self, outputs: Any, split: str) -> float:
        """Compute the metric of a model's outputs."""
        return float(self._require_offer("score")(outputs, split))

    def _require_offer(self, name: str) -> Any:
        try:
            return self._offers[name]
        except KeyError:
            raise LabError(
                f"{self._path} offers no {name}. Next: see docs/how-it-works.md, "
                "'What prepare.py offers'"
            ) from None


def load_apparatus(lab: Lab, repository: Repository) -> Apparatus:
    """Load the apparatus of the lab's commit; LabError if prepare.py is not locked."""
    file = repository.read_file_at(repository.head_commit(), "prepare.py")
    if file is None:
        raise LabError(
            f"{lab.file_path('prepare.py')} is not committed, so it cannot be locked. "
            "Next: git add prepare.py, git commit -m apparatus"
        )
    blob, source = file
    if lab.file_path("prepare.py").read_bytes() != source:
        raise LabError(
            f"{lab.file_path('prepare.py')} differs from its commit; the apparatus is "
            "locked. Next: git checkout -- prepare.py, or commit the change (it "
            "begins a new series)"
        )
    return Apparatus(lab, blob, source)


def execute_module(path: Path, source: bytes) -> ModuleType:
    """Run prepare.py as a module, without its `__main__` part."""
    module = ModuleType("prepare")
    module.__file__ = str(path)
    # Dataclasses and pickling in worker processes look modules up by name.
    sys.modules["prepare"] = module
    try:
        exec(compile(source, str(path), "exec"), vars(module))  # noqa: S102
    except (LabError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the user's file raised
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise LabError(
            f"{path} line {last.lineno}: {type(error).__name__}: {error}. "
            "Next: python prepare.py shows the whole error"
        ) from error
    return module
