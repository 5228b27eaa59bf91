"""Parse tokens, dollars, usage limits and login errors from an agent's output."""

import json
import re
import time
from collections.abc import Sequence

from autoresearch.proposers.agents import acp
from autoresearch.proposers.agents.registry import AgentSpec, create_agent_home
from autoresearch.sandbox import command
from autoresearch.text import to_one_line

INITIAL_BACKOFF_SECONDS = 60.0
LOGIN_BACKOFF_SECONDS = 3600.0
DEFAULT_LIMIT_SECONDS = 1800.0  # when a limit does not say until when
MAX_LIMIT_SECONDS = 7 * 86_400.0

NOT_LOGGED_IN_PATTERN = re.compile(
    r"not logged in|please (?:run )?/?log ?in|/login|invalid api key|no api key"
    r"|api key (?:is )?(?:missing|not)|unauthorized|\b401\b"
    r"|auth\w* (?:method|required)",
    re.IGNORECASE,
)
USAGE_LIMIT_PATTERN = re.compile(
    r"(?:usage|rate|session|weekly|daily|request) limit|limit reached|\b429\b"
    r"|quota (?:exceeded|exhausted)|too many requests|resource.exhausted",
    re.IGNORECASE,
)


def explain_no_change(
    done: command.CommandResult, name: str, kind: AgentSpec, now: float
) -> tuple[str, float | None]:
    """Why no change came, and until when it makes no sense to ask (None: unknown)."""
    tail = to_one_line(done.text[-6000:])
    if done.exit_code is None:
        return f"no change within {done.seconds:.0f} s; killed", None
    if USAGE_LIMIT_PATTERN.search(tail):
        until = parse_limit_end(tail, now)
        at = time.strftime("%H:%M", time.localtime(until))
        return f"limit until {at}: {tail[-200:]}", until
    if NOT_LOGGED_IN_PATTERN.search(tail):
        words = (
            kind.login_hint.format(home=create_agent_home(name))
            or "see its own documentation"
        )
        return f"not logged in. Next: {words}", now + LOGIN_BACKOFF_SECONDS
    said = f": {tail[-200:]}" if tail else " and said nothing"
    return f"no change (exit code {done.exit_code}){said}", None


def parse_limit_end(words: str, now: float) -> float:
    """When a limit says it ends: an epoch, `in 2 hours 5 minutes`, `at 3:05 PM`.

    Never sooner than a minute from now, nor later than a week: what looks like a time
    may be none.
    """
    said = find_limit_time(words, now)
    if said is None or said < now + INITIAL_BACKOFF_SECONDS:
        return now + DEFAULT_LIMIT_SECONDS
    return min(said, now + MAX_LIMIT_SECONDS)


def find_limit_time(words: str, now: float) -> float | None:
    """The time that is named; None: none is."""
    if found := re.search(r"\b(1[6-9]\d{8}|2\d{9})\b", words):
        return float(found[1])
    unit = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
    spans = re.findall(
        r"(\d{1,6}(?:\.\d+)?)\s*"
        r"(days?|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)\b",
        words.partition(" in ")[2][:80].lower(),
    )
    if spans:
        return now + sum(float(count) * unit[word[0]] for count, word in spans)
    clock = re.search(
        r"(?:at|resets?|until)\s+(\d{1,2})(?::(\d\d))?\s*([ap]m)?\b", words.lower()
    )
    if clock is None or not (clock[2] or clock[3]):
        return None
    hour = int(clock[1]) % 12 + 12 * (clock[3] == "pm") if clock[3] else int(clock[1])
    today = time.localtime(now)
    at = time.mktime((*today[:3], hour, int(clock[2] or 0), 0, 0, 0, -1))
    return at if at > now else at + 86_400


def parse_usage(text: str) -> acp.AgentUsage:
    """The usage that its JSON lines report."""
    dollars: float | None = None
    tokens: list[int | None] = [None, None]
    for line in text.splitlines():
        if not line.startswith("{") or len(line) > 200_000:
            continue
        try:
            found = acp.as_dict(json.loads(line))
        except (ValueError, RecursionError):
            continue
        part = acp.as_dict(found.get("part"))
        if found.get("type") == "step_finish":  # opencode
            cost, counts = part.get("cost"), acp.as_dict(part.get("tokens"))
            keys = ("input", "output")
        else:  # claude and codex say it once, at the end
            cost, counts = found.get("total_cost_usd"), acp.as_dict(found.get("usage"))
            keys = ("input_tokens", "output_tokens")
            if found.get("type") not in ("result", "turn.completed"):
                continue
        # A price that is not known is said as 0 by some; 0 is no price.
        if isinstance(cost, int | float) and 0 < cost < 1e6:
            dollars = (dollars or 0.0) + float(cost)
        for place, key in enumerate(keys):
            count = counts.get(key)
            if isinstance(count, int) and 0 <= count < 1 << 40:
                tokens[place] = (tokens[place] or 0) + count
    return acp.AgentUsage(dollars, tokens[0], tokens[1])


def sum_usage(bills: Sequence[acp.AgentUsage]) -> acp.AgentUsage:
    """Total usage of several runs; a field is None if any run did not report it."""
    dollars = [bill.dollars for bill in bills if bill.dollars is not None]
    into = [bill.tokens_in for bill in bills if bill.tokens_in is not None]
    out = [bill.tokens_out for bill in bills if bill.tokens_out is not None]
    return acp.AgentUsage(
        sum(dollars) if len(dollars) == len(bills) else None,
        sum(into) if len(into) == len(bills) else None,
        sum(out) if len(out) == len(bills) else None,
    )


def count_tokens(bill: acp.AgentUsage) -> int:
    """Input and output tokens together."""
    return (bill.tokens_in or 0) + (bill.tokens_out or 0)
