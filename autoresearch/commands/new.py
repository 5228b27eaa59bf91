"""Make a new lab: copy three files, write a machine's profile into them, commit.

A profile is written as literals: no file branches on the machine, so that a clone is
the same lab and the optimiser can edit every number it sees.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from autoresearch.atomic_file import write_whole
from autoresearch.devices import discovery
from autoresearch.errors import LabError
from autoresearch.git import GitError, Repository, identity_environment
from autoresearch.lab import constants
from autoresearch.lab.folder import LAB_FILES

LABS = resources.files("autoresearch") / "labs"
NAMED_TEXTS = ("python", "fineweb-edu", "climbmix", "tinystories")
# (least memory of the smallest GPU in GB, profile); passes shrink to what fits anyway
GPU_PROFILES = ((60, "gpu"), (20, "gpu24"), (11, "gpu12"), (7, "gpu8"), (0, "gpu4"))
MIN_VOCABULARY, MAX_VOCABULARY = 257, 65536


def create_lab(
    folder: Path,
    kind: str,
    text: str | None,
    vocab: int | None,
    profile: str | None,
    cage: str = "full",
) -> list[str]:
    """Make the lab; say what it is. LabError comes before anything is written."""
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LabError(
            f"{folder} exists and is not empty. Next: autoresearch new OTHER"
        )
    files = {name: (LABS / kind / name).read_text() for name in LAB_FILES}
    written = choose_literals(kind, text, vocab, profile)
    if tokens := written.pop("budget_tokens", None):
        files["program.md"] = set_token_budget(files["program.md"], tokens)
    if cage != "full":
        files["program.md"] = set_cage_level(files["program.md"], cage)
    for name, value in written.items():
        files = {
            path: replace_literal(body, name, value) for path, body in files.items()
        }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, body in files.items():
            write_whole(folder / name, body)
    except OSError as error:
        raise LabError(
            f"{folder} cannot be made: {error.strerror}. Next: autoresearch new OTHER"
        ) from None
    commit(folder)
    return describe_files(files, profile or detect_profile())


def choose_literals(
    kind: str, text: str | None, vocab: int | None, profile: str | None
) -> dict[str, Any]:
    """The constants that a profile and the options set."""
    if kind != "gpt":
        if text or vocab or profile:
            raise LabError(f"lab {kind!r} has no text. Next: autoresearch new LAB")
        return {}
    profiles = tomllib.loads((LABS / "gpt" / "profiles.toml").read_text())
    found: dict[str, Any] = dict(profiles[profile or detect_profile()])
    if text is not None:
        found["TEXT"] = resolve_text(text)
    if vocab is not None:
        if not MIN_VOCABULARY <= vocab <= MAX_VOCABULARY:
            raise LabError(
                f"--vocab {vocab} is not within {MIN_VOCABULARY} and "
                f"{MAX_VOCABULARY}: 256 bytes, a document mark, and two bytes each"
            )
        found["VOCABULARY"] = vocab
    return found


def resolve_text(text: str) -> str:
    """A text's name, or the absolute path of one that exists."""
    if text in NAMED_TEXTS:
        return text
    path = Path(text).expanduser()
    if not path.exists():
        raise LabError(
            f"--text {text!r} is neither a path that exists nor one of: "
            f"{', '.join(NAMED_TEXTS)}. Next: autoresearch new LAB --text python"
        )
    return str(path.resolve())


def detect_profile() -> str:
    """The profile for this machine."""
    gpus, _ = discovery.partition_same_model(discovery.list_visible_gpus())
    return choose_profile([gpu.memory_gb for gpu in gpus])


def choose_profile(memories_gb: Sequence[float]) -> str:
    """The profile for GPUs of these sizes: runs go to any, so the least counts."""
    if not memories_gb:
        return "cpu"
    least = min(memories_gb)
    return next(name for needed_gb, name in GPU_PROFILES if least >= needed_gb)


def replace_literal(source: str, name: str, value: Any) -> str:
    """Rewrite `NAME = ...` at the top of a file, if it is there; comments stay."""
    pattern = rf"^({name} = )(\"[^\"\n]*\"|[^#\n]*?)(\s*(?:#.*)?)$"
    spelled = str(value)
    if isinstance(value, str) and not re.fullmatch(r"\d+\*\*\d+", value):
        spelled = json.dumps(value)
    return re.sub(
        pattern,
        lambda match: match[1] + spelled + match[3],
        source,
        count=1,
        flags=re.MULTILINE,
    )


def set_token_budget(text: str, tokens: int) -> str:
    """program.md with a budget of text, which is the same on every machine."""
    line = f"budget_tokens = {tokens}     # of text, so that two runs agree"
    return re.sub(r"^budget_seconds = .*$", line, text, count=1, flags=re.MULTILINE)


def set_cage_level(text: str, level: str) -> str:
    """program.md with the word that a lower cage level needs."""
    line = f'cage = "{level}"          # less than full: see docs/security.md\n'
    return text.replace("```toml\n", f"```toml\n{line}", 1)


def commit(folder: Path) -> None:
    """Put the three files under git, in a repository of their own."""
    book = Repository(folder)
    try:
        book.run_git("init", "--quiet", "--initial-branch=main")
        book.run_git("add", *LAB_FILES)
        who = identity_environment("AutoResearch", 0) | {
            "GIT_AUTHOR_DATE": "",
            "GIT_COMMITTER_DATE": "",
        }
        who = {key: words for key, words in who.items() if words}
        book.run_git("commit", "--quiet", "-m", "A new lab", who=who)
    except FileNotFoundError:
        raise LabError("git is not installed. Next: install git") from None
    except GitError as error:
        raise LabError(f"{folder}: git said: {error.stderr_text}") from None


def describe_files(files: dict[str, str], profile: str) -> list[str]:
    """The three files, one line each."""
    prepare, train = files["prepare.py"], files["train.py"]
    metric = constants.read_literal(prepare, "METRIC", "?")
    text = constants.read_literal(prepare, "TEXT", "no text")
    vocabulary = constants.read_literal(prepare, "VOCABULARY", None)
    context = constants.read_literal(prepare, "CONTEXT", None)
    better = (
        "lower"
        if constants.read_literal(prepare, "LOWER_IS_BETTER", True)
        else "higher"
    )
    sizes = f", vocabulary {vocabulary}, context {context}" if vocabulary else ""
    count = len(constants.parse_constants(train))
    return [
        f"prepare.py  locked   {text}{sizes}, {metric} ({better} is better)",
        f"train.py    mutable  {len(train.splitlines())} lines, {count} constants, "
        f"{profile} profile",
        "program.md  yours    settings on top, prose below",
    ]
