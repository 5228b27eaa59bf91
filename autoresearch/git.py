"""Git plumbing, hardened: one commit per verdict, kept or not.

Commits are written directly into the object store, and named refs/autoresearch/N.
Nothing is checked out or reset: a discarded idea is never lost and a crash never leaves
a partial tree. A keep advances the branch by compare-and-swap, and the working train.py
with it if that is clean.

Covered: hooks, fsmonitor, signing, filters and foreign configuration are off, and so
are replaced objects and remotes; a branch that the user moved meanwhile; lock files
that a killed git left. Not covered: a user who rewrites refs/autoresearch.
"""

import hashlib
import os
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autoresearch.errors import LabError
from autoresearch.text import to_one_line

REF_NAMESPACE = "refs/autoresearch"
# No configuration of a repository or a user may start a program or change what is
# written; hooks and fsmonitor of a planted .git/config once did both.
HARDENED_CONFIG = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"),
    *("-c", "commit.gpgSign=false", "-c", "log.showSignature=false"),
    *("-c", "core.autocrlf=false", "-c", "core.attributesFile=/dev/null"),
    *("-c", "i18n.commitEncoding=UTF-8", "-c", "i18n.logOutputEncoding=UTF-8"),
    *("-c", "core.pager=cat"),
)
COMMITTER = ("AutoResearch", "autoresearch@localhost")
MAX_SUMMARY_LETTERS = 50
CORE_TRAILERS = ("Experiment", "Verdict", "Score", "Runs", "Against", "Proposed-by")
TRAILERS = (
    *(*CORE_TRAILERS, "Program", "Ran", "Series", "Chain"),
    *("Seeds", "Delta", "On-the-way", "Remeasured", "Ended-at"),
    *("Taken-back", "Instead"),
)
REVERTED_REFS = "taken-back"  # refs/autoresearch/taken-back/N


class GitError(Exception):
    """A git command failed. `stderr_text` is its error output."""

    def __init__(self, command: tuple[str, ...], stderr_text: str) -> None:
        super().__init__(f"git {' '.join(command)}: {stderr_text}")
        self.stderr_text = stderr_text


@dataclass(frozen=True, slots=True)
class VerdictCommit:
    """The content of a verdict's commit."""

    title: str  # the whole first line
    body: str
    trailers: tuple[tuple[str, str], ...]
    author: str  # the proposer
    committed_at: float  # Unix time; fixed, so that the commit is reproducible


