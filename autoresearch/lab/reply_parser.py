"""What somebody who proposes replies, and how it becomes a whole new train.py.

A reply is text: TITLE, REASON and EXPECTED on a line each, then search/replace blocks,
a unified diff, or the whole file in one fence; the same as a JSON object is taken too.
Blocks are found exactly, then without regard to trailing space, then to indentation;
each must match one place only. Nothing is guessed: what does not fit is `Refused`, in a
sentence that can be shown to whoever replied.

Not covered: whether the result is Python, or any good (`rules`, `preflight`).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoresearch.text import one_line

LARGEST_REPLY_CHARACTERS = 400_000
MOST_BLOCKS = 40
TITLE_LETTERS, REASON_LETTERS = 120, 1500
OURS = "train.py"

HEAD = re.compile(
    r"^[ \t>*#_-]*(TITLE|REASON|EXPECTED|FILE)[*_ \t]*:[*_ \t]*(.*)$", re.IGNORECASE
)
SEARCH = re.compile(r"^<{5,9} ?SEARCH\b.*$")
MIDDLE = re.compile(r"^={5,9}\s*$")
REPLACE = re.compile(r"^>{5,9} ?REPLACE\b.*$")
FENCE = re.compile(r"^(```+|~~~+)[ \t]*([\w.+-]*)[^`\n]*$")
PATH = re.compile(r"^[`*#\s]*([\w./\\-]+\.(?:py|md|toml|json|sh|tsv|txt))[`*:\s]*$")
DIFF_FILE = re.compile(r"^(?:\+\+\+|---) (?:[ab]/)?(\S+)")
NUMBER = re.compile(r"[-+\u2212]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Refused(Exception):
    """A reply that cannot be used; the message says why, to whoever wrote it."""


@dataclass(frozen=True, slots=True)
class Block:
    """Replace `search` by `replace`, both whole lines."""

    search: str
    replace: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One idea, as a reply states it."""

    title: str
    reason: str
    expected: float | None  # change of the metric; None: it did not say
    blocks: tuple[Block, ...]  # empty: `whole` instead
    whole: str  # "": blocks instead


def read(reply: str) -> Answer:
    """A reply -> Answer, or Refused."""
    if len(reply) > LARGEST_REPLY_CHARACTERS:
        raise Refused(
            f"the reply has {len(reply)} characters; at most "
            f"{LARGEST_REPLY_CHARACTERS} are read. Send search/replace blocks"
        )
    if not plain(reply):
        raise Refused("the reply holds null bytes or half characters; send plain text")
    found = from_json(reply) or from_text(reply)
    if not all(plain(text) for text in (found.whole, *map(both, found.blocks))):
        raise Refused("its edits hold null bytes or half characters; send plain text")
    if len(found.blocks) > MOST_BLOCKS:
        raise Refused(f"{len(found.blocks)} blocks; one idea has at most {MOST_BLOCKS}")
    return found


def apply(answer: Answer, source: str) -> str:
    """The whole new train.py, or Refused."""
    if answer.whole:
        return ended(answer.whole)
    for number, block in enumerate(answer.blocks, 1):
        source = replaced(source, block, number)
    return source


def new_source(reply: str, source: str) -> tuple[Answer, str]:
    """A reply and the file it is about -> (what it says, the new file), or Refused."""
    answer = read(reply)
    return answer, apply(answer, source)


# -- reading a reply -------------------------------------------------------------------


def from_text(reply: str) -> Answer:
    """A reply in the form that was asked for."""
    lines = reply.replace("\r\n", "\n").split("\n")
    heads: dict[str, str] = {}
    blocks: list[Block] = []
    wholes: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if head := HEAD.match(line):
            key = head[1].upper()
            if key == "FILE":
                only_ours(head[2])
            heads.setdefault(key, head[2].strip().strip("*_` "))
        elif path := PATH.match(line):
            only_ours(path[1])
        elif SEARCH.match(line):
            block, at = block_at(lines, at)
            blocks.append(block)
            continue
        elif fence := FENCE.match(line):
            found, at = fenced(lines, at, fence[1])
            blocks += found.blocks
            wholes += [found.whole] if found.whole else []
            continue
        at += 1
    return assembled(heads, blocks, wholes, reply)


