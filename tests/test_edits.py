"""Replies of models: read, matched to one place, or refused in a sentence."""

import ast
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch.lab import reply_parser
from autoresearch.lab.reply_parser import ReplyRejected

SOURCE = """import prepare

RATE = 0.1
DEPTH = 4


def build_model():
    if DEPTH:
        return 1
    return 2


run = prepare.begin(build_model)
"""
HEAD = "TITLE: more depth\nREASON: deeper is better\nEXPECTED: -0.002\n"


def block(search, replace):
    return f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n"


def test_a_reply_becomes_a_whole_file_and_says_what_it_expects():
    answer, source = reply_parser.apply_reply(
        HEAD + block("DEPTH = 4", "DEPTH = 8"), SOURCE
    )

    assert (answer.title, answer.reason) == ("more depth", "deeper is better")
    assert answer.expected == -0.002
    assert source == SOURCE.replace("DEPTH = 4", "DEPTH = 8")


@pytest.mark.parametrize(
    "reply",
    [
        "**TITLE:** deeper\n```\n" + block("DEPTH = 4", "DEPTH = 8") + "```\n",
        "TITLE: deeper\n" + block("DEPTH = 4   ", "DEPTH = 8"),
        "TITLE: deeper\n```diff\n--- a/train.py\n+++ b/train.py\n@@ -9,9 +9,9 @@\n"
        " RATE = 0.1\n-DEPTH = 4\n+DEPTH = 8\n```\n",
        '{"title": "deeper", "edits": [{"search": "DEPTH = 4", "replace": "DEPTH = 8"}]}',
        "TITLE: deeper\n```python\n" + SOURCE.replace("= 4", "= 8") + "```\nDone.",
        "Sure!\r\nTITLE: deeper\r\n"
        + block("DEPTH = 4", "DEPTH = 8").replace("\n", "\r\n"),
        "TITLE: deeper\ntrain.py\n" + block("DEPTH = 4", "DEPTH = 8"),
    ],
)
def test_many_spellings_of_a_reply_mean_the_same(reply):
    _, source = reply_parser.apply_reply(reply, SOURCE)

    assert source == SOURCE.replace("DEPTH = 4", "DEPTH = 8")


def test_lines_indented_otherwise_are_found_and_put_back_as_the_file_is():
    reply = "TITLE: t\n" + block("if DEPTH:\n    return 1", "if RATE:\n    return 3")

    _, source = reply_parser.apply_reply(reply, SOURCE)

    assert "    if RATE:\n        return 3\n    return 2\n" in source
    ast.parse(source)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "changes nothing"),
        ("I cannot help with that.", "changes nothing"),
        (HEAD, "changes nothing"),
        (block("DEPTH = 4", "DEPTH = 8"), "no TITLE"),
        (HEAD + block("DEPTH = 5", "DEPTH = 8"), "no line of the file reads 'DEPTH"),
        (HEAD + block("", "x = 1"), "empty SEARCH"),
        (HEAD + block("DEPTH = 4\nRATE = 0.1", "x"), "not one after the other"),
        (HEAD + block("    return 1\n    return 2", "x"), "indented unlike"),
        (HEAD + "<<<<<<< SEARCH\nDEPTH = 4\n=======\n", "not closed"),
        (HEAD + "FILE: prepare.py\n" + block("METRIC = 1", ""), "only train.py"),
        (HEAD + "prepare.py\n" + block("METRIC = 1", ""), "only train.py"),
        (HEAD + "```diff\n--- a/prepare.py\n@@ -1 +1 @@\n-a\n+b\n```", "only train.py"),
        (HEAD + "x" * 5_000_000, "characters"),
        (HEAD + "\0", "null"),
        ('{"title": "t", "edits": [{"search": 1}]}', "search and replace"),
        ("[" * 100_000, "changes nothing"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(reply, why):
    with pytest.raises(ReplyRejected, match=why):
        reply_parser.apply_reply(reply, SOURCE)


def test_a_search_that_matches_twice_is_refused_with_its_places():
    twice = SOURCE + "RATE = 0.1\n"

    with pytest.raises(ReplyRejected, match=r"matches 2 places \(lines 3, 14\)"):
        reply_parser.apply_reply(HEAD + block("RATE = 0.1", "RATE = 1"), twice)


def test_a_title_cannot_carry_escapes_or_turn_the_line_around():
    reply = "TITLE: \x1b[31mred\x1b[0m \u202eesrever\u200b\n" + block("RATE = 0.1", "")

    assert reply_parser.parse_reply(reply).title == "red esrever"


PIECES = st.sampled_from(
    [
        "TITLE: t", "REASON: r", "EXPECTED: x", "EXPECTED: -1e400", "FILE: prepare.py",
        "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "```python", "```diff", "```",
        "@@ -1 +1 @@", "-DEPTH = 4", "+DEPTH = 8", "DEPTH = 4", "  return 1", "{", "}",
        '{"title": "x", "source": "y"}', "\x1b[2J", "\u202e", "\ud800", "prepare.py",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=30)), max_size=14))
def test_any_reply_is_an_answer_or_refused_and_nothing_else(lines):
    with suppress(ReplyRejected):
        answer, source = reply_parser.apply_reply("\n".join(lines), SOURCE)

        assert answer.title
        assert isinstance(source, str)