class Repository:
    """The git repository of a lab."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # -- reading -----------------------------------------------------------------------

    def require_usable(self) -> None:
        """Raise LabError unless the lab is the top of a repository, on a branch."""
        try:
            top = self.run_git("rev-parse", "--show-toplevel")
        except FileNotFoundError:
            raise LabError("git is not installed. Next: install git") from None
        except GitError:
            top = ""
        if not top or Path(top).resolve() != self.folder.resolve():
            raise LabError(
                f"{self.folder} is not a git repository of its own. Next: git init, "
                "git add prepare.py train.py program.md, git commit -m lab"
            )
        if self.run_git("rev-parse", "--show-object-format") != "sha1":
            raise LabError(
                f"{self.folder} uses git's sha256 objects, which are not supported. "
                "Next: git init --object-format=sha1 in a new folder"
            )
        self.current_branch()
        self.head_commit()

    def current_branch(self) -> str:
        """Return the full name of the branch that is checked out."""
        try:
            return self.run_git("symbolic-ref", "-q", "HEAD")
        except GitError:
            raise LabError(
                f"{self.folder} is on no branch (detached HEAD), so a keep has nowhere "
                "to go. Next: git switch -c night"
            ) from None

    def head_commit(self) -> str:
        """Return the commit of the branch."""
        try:
            return self.run_git("rev-parse", "-q", "--verify", "HEAD^{commit}")
        except GitError:
            raise LabError(
                f"{self.folder} has no commit yet. Next: git add prepare.py train.py "
                "program.md, then git commit -m lab"
            ) from None

    def read_file_at(self, commit: str, name: str) -> tuple[str, bytes] | None:
        """Read (blob, bytes) of a tracked file; None: it is not in the commit."""
        entry = self.run_git("ls-tree", commit, "--", name)
        if not entry or not entry.startswith("100"):
            return None
        blob = entry.split()[2]
        return blob, self.run_git_bytes("cat-file", "blob", blob)

    def find_commit(self, number: int) -> str | None:
        """Return the commit of an experiment; None: there is none."""
        try:
            return self.run_git(
                "rev-parse", "-q", "--verify", f"{REF_NAMESPACE}/{number}^{{commit}}"
            )
        except GitError:
            return None

    def list_verdict_commits(
        self, under: str = REF_NAMESPACE
    ) -> list[tuple[int, str, str]]:
        """List (experiment, commit, raw message) of every verdict, by number."""
        form = "%(refname)%00%(objectname)%00%(contents)%01"
        output = self.run_git("for-each-ref", f"--format={form}", under)
        entries = []
        for record in output.split("\x01"):
            name, _, rest = record.strip("\n").partition("\0")
            commit, _, message = rest.partition("\0")
            number = name.removeprefix(f"{under}/")
            if re.fullmatch("0|[1-9][0-9]*", number):
                entries.append((int(number), commit, message))
        return sorted(entries)

    def read_log(self, count: int) -> str:
        """Return the last commits of the branch, one a line."""
        return self.run_git("log", "--oneline", f"-{count}")

    # -- writing -----------------------------------------------------------------------

    def write_blob(self, text: str) -> str:
        """Write a text as a blob and return its id."""
        stdin = text.encode()
        return self.run_git("hash-object", "-w", "--no-filters", "--stdin", stdin=stdin)

    def create_commit(self, entry: VerdictCommit, blob: str, parent: str) -> str:
        """Create a commit that differs from its parent only in train.py; no ref."""
        mode, others = b"100644", []
        for line in self.run_git_bytes("ls-tree", "-z", parent).split(b"\0"):
            kind, _, name = line.partition(b"\t")
            if name != b"train.py":
                others += [line] if line else []
            elif kind.startswith(b"100"):
                mode = kind[:6]  # stays executable if it was
        mine = b"%s blob %s\ttrain.py" % (mode, blob.encode())
        tree = self.run_git("mktree", "-z", stdin=b"\0".join([*others, mine, b""]))
        trailers = "\n".join(
            f"{key}: {to_one_line(text)}" for key, text in entry.trailers
        )
        body = f"{entry.body.strip()}\n\n" if entry.body.strip() else ""
        return self.run_git(
            *("commit-tree", tree, "-p", parent),
            stdin=f"{entry.title}\n\n{body}{trailers}\n".encode(),
            who=identity_environment(entry.author, entry.committed_at),
        )

    def set_experiment_ref(self, number: int, commit: str) -> None:
        """Set refs/autoresearch/N to a verdict's commit; idempotent."""
        self.run_git("update-ref", f"{REF_NAMESPACE}/{number}", commit)

    def set_reverted_ref(self, number: int, commit: str) -> None:
        """Set refs/autoresearch/taken-back/N to the commit that reverted a champion."""
        self.run_git("update-ref", f"{REF_NAMESPACE}/{REVERTED_REFS}/{number}", commit)

    def list_reverted_commits(self) -> list[tuple[int, str, str]]:
        """List (experiment, commit, raw message) of every reverted champion."""
        return self.list_verdict_commits(f"{REF_NAMESPACE}/{REVERTED_REFS}")

    def advance_branch(self, branch: str, commit: str, seen: str) -> bool:
        """Move the branch from `seen` to `commit`; False: it is elsewhere by now."""
        try:
            self.run_git("update-ref", "-m", "autoresearch: keep", branch, commit, seen)
        except GitError as error:
            if self.run_git("rev-parse", "-q", "--verify", branch) == seen:
                raise LabError(
                    f"git cannot move {branch}: {to_one_line(error.stderr_text[:400])} "
                    "Next: end the process that holds it, then: autoresearch run"
                ) from None
            return False
        return True

    def update_working_file(self, old: str, new: str) -> bool:
        """Update the working train.py; False: the user's edits stay there.

        Git's own checkout would run filters and change line endings, so the file is
        written here, and then the index is updated.
        """
        before = self.read_file_at(old, "train.py")
        after = self.read_file_at(new, "train.py")
        assert after is not None, "every commit of ours has a train.py"
        path = self.folder / "train.py"
        known = [file[1] for file in (before, after) if file]
        clean = path.is_file() and not path.is_symlink() and path.read_bytes() in known
        if clean:
            rewrite_atomically(path, after[1])
        staged = self.run_git("ls-files", "--stage", "--", "train.py").split()
        if clean or (before and before[0] in staged):
            self.update_index(after[0], mode=staged[0] if staged else "100644")
        return clean

    def update_index(self, blob: str, mode: str) -> None:
        """Set the index entry of train.py.

        Another git may hold the index, or have left a stale lock. Then `git status` is
        outdated until the next keep; nothing else needs the index.
        """
        entry = f"{mode},{blob},train.py"
        where = self.run_git("rev-parse", "--absolute-git-dir")
        # Before git writes an index, it compares files of the same timestamp, and runs
        # filters on them: hence a work tree without files.
        with tempfile.TemporaryDirectory() as empty, suppress(GitError):
            apart = ("--git-dir", where, "--work-tree", empty, "-C", empty)
            self.run_git(*apart, "update-index", "--cacheinfo", entry)

    def has_commit(self, commit: str) -> bool:
        """Whether the branch contains a commit."""
        try:
            self.run_git("merge-base", "--is-ancestor", commit, "HEAD")
        except GitError:
            return False
        return True

    def pack_objects(self) -> None:
        """Pack refs and objects, so that ten thousand experiments stay fast.

        Not `gc`: it would prune the sources of queued proposals.
        """
        for words in (("pack-refs", "--all"), ("repack", "-d", "-l", "-q")):
            with suppress(GitError):  # locked by another git; the next call packs
                self.run_git(*words)

    def add_excludes(self, *names: str) -> None:
        """Make git ignore our files without changing the user's .gitignore."""
        path = self.folder / self.run_git("rev-parse", "--git-path", "info/exclude")
        path.parent.mkdir(exist_ok=True)
        lines = path.read_bytes().splitlines() if path.exists() else []
        missing = [name.encode() for name in names if name.encode() not in lines]
        if missing:
            path.write_bytes(b"\n".join([*lines, *missing, b""]))

    # -- git itself --------------------------------------------------------------------

    def run_git(
        self, *args: str, stdin: bytes = b"", who: Mapping[str, str] | None = None
    ) -> str:
        """Run a git command; return its output without the last newline."""
        output = self.run_git_bytes(*args, stdin=stdin, who=who)
        return output.decode(errors="replace").rstrip("\n")

    def run_git_bytes(
        self, *args: str, stdin: bytes = b"", who: Mapping[str, str] | None = None
    ) -> bytes:
        """Run a git command; return its output. Raises GitError."""
        done = subprocess.run(
            ("git", "-C", str(self.folder), *HARDENED_CONFIG, *args),
            input=stdin,
            capture_output=True,
            env={**isolated_environment(), **(who or {})},
        )
        if done.returncode != 0:
            raise GitError(args, done.stderr.decode(errors="replace").strip())
        return done.stdout