@dataclass(frozen=True, slots=True)
class Fenced:
    """What stood between two fences."""

    blocks: tuple[Block, ...]
    whole: str


def fenced(lines: Sequence[str], at: int, mark: str) -> tuple[Fenced, int]:
    """The fence that opens at a line -> (what it holds, the line after it)."""
    word = FENCE.match(lines[at])
    language = word[2].lower() if word else ""
    end = at + 1
    while end < len(lines) and lines[end].rstrip() != mark:
        end += 1
    body = lines[at + 1 : end]
    if any(SEARCH.match(line) for line in body):
        return Fenced(tuple(blocks_in(body)), ""), end + 1
    if language in ("diff", "patch") or any(line.startswith("@@ ") for line in body):
        return Fenced(tuple(hunks(body)), ""), end + 1
    if language in ("python", "py", "", OURS) and any(line.strip() for line in body):
        return Fenced((), "\n".join(body)), end + 1
    return Fenced((), ""), end + 1


def blocks_in(lines: Sequence[str]) -> list[Block]:
    """All search/replace blocks among some lines."""
    found, at = [], 0
    while at < len(lines):
        if SEARCH.match(lines[at]):
            block, at = block_at(lines, at)
            found.append(block)
            continue
        if path := PATH.match(lines[at]):
            only_ours(path[1])
        at += 1
    return found


def block_at(lines: Sequence[str], at: int) -> tuple[Block, int]:
    """The block that begins at a line -> (block, the line after it), or Refused."""
    middle = end = None
    for number in range(at + 1, len(lines)):
        if middle is None and MIDDLE.match(lines[number]):
            middle = number
        elif middle is not None and REPLACE.match(lines[number]):
            end = number
            break
    if middle is None or end is None:
        raise Refused(
            "a SEARCH block is not closed: it needs a line ======= and then a line "
            ">>>>>>> REPLACE"
        )
    search = "\n".join(lines[at + 1 : middle])
    return Block(search, "\n".join(lines[middle + 1 : end])), end + 1


def hunks(lines: Sequence[str]) -> list[Block]:
    """The hunks of a unified diff as blocks; its line numbers are not believed."""
    found: list[Block] = []
    before: list[str] = []
    after: list[str] = []

    def close() -> None:
        if before != after:
            found.append(Block("\n".join(before), "\n".join(after)))
        before.clear()
        after.clear()

    for line in lines:
        if name := DIFF_FILE.match(line):
            if name[1] != "/dev/null":
                only_ours(name[1])
        elif line.startswith("@@"):
            close()
        elif line.startswith("-"):
            before.append(line[1:])
        elif line.startswith("+"):
            after.append(line[1:])
        elif not line.startswith(("diff ", "index ", "\\")):
            before.append(line[1:])
            after.append(line[1:])
    close()
    return found


def assembled(
    heads: dict[str, str], blocks: list[Block], wholes: list[str], reply: str
) -> Answer:
    """Heads and edits -> Answer, or Refused."""
    if not blocks and not wholes:
        start = one_line(reply)[:120]
        raise Refused(
            "the reply changes nothing: it has no SEARCH block and no file. It begins: "
            f"{start!r}"
        )
    if not blocks and len(wholes) > 1:
        wholes = [max(wholes, key=len)]
    title = one_line(heads.get("TITLE", ""))[:TITLE_LETTERS]
    if not title:
        raise Refused("the reply has no TITLE line; say in a few words what is new")
    reason = one_line(heads.get("REASON", ""))[:REASON_LETTERS]
    expected = number_in(heads.get("EXPECTED", ""))
    return Answer(
        title, reason, expected, tuple(blocks), "" if blocks else wholes[0] + "\n"
    )


def from_json(reply: str) -> Answer | None:
    """A reply that is one JSON object; None when it is not."""
    text = reply.strip()
    if fence := re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", text, re.DOTALL):
        text = fence[1].strip()
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    for key in ("file", "path"):
        if isinstance(found.get(key), str):
            only_ours(found[key])
    return assembled(
        {key.upper(): str(found.get(key, "")) for key in ("title", "reason")}
        | {"EXPECTED": str(found.get("expected", ""))},
        [block_of(edit) for edit in list_of(found.get("edits"))],
        [whole] if isinstance(whole := found.get("source"), str) and whole else [],
        reply,
    )


