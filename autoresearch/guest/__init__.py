"""The code that runs inside the sandbox, beside train.py. Not trusted."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoresearch.guest.runtime import Training


def begin(build: Callable[[], Any]) -> "Training":
    """Start the training run; see `runtime.begin`.

    prepare.py re-exports it: committed labs import it from here.
    """
    from autoresearch.guest import runtime

    return runtime.begin(build)