def isolated_environment() -> dict[str, str]:
    """Return an environment in which git reads only this repository's config."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",  # refs/replace could redirect an id
        "GIT_GRAFT_FILE": "/dev/null",
        "GIT_ALLOW_PROTOCOL": "",  # no remote, so none that starts a program either
        # The lab may belong to another user than this process; the path is our own.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }


def identity_environment(author: str, at: float) -> dict[str, str]:
    """Return author and committer of a verdict as environment variables."""
    name, email = COMMITTER
    when = f"{int(at)} +0000"
    return {
        # Git rejects a name of only the characters that it strips from both ends.
        "GIT_AUTHOR_NAME": to_one_line(author).strip("<>.,:;\"\\' ") or "unknown",
        "GIT_AUTHOR_EMAIL": "proposer@localhost",
        "GIT_AUTHOR_DATE": when,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": email,
        "GIT_COMMITTER_DATE": when,
    }


def rewrite_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content atomically, with the permissions it had."""
    if path.read_bytes() == content:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.chmod(path.stat().st_mode)
    temporary.replace(path)


def shorten_title(title: str) -> str:
    """Shorten a title for a commit: ASCII, one line, at most 50 letters."""
    plain = unicodedata.normalize("NFKD", to_one_line(title)).encode("ascii", "ignore")
    short = " ".join(plain.decode().split()) or "untitled"
    if len(short) <= MAX_SUMMARY_LETTERS:
        return short
    return short[: MAX_SUMMARY_LETTERS - 3].rstrip() + "..."


def parse_trailers(message: str) -> dict[str, str]:
    """Parse the trailers of a verdict's message; unknown ones are left out."""
    last = message.rstrip("\n").rpartition("\n\n")[2]
    trailers = {}
    for line in last.splitlines():
        key, colon, text = line.partition(": ")
        if colon and key in TRAILERS:
            trailers[key] = text
    return trailers


def compute_blob_id(text: str) -> str:
    """Compute git's blob id of a text."""
    body = text.encode()
    header = f"blob {len(body)}\0".encode()
    return hashlib.sha1(header + body, usedforsecurity=False).hexdigest()
