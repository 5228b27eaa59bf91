"""Parse a proposer's reply into a whole new train.py.

A reply is text: TITLE, REASON and EXPECTED on a line each, then search/replace blocks,
a unified diff, or the whole file in one fence. A JSON object with the same content is
accepted as well. Blocks are matched exactly, then without trailing space, then without
indentation; each must match one place only. Nothing is guessed: what does not fit
raises `ReplyRejected`, with a sentence that can be shown to the proposer.

Not covered: whether the result is Python, or good (`constraints`, `preflight`).
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autoresearch.text import to_one_line

LARGEST_REPLY_CHARACTERS = 400_000
MAX_BLOCKS = 40
MAX_TITLE_LETTERS, MAX_REASON_LETTERS = 120, 1500
TRAIN_FILE = "train.py"

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


class ReplyRejected(Exception):
    """A reply that cannot be used; the message tells its author why."""


@dataclass(frozen=True, slots=True)
class EditBlock:
    """Replace `search` by `replace`, both whole lines."""

    search: str
    replace: str


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """One idea, as stated in a reply."""

    title: str
    reason: str
    expected: float | None  # change of the metric; None: not stated
    blocks: tuple[EditBlock, ...]  # empty: `whole` is given
    whole: str  # the new file; "": blocks are given


def parse_reply(reply: str) -> ParsedReply:
    """Parse a reply, or raise ReplyRejected."""
    if len(reply) > LARGEST_REPLY_CHARACTERS:
        raise ReplyRejected(
            f"the reply has {len(reply)} characters; at most "
            f"{LARGEST_REPLY_CHARACTERS} are read. Send search/replace blocks"
        )
    if not is_plain_text(reply):
        raise ReplyRejected(
            "the reply holds null bytes or half characters; send plain text"
        )
    parsed = parse_json_reply(reply) or parse_text_reply(reply)
    texts = (parsed.whole, *map(block_text, parsed.blocks))
    if not all(is_plain_text(text) for text in texts):
        raise ReplyRejected(
            "its edits hold null bytes or half characters; send plain text"
        )
    if len(parsed.blocks) > MAX_BLOCKS:
        raise ReplyRejected(
            f"{len(parsed.blocks)} blocks; one idea has at most {MAX_BLOCKS}"
        )
    return parsed


def apply_edits(parsed: ParsedReply, source: str) -> str:
    """Return the whole new train.py, or raise ReplyRejected."""
    if parsed.whole:
        return end_with_newline(parsed.whole)
    for number, block in enumerate(parsed.blocks, 1):
        source = replace_block(source, block, number)
    return source


def apply_reply(reply: str, source: str) -> tuple[ParsedReply, str]:
    """Parse a reply and apply it: (the parsed reply, the new file)."""
    parsed = parse_reply(reply)
    return parsed, apply_edits(parsed, source)


# -- reading a reply -------------------------------------------------------------------


def parse_text_reply(reply: str) -> ParsedReply:
    """Parse a reply in the text form."""
    lines = reply.replace("\r\n", "\n").split("\n")
    heads: dict[str, str] = {}
    blocks: list[EditBlock] = []
    wholes: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if head := HEAD.match(line):
            key = head[1].upper()
            if key == "FILE":
                require_train_file(head[2])
            heads.setdefault(key, head[2].strip().strip("*_` "))
        elif path := PATH.match(line):
            require_train_file(path[1])
        elif SEARCH.match(line):
            block, at = parse_block(lines, at)
            blocks.append(block)
            continue
        elif fence := FENCE.match(line):
            content, at = parse_fence(lines, at, fence[1])
            blocks += content.blocks
            wholes += [content.whole] if content.whole else []
            continue
        at += 1
    return build_reply(heads, blocks, wholes, reply)


@dataclass(frozen=True, slots=True)
class FenceContent:
    """The content of a fence."""

    blocks: tuple[EditBlock, ...]
    whole: str


def parse_fence(lines: Sequence[str], at: int, mark: str) -> tuple[FenceContent, int]:
    """Parse the fence that opens at a line: (its content, the line after it)."""
    word = FENCE.match(lines[at])
    language = word[2].lower() if word else ""
    end = at + 1
    while end < len(lines) and lines[end].rstrip() != mark:
        end += 1
    body = lines[at + 1 : end]
    if any(SEARCH.match(line) for line in body):
        return FenceContent(tuple(parse_blocks(body)), ""), end + 1
    if language in ("diff", "patch") or any(line.startswith("@@ ") for line in body):
        return FenceContent(tuple(parse_diff_hunks(body)), ""), end + 1
    if language in ("python", "py", "", TRAIN_FILE) and any(
        line.strip() for line in body
    ):
        return FenceContent((), "\n".join(body)), end + 1
    return FenceContent((), ""), end + 1


def parse_blocks(lines: Sequence[str]) -> list[EditBlock]:
    """Parse all search/replace blocks among some lines."""
    blocks, at = [], 0
    while at < len(lines):
        if SEARCH.match(lines[at]):
            block, at = parse_block(lines, at)
            blocks.append(block)
            continue
        if path := PATH.match(lines[at]):
            require_train_file(path[1])
        at += 1
    return blocks


def parse_block(lines: Sequence[str], at: int) -> tuple[EditBlock, int]:
    """Parse the block that begins at a line: (block, the line after it)."""
    middle = end = None
    for number in range(at + 1, len(lines)):
        if middle is None and MIDDLE.match(lines[number]):
            middle = number
        elif middle is not None and REPLACE.match(lines[number]):
            end = number
            break
    if middle is None or end is None:
        raise ReplyRejected(
            "a SEARCH block is not closed: it needs a line ======= and then a line "
            ">>>>>>> REPLACE"
        )
    search = "\n".join(lines[at + 1 : middle])
    return EditBlock(search, "\n".join(lines[middle + 1 : end])), end + 1


def parse_diff_hunks(lines: Sequence[str]) -> list[EditBlock]:
    """Parse the hunks of a unified diff as blocks; line numbers are ignored."""
    blocks: list[EditBlock] = []
    before: list[str] = []
    after: list[str] = []

    def close_hunk() -> None:
        if before != after:
            blocks.append(EditBlock("\n".join(before), "\n".join(after)))
        before.clear()
        after.clear()

    for line in lines:
        if name := DIFF_FILE.match(line):
            if name[1] != "/dev/null":
                require_train_file(name[1])
        elif line.startswith("@@"):
            close_hunk()
        elif line.startswith("-"):
            before.append(line[1:])
        elif line.startswith("+"):
            after.append(line[1:])
        elif not line.startswith(("diff ", "index ", "\\")):
            before.append(line[1:])
            after.append(line[1:])
    close_hunk()
    return blocks


def build_reply(
    heads: dict[str, str], blocks: list[EditBlock], wholes: list[str], reply: str
) -> ParsedReply:
    """Build the parsed reply from heads and edits, or raise ReplyRejected."""
    if not blocks and not wholes:
        start = to_one_line(reply)[:120]
        raise ReplyRejected(
            "the reply changes nothing: it has no SEARCH block and no file. It begins: "
            f"{start!r}"
        )
    if not blocks and len(wholes) > 1:
        wholes = [max(wholes, key=len)]
    title = to_one_line(heads.get("TITLE", ""))[:MAX_TITLE_LETTERS]
    if not title:
        raise ReplyRejected(
            "the reply has no TITLE line; say in a few words what is new"
        )
    reason = to_one_line(heads.get("REASON", ""))[:MAX_REASON_LETTERS]
    expected = find_number(heads.get("EXPECTED", ""))
    return ParsedReply(
        title, reason, expected, tuple(blocks), "" if blocks else wholes[0] + "\n"
    )


def parse_json_reply(reply: str) -> ParsedReply | None:
    """Parse a reply that is one JSON object; None: it is not."""
    text = reply.strip()
    if fence := re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", text, re.DOTALL):
        text = fence[1].strip()
    if not text.startswith("{"):
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    for key in ("file", "path"):
        if isinstance(fields.get(key), str):
            require_train_file(fields[key])
    return build_reply(
        {key.upper(): str(fields.get(key, "")) for key in ("title", "reason")}
        | {"EXPECTED": str(fields.get("expected", ""))},
        [parse_json_edit(edit) for edit in as_list(fields.get("edits"))],
        [whole] if isinstance(whole := fields.get("source"), str) and whole else [],
        reply,
    )


def block_text(block: EditBlock) -> str:
    """Return both sides of a block, for checks."""
    return block.search + block.replace


def is_plain_text(text: str) -> bool:
    """Whether a text can be a file: JSON can hold surrogates, which UTF-8 cannot."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def parse_json_edit(edit: Any) -> EditBlock:
    """Parse one edit of a JSON reply, or raise ReplyRejected."""
    if not isinstance(edit, dict):
        raise ReplyRejected("an edit must be an object with search and replace")
    if isinstance(edit.get("file"), str):
        require_train_file(edit["file"])
    search, replace = edit.get("search"), edit.get("replace")
    if not isinstance(search, str) or not isinstance(replace, str):
        raise ReplyRejected("an edit needs search and replace, both texts")
    return EditBlock(search.strip("\n"), replace.strip("\n"))