def both(block: Block) -> str:
    return block.search + block.replace


def plain(text: str) -> bool:
    """Whether a text can be a file: JSON may spell what UTF-8 cannot."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def list_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def block_of(edit: Any) -> Block:
    """One edit of a JSON reply, or Refused."""
    if not isinstance(edit, dict):
        raise Refused("an edit must be an object with search and replace")
    if isinstance(edit.get("file"), str):
        only_ours(edit["file"])
    search, replace = edit.get("search"), edit.get("replace")
    if not isinstance(search, str) or not isinstance(replace, str):
        raise Refused("an edit needs search and replace, both texts")
    return Block(search.strip("\n"), replace.strip("\n"))


def only_ours(path: str) -> None:
    """Refused when a reply names another file than train.py."""
    name = path.strip().strip("`*\"' ").removeprefix("./")
    if name and name != OURS:
        raise Refused(
            f"the reply edits {one_line(name)[:80]!r}; only {OURS} may be changed"
        )


def number_in(text: str) -> float | None:
    """The first number of a text; None when it has none."""
    found = NUMBER.search(text)
    if found is None:
        return None
    value = float(found[0].replace("\u2212", "-"))
    return value if abs(value) < 1e9 else None


# -- changing a file -------------------------------------------------------------------


def replaced(source: str, block: Block, number: int) -> str:
    """The file with one block replaced, or Refused."""
    if not block.search.strip():
        raise Refused(f"block {number} has an empty SEARCH; quote the lines to replace")
    lines, wanted = source.split("\n"), block.search.split("\n")
    for same in (as_written, str.rstrip, str.strip):
        places = matches(lines, wanted, same)
        if len(places) > 1:
            raise Refused(
                f"block {number}: its SEARCH matches {len(places)} places (lines "
                f"{', '.join(str(p + 1) for p in places[:5])}); quote more lines"
            )
        if places:
            new = block.replace.split("\n") if block.replace else []
            if same is str.strip:
                new = shifted(new, wanted, lines[places[0] : places[0] + len(wanted)])
            return "\n".join(
                lines[: places[0]] + new + lines[places[0] + len(wanted) :]
            )
    raise Refused(
        f"block {number}: its SEARCH is not in {OURS}: {nearest(lines, wanted)}"
    )


def as_written(line: str) -> str:
    return line


def matches(lines: list[str], wanted: list[str], same: Any) -> list[int]:
    """Where the wanted lines stand, by one notion of sameness."""
    there, here = [same(line) for line in wanted], [same(line) for line in lines]
    first, count = there[0], len(there)
    return [
        place
        for place, line in enumerate(here)
        if line == first and here[place : place + count] == there
    ]


def shifted(new: list[str], wanted: list[str], found: list[str]) -> list[str]:
    """New lines, indented as far as the file is where the reply was not."""
    pairs = [(w, f) for w, f in zip(wanted, found, strict=True) if w.strip()]
    apart = {indent(f) - indent(w) for w, f in pairs}
    if len(apart) != 1:
        raise Refused("its SEARCH is indented unlike the file; quote it as it stands")
    by = apart.pop()
    if any(line.strip() and indent(line) + by < 0 for line in new):
        raise Refused("its REPLACE is indented unlike the file; indent it as the file")
    return [
        (" " * (indent(line) + by) + line.lstrip()) if line.strip() else line
        for line in new
    ]


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def nearest(lines: list[str], wanted: list[str]) -> str:
    """What of a block is there, for whoever wrote it."""
    have = {line.strip() for line in lines}
    missing = [line for line in wanted if line.strip() and line.strip() not in have]
    if missing:
        return f"no line of the file reads {one_line(missing[0])[:120]!r}"
    return "its lines are there, but not one after the other"


def ended(text: str) -> str:
    """Ends with exactly one newline."""
    return text.rstrip("\n") + "\n"
