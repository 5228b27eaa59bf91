"""Asks a slow proposer in background threads while a run trains.

Wraps one proposer that takes seconds or minutes. Threads of its own ask it, check what
comes (`Toolkit.find_fault`, so also `preflight`) and queue it; `propose` never waits.
The number of ideas under way adapts: one more whenever the queue was empty, one less
when ideas were left over, at most `MAX_UNDERWAY`.

When the champion changes, a queued idea is carried over by a three-way merge (git
merge-file), or constant by constant; what conflicts, or changes nothing any more, is
dropped and asked anew.

Not covered: an idea already being written when the champion changes is carried over in
the same way, without knowing what won; and what dropped ideas cost stays spent.
"""

import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from autoresearch.errors import LabError
from autoresearch.experiment import Champion, Proposal
from autoresearch.lab import constants, constraints
from autoresearch.proposers.toolkit import Toolkit
from autoresearch.records.ledger import Ledger

MAX_UNDERWAY = 6
JOIN_SECONDS = 10.0
POLL_SECONDS = 1.0  # how often an idle thread looks whether its proposer may be asked


class SlowProposer(Protocol):
    """A proposer that may take minutes, and can be told to stop."""

    @property
    def name(self) -> str: ...

    @property
    def exhausted(self) -> bool: ...

    @property
    def resting_until(self) -> float:
        """Until when it is not asked; 0 when it may be."""
        ...

    def propose(self, ledger: Ledger) -> Proposal | None: ...

    def close(self) -> None:
        """Stop what is under way; it is not asked again."""
        ...

    def check_ready(self) -> str:
        """`ok ...`, or what is wrong with it and what to type."""
        ...


class Prefetch:
    """A proposer whose `propose` never blocks."""

    def __init__(
        self, inner: SlowProposer, desk: Toolkit, most: int = MAX_UNDERWAY
    ) -> None:
        self.name = inner.name
        self.inner = inner
        self._toolkit = desk
        self._max_underway = most
        self._target_underway = 1
        self._busy_count = 0
        self._ready: list[Proposal] = []
        self._threads: list[threading.Thread] = []
        self._condition = threading.Condition()
        self._closed = False
        self._thread_error: BaseException | None = None  # in a thread; raised here

    @property
    def exhausted(self) -> bool:
        """Whether nothing is ready and nothing will be."""
        with self._condition:
            return self.inner.exhausted and not self._ready and not self._busy_count

    def propose(self, ledger: Ledger) -> Proposal | None:
        """An idea that is ready, on the present champion; None when there is none."""
        start = ledger.starting_point
        if start is None:
            return None
        with self._condition:
            if self._thread_error is not None:
                raise self._thread_error
            proposal = self._take_ready(ledger, start)
            if proposal is None and not self.inner.resting_until:
                self._target_underway = min(
                    self._max_underway, self._target_underway + 1
                )
            elif len(self._ready) > 1:
                self._target_underway = max(1, self._target_underway - 1)
            self._start_threads(ledger)
            self._condition.notify_all()
        return proposal

    def close(self) -> None:
        """Stop the threads; wait at most JOIN_SECONDS for them."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self.inner.close()
        deadline = time.monotonic() + JOIN_SECONDS  # for all of them together
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _take_ready(self, ledger: Ledger, start: Champion) -> Proposal | None:
        while self._ready:
            proposal = self._ready.pop(0)
            self._toolkit.pending_titles.discard(proposal.title)
            if proposal.parent == start.blob or proposal.refused:
                return proposal
            carried = rebase_proposal(ledger, proposal, start.blob)
            if carried is not None and not self._toolkit.find_quick_fault(
                ledger, carried
            ):
                return carried
        return None

    def _start_threads(self, ledger: Ledger) -> None:
        """Start threads up to the number of ideas wanted at once."""
        while len(self._threads) < self._target_underway:
            thread = threading.Thread(
                target=self._run_thread,
                args=(ledger.path, ledger.lower_is_better, ledger.series),
                name=f"thinking: {self.name}"[:60],
                daemon=True,
            )
            self._threads.append(thread)
            thread.start()

    def _run_thread(self, path: Path, lower_is_better: bool, series: str) -> None:
        """Body of a thread: ask for a proposal whenever one is wanted."""
        ledger = Ledger(path, lower_is_better=lower_is_better)
        ledger.series = series
        try:
            while self._wait_for_demand():
                proposal = self.inner.propose(ledger)
                with self._condition:
                    self._busy_count -= 1
                    if proposal is not None:
                        self._enqueue(proposal)
                    elif not self._closed:
                        self._condition.wait(POLL_SECONDS)
        except BaseException as error:  # a bug of ours: raised by the next `propose`
            with self._condition:
                self._thread_error = error
            raise
        finally:
            ledger.close()

    def _wait_for_demand(self) -> bool:
        """Block until an idea is wanted and may be asked for; False once closed."""
        with self._condition:
            while not self._closed:
                missing = self._target_underway - len(self._ready) - self._busy_count
                asleep = self.inner.exhausted or self.inner.resting_until
                if missing > 0 and not asleep:
                    self._busy_count += 1
                    return True
                self._condition.wait(POLL_SECONDS)
        return False

    def _enqueue(self, proposal: Proposal) -> None:
        """Put an idea into the queue, unless the same one waits there already."""
        code = constraints.fingerprint_code(proposal.source)
        if not proposal.refused and any(
            constraints.fingerprint_code(other.source) == code for other in self._ready
        ):
            proposal = replace(proposal, refused="the same as another idea that waited")
        self._ready.append(proposal)
        self._toolkit.pending_titles.add(proposal.title)


def rebase_proposal(ledger: Ledger, proposal: Proposal, blob: str) -> Proposal | None:
    """The same change on another champion; None where the two touch the same lines."""
    base, ours = ledger.load_source(proposal.parent), ledger.load_source(blob)
    merged = rebase_constants(ours, base, proposal.source)
    merged = merged or merge_texts(ours, base, proposal.source)
    if merged is None or constraints.fingerprint_code(
        merged
    ) == constraints.fingerprint_code(ours):
        return None
    return replace(proposal, source=merged, parent=blob)


def rebase_constants(ours: str, base: str, theirs: str) -> str | None:
    """The constants that `theirs` changed, changed in `ours`; None when more differs.

    To a three-way merge neighbouring lines conflict, and constants are neighbours.
    """
    try:
        if constants.blank_constants(base) != constants.blank_constants(theirs):
            return None
        before, after = (
            constants.constant_values(base),
            constants.constant_values(theirs),
        )
        changed = {n: v for n, v in after.items() if before[n] != v}
        now = constants.constant_values(ours)
        if any(now.get(name) != before[name] for name in changed):
            return None  # gone, or changed by the new champion as well
        return constants.replace_constants(ours, changed)
    except (SyntaxError, LabError, KeyError):
        return None


def merge_texts(ours: str, base: str, theirs: str) -> str | None:
    """Both changes to `base` in one text; None when they conflict."""
    with tempfile.TemporaryDirectory(prefix="autoresearch-merge-") as made:
        files = []
        for name, text in (("ours", ours), ("base", base), ("theirs", theirs)):
            files.append(Path(made) / name)
            files[-1].write_bytes(text.encode())
        done = subprocess.run(
            ("git", "merge-file", "-p", "-q", *map(str, files)),
            capture_output=True,
            cwd=made,
        )
    return done.stdout.decode() if done.returncode == 0 else None