def require_train_file(path: str) -> None:
    """Raise ReplyRejected if a reply names another file than train.py."""
    name = path.strip().strip("`*\"' ").removeprefix("./")
    if name and name != TRAIN_FILE:
        raise ReplyRejected(
            f"the reply edits {to_one_line(name)[:80]!r}; only {TRAIN_FILE} may be "
            "changed"
        )


def find_number(text: str) -> float | None:
    """Find the first number of a text; None: it has none."""
    match = NUMBER.search(text)
    if match is None:
        return None
    value = float(match[0].replace("\u2212", "-"))
    return value if abs(value) < 1e9 else None


# -- changing a file -------------------------------------------------------------------


def replace_block(source: str, block: EditBlock, number: int) -> str:
    """Replace one block in the file, or raise ReplyRejected."""
    if not block.search.strip():
        raise ReplyRejected(
            f"block {number} has an empty SEARCH; quote the lines to replace"
        )
    lines, wanted = source.split("\n"), block.search.split("\n")
    for normalize in (keep_line, str.rstrip, str.strip):
        places = find_matches(lines, wanted, normalize)
        if len(places) > 1:
            raise ReplyRejected(
                f"block {number}: its SEARCH matches {len(places)} places (lines "
                f"{', '.join(str(p + 1) for p in places[:5])}); quote more lines"
            )
        if places:
            new = block.replace.split("\n") if block.replace else []
            if normalize is str.strip:
                new = shift_indentation(
                    new, wanted, lines[places[0] : places[0] + len(wanted)]
                )
            return "\n".join(
                lines[: places[0]] + new + lines[places[0] + len(wanted) :]
            )
    raise ReplyRejected(
        f"block {number}: its SEARCH is not in {TRAIN_FILE}: "
        f"{explain_mismatch(lines, wanted)}"
    )


