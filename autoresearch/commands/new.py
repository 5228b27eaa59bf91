"""`autoresearch new`: copy three files, write a machine's profile into them, commit.

A profile is written as literals: no file branches on the machine, so a clone is the
same lab, and the optimiser can edit every number it sees.

Promises: every error is raised before anything is written; program.md sets at most two
settings (the budget, and the cage level where it is not the default).
"""

import json
import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from autoresearch import plugins
from autoresearch.atomic_file import write_whole
from autoresearch.devices import discovery
from autoresearch.errors import LabError
from autoresearch.git import GitError, Repository, identity_environment
from autoresearch.lab import constants
from autoresearch.lab.folder import LAB_FILES

LABS = resources.files("autoresearch") / "labs"
NAMED_TEXTS = ("python", "fineweb-edu", "climbmix", "tinystories")
# (least memory of the smallest GPU in GB, profile); batches shrink to what fits anyway
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
    """Create a lab and return a line about each of its files.

    Raises LabError for a folder that is not empty, cannot be written, or bad options.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LabError(
            f"{folder} exists and is not empty. Next: autoresearch new OTHER"
        )
    files = {name: (LABS / kind / name).read_text() for name in LAB_FILES}
    literals = choose_literals(kind, text, vocab, profile)
    if tokens := literals.pop("budget_tokens", None):
        files["program.md"] = set_token_budget(files["program.md"], tokens)
    if cage != "full":
        files["program.md"] = set_cage_level(files["program.md"], cage)
    for name, value in literals.items():
        files = {
            path: replace_literal(body, name, value) for path, body in files.items()
        }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, body in files.items():
            write_whole(folder / name, body)
    except OSError as error:
        raise LabError(
            f"{folder} cannot be created: {error.strerror}. Next: autoresearch new "
            "OTHER"
        ) from None
    commit(folder)
    return describe_files(files, profile or detect_profile())


def choose_literals(
    kind: str, text: str | None, vocab: int | None, profile: str | None
) -> dict[str, Any]:
    """The constants that the profile and the options set, by name."""
    if kind != "gpt":
        if text or vocab or profile:
            raise LabError(
                f"--kind {kind} takes no --text, --vocab or --profile. Next: "
                f"autoresearch new LAB --kind {kind}"
            )
        return {}
    profiles = tomllib.loads((LABS / "gpt" / "profiles.toml").read_text())
    literals: dict[str, Any] = dict(profiles[profile or detect_profile()])
    if text is not None:
        literals["TEXT"] = resolve_text(text)
    if vocab is not None:
        if not MIN_VOCABULARY <= vocab <= MAX_VOCABULARY:
            raise LabError(
                f"--vocab {vocab} is not between {MIN_VOCABULARY} (256 bytes and the "
                f"document separator) and {MAX_VOCABULARY} (what two bytes can hold). "
                "Next: autoresearch new LAB --vocab 4096"
            )
        literals["VOCABULARY"] = vocab
    return literals


def resolve_text(text: str) -> str:
    """The name of a built-in text or plugin, or the absolute path of existing files."""
    names = (*NAMED_TEXTS, *plugins.plugin_names("sources"))
    if text in names:
        return text
    path = Path(text).expanduser()
    if not path.exists():
        raise LabError(
            f"--text {text!r} is neither an existing path nor one of: "
            f"{', '.join(names)}. Next: autoresearch new LAB --text python"
        )
    return str(path.resolve())


def detect_profile() -> str:
    """The profile that fits this machine."""
    gpus, _ = discovery.partition_same_model(discovery.list_visible_gpus())
    return choose_profile([gpu.memory_gb for gpu in gpus])


def choose_profile(memories_gb: Sequence[float]) -> str:
    """The profile for these GPUs: a run may go to any, so the smallest one counts."""
    if not memories_gb:
        return "cpu"
    smallest = min(memories_gb)
    return next(name for needed_gb, name in GPU_PROFILES if smallest >= needed_gb)


def replace_literal(source: str, name: str, value: Any) -> str:
    """Replace the value of `NAME = ...` if the file has that line; keep comments."""
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
    """program.md with a token budget, which is the same on every machine."""
    line = f"budget_tokens = {tokens}     # of training text, so that two runs agree"
    return re.sub(r"^budget_seconds = .*$", line, text, count=1, flags=re.MULTILINE)


def set_cage_level(text: str, level: str) -> str:
    """program.md with a cage level below the default."""
    line = f'cage = "{level}"          # less than full: see docs/security.md\n'
    return text.replace("```toml\n", f"```toml\n{line}", 1)


def commit(folder: Path) -> None:
    """Commit the three files to a new repository of their own."""
    repository = Repository(folder)
    try:
        repository.run_git("init", "--quiet", "--initial-branch=main")
        repository.run_git("add", *LAB_FILES)
        identity = identity_environment("AutoResearch", 0) | {
            "GIT_AUTHOR_DATE": "",
            "GIT_COMMITTER_DATE": "",
        }
        identity = {name: value for name, value in identity.items() if value}
        repository.run_git("commit", "--quiet", "-m", "A new lab", who=identity)
    except FileNotFoundError:
        raise LabError("git is not installed. Next: install git") from None
    except GitError as error:
        raise LabError(f"{folder}: git failed: {error.stderr_text}") from None


def describe_files(files: dict[str, str], profile: str) -> list[str]:
    """One line about each of the three files."""
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
        "program.md  yours    settings on top, advice below",
    ]