def keep_line(line: str) -> str:
    return line


def find_matches(
    lines: list[str], wanted: list[str], normalize: Callable[[str], str]
) -> list[int]:
    """Find the indices in `lines` where the wanted lines match, normalized."""
    pattern, text = list(map(normalize, wanted)), list(map(normalize, lines))
    count = len(pattern)
    return [
        index
        for index, line in enumerate(text)
        if line == pattern[0] and text[index : index + count] == pattern
    ]


def shift_indentation(
    new: list[str], wanted: list[str], matched: list[str]
) -> list[str]:
    """Indent the new lines by the difference of the file and the reply."""
    pairs = [(w, f) for w, f in zip(wanted, matched, strict=True) if w.strip()]
    shifts = {measure_indentation(f) - measure_indentation(w) for w, f in pairs}
    if len(shifts) != 1:
        raise ReplyRejected(
            "its SEARCH is indented unlike the file; quote it as it stands"
        )
    shift = shifts.pop()
    if any(line.strip() and measure_indentation(line) + shift < 0 for line in new):
        raise ReplyRejected(
            "its REPLACE is indented unlike the file; indent it as the file"
        )
    return [
        (" " * (measure_indentation(line) + shift) + line.lstrip())
        if line.strip()
        else line
        for line in new
    ]


def measure_indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def explain_mismatch(lines: list[str], wanted: list[str]) -> str:
    """Say which line of a block is missing, for its author."""
    have = {line.strip() for line in lines}
    missing = [line for line in wanted if line.strip() and line.strip() not in have]
    if missing:
        return f"no line of the file reads {to_one_line(missing[0])[:120]!r}"
    return "its lines are there, but not one after the other"


def end_with_newline(text: str) -> str:
    """End a text with exactly one newline."""
    return text.rstrip("\n") + "\n"
