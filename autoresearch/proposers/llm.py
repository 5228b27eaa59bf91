"""`provider:model[@URL]`: a language model, asked for one change at a time.

By pydantic-ai: anthropic, openai, google, openrouter, and any OpenAI-compatible server
(ollama, vllm, llamacpp, or any of them at a URL). The answer is text in the form that
`context.REPLY_INSTRUCTIONS` states, so a model needs no tool calls and writes code
unescaped.

Promises: a wait, a refusal or nonsense never stalls a night: every asking ends inside
its limit, with one outcome on record and its cost, unknown where nobody says. 429 and
5xx are tried again as the server asks, or the model rests until then. An answer that
does not fit goes back once with the reason. A reply is read up to a size. Money is
spent only within `dollars`, counted before each call at the most it can cost.

Keys come from the environment alone: ANTHROPIC_API_KEY, OPENAI_API_KEY, GOOGLE_API_KEY,
OPENROUTER_API_KEY. Not covered: streaming; tools; a provider's own retries (off).
"""

import json
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from autoresearch.devices import discovery
from autoresearch.errors import LabError
from autoresearch.experiment import Proposal
from autoresearch.git import compute_blob_id
from autoresearch.proposers import context
from autoresearch.proposers.toolkit import Toolkit, proposal_from_reply
from autoresearch.records.ledger import Ledger, ProposerCall
from autoresearch.text import strip_invisible, to_one_line

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
from autoresearch.proposers.llm_client import (
    KEY_VARIABLES,
    MAX_OUTPUT_TOKENS,
    SERVER_COMMANDS,
    SHORT_BACKOFF_SECONDS,
    Endpoint,
    NoAnswer,
    request_with_retries,
)

ANSWER_SECONDS = 300.0  # of one asking, tries and waits included
INITIAL_BACKOFF_SECONDS = 30.0
MAX_BACKOFF_SECONDS = 900.0


CODEWORD = "PELARGONIUM"
CODEWORD_QUESTION = "Reply with the codeword from the very beginning, and nothing else."
WINDOW_TOKENS = 49_152  # a context, an answer, and both once more


def make_filler_text() -> str:
    """A text as long as the largest context."""
    line = "{:05}: the loss fell, then it rose, and nobody knew why."
    count = context.BUDGET_TOKENS // context.estimate_tokens(line.format(0) + "\n")
    return "\n".join(line.format(number) for number in range(count))


class LLM:
    """One model, asked whenever it is its turn."""

    def __init__(self, spec: str, desk: Toolkit) -> None:
        require_pydantic_ai()
        self.name = spec
        self._toolkit = desk
        self._endpoint = Endpoint.parse(spec)
        self._resting_until = 0.0  # time.time()
        self._backoff_seconds = INITIAL_BACKOFF_SECONDS
        self._is_out_of_budget = False
        # A model on the GPU that trains is asked between runs only, and unloaded.
        self.shares_gpu = self._endpoint.is_local and bool(discovery.list_gpus())
        require_key_and_budget(spec, self._endpoint, desk)

    @property
    def exhausted(self) -> bool:
        """Whether the cost limit is reached."""
        return self._is_out_of_budget

    @property
    def resting_until(self) -> float:
        """Until when it is not asked, in seconds since 1970; 0 when it may be."""
        return self._resting_until if time.time() < self._resting_until else 0.0

    def propose(self, ledger: Ledger) -> Proposal | None:
        """Its next idea, judged; None while it rests or when no answer came."""
        start = ledger.starting_point
        if start is None or self.resting_until or self._is_out_of_budget:
            return None
        prompt = context.build_context(ledger, self._toolkit.build_request(ledger))
        talk = Conversation(start.blob)
        if not self._reserve_cost(talk, prompt):
            self._stop_unaffordable(ledger, talk)
            return None
        try:
            proposal = self._request_proposal(ledger, talk, prompt)
            self._backoff_seconds = INITIAL_BACKOFF_SECONDS
            word = f"refused: {proposal.refused}" if proposal.refused else "proposed"
            self._record_call(ledger, talk, word, compute_blob_id(proposal.source))
        except NoAnswer as none:
            self._back_off(ledger, talk, none)
            return None
        finally:
            self._toolkit.budget.release_dollars(talk.reserved_dollars)
            if self.shares_gpu:
                unload_ollama(self._endpoint)
        return proposal

    def _reserve_cost(self, talk: "Conversation", prompt: str) -> bool:
        """Reserve the most that one more call can cost, if the budget allows it."""
        most = self.estimate_max_dollars(prompt)
        if not self._toolkit.budget.reserve_dollars(most):
            return False
        talk.reserved_dollars += most or 0.0
        talk.max_call_dollars = most or 0.0
        return True

    def _stop_unaffordable(self, ledger: Ledger, talk: "Conversation") -> None:
        """Stop for good, unless calls under way may release part of the budget."""
        if self._toolkit.budget.has_reservations or self._is_out_of_budget:
            return
        self._is_out_of_budget = True
        self._record_call(ledger, talk, "stopped: dollars are used up")

    def _request_proposal(
        self, ledger: Ledger, talk: "Conversation", prompt: str
    ) -> Proposal:
        """Ask; where the answer does not fit, say why and ask once more."""
        source = ledger.load_source(talk.blob)
        deadline = time.monotonic() + ANSWER_SECONDS
        why, proposal = "", None
        for words in (prompt, ""):
            said = words or (
                f"Refused:\n{context.quote_data('reason', strip_invisible(why))}\n"
                "Send the whole reply again, corrected, in the same form. Or another "
                "idea that fits."
            )
            try:
                reply = talk.send(self._endpoint, said, deadline)
            except NoAnswer:
                if proposal is None:
                    raise
                break  # the first answer goes on record with its reason
            proposal, why = proposal_from_reply(reply, self.name, talk.blob, source)
            why = why or self._toolkit.find_fault(ledger, proposal)
            if not why or time.monotonic() > deadline - 5:
                break
            if not words or not self._reserve_cost(talk, prompt + reply):
                break
        assert proposal is not None, "the first answer came, or NoAnswer did"
        return replace(proposal, refused=to_one_line(why)[:300])

    def _back_off(self, ledger: Ledger, talk: "Conversation", none: NoAnswer) -> None:
        """Record a failure and back off."""
        seconds = none.backoff_seconds or self._backoff_seconds
        if not none.backoff_seconds:
            self._backoff_seconds = min(2 * self._backoff_seconds, MAX_BACKOFF_SECONDS)
        self._resting_until = time.time() + seconds
        # A rest of half a minute is not "until 03:10", which it is already.
        form = "%H:%M:%S" if seconds < SHORT_BACKOFF_SECONDS else "%H:%M"
        at = time.strftime(form, time.localtime(self._resting_until))
        word = (
            f"limit until {at}"
            if none.is_usage_limit
            else f"no answer, rests until {at}"
        )
        self._record_call(ledger, talk, f"{word}: {none}")

    def _record_call(
        self, ledger: Ledger, talk: "Conversation", outcome: str, blob: str = ""
    ) -> None:
        transcript = (
            self._toolkit.save_transcript(talk.to_json()) if talk.messages else ""
        )
        self._toolkit.record_call(
            ledger,
            ProposerCall(
                self.name,
                talk.started_at,
                time.time() - talk.started_at,
                talk.dollars,
                talk.tokens_in,
                talk.tokens_out,
                to_one_line(outcome)[:400],
                talk.blob,
                blob,
                transcript,
            ),
            at_most=talk.max_total_dollars,
        )

    def estimate_max_dollars(self, prompt: str) -> float | None:
        """The most that one call with this prompt can cost; None: unknown."""
        return estimate_dollars(
            self._endpoint, context.estimate_tokens(prompt), MAX_OUTPUT_TOKENS
        )

    def close(self) -> None:
        """Nothing to close: no resource is kept between calls."""

    def check_ready(self) -> str:
        """Ask it something of full size: `ok ...`, or what is wrong and the remedy.

        Servers of local models cut a prompt that does not fit their window, from its
        beginning and without a word; so the word to repeat stands at the beginning.
        """
        first = f"The codeword is {CODEWORD}."
        prompt = "\n\n".join((first, make_filler_text(), CODEWORD_QUESTION))
        talk, begun = Conversation(""), time.monotonic()
        if not self._reserve_cost(talk, prompt):
            return "not asked: dollars are used up"
        try:
            reply = talk.send(self._endpoint, prompt, begun + ANSWER_SECONDS)
        except NoAnswer as none:
            at = time.strftime(
                "%H:%M", time.localtime(time.time() + none.backoff_seconds)
            )
            if none.is_usage_limit:
                return f"limit until {at}"
            return f"no answer: {none}{self._explain_server_error(str(none))}"
        finally:
            tokens = (talk.tokens_in or 0) + (talk.tokens_out or 0)
            self._toolkit.budget.charge(talk.dollars, tokens, talk.max_total_dollars)
            self._toolkit.budget.release_dollars(talk.reserved_dollars)
            if self.shares_gpu:
                unload_ollama(self._endpoint)
        took = time.monotonic() - begun
        if CODEWORD not in reply.upper():
            return (
                "loses the beginning of a long prompt. Next: "
                f"{self._context_window_hint}"
            )
        words = f"ok, read {context.BUDGET_TOKENS} tokens in {took:.1f} s"
        if self.shares_gpu:
            unloads = self._endpoint.provider == "ollama"
            words += (
                "; on the GPU that trains, so asked between runs, which wait for it, "
                + ("and unloaded after each" if unloads else "and it keeps its memory")
            )
        return words

    def _explain_server_error(self, said: str) -> str:
        """What to type where a server of one's own does not answer, or has no such
        model; "" if unknown."""
        start, get = SERVER_COMMANDS.get(self._endpoint.provider, ("", ""))
        model = self._endpoint.model
        if get and said.startswith("404"):
            return f". Next: {get.format(model=model)}"
        if (
            not start
            or not self._endpoint.is_private
            or not said.startswith("Connection")
        ):
            return ""
        return f" Nothing is at {self._endpoint.url}. Next: {start.format(model=model)}"

    @property
    def _context_window_hint(self) -> str:
        """How its server gets a window that is large enough."""
        if self._endpoint.provider == "ollama":
            return f"OLLAMA_CONTEXT_LENGTH={WINDOW_TOKENS} ollama serve"
        if self._endpoint.provider == "llamacpp":
            return f"llama-server --ctx-size {WINDOW_TOKENS}"
        return f"give it a context of {WINDOW_TOKENS} tokens (vllm: --max-model-len)"


class Conversation:
    """The messages of one conversation, with its tokens and cost."""

    def __init__(self, blob: str) -> None:
        self.blob = blob
        self.started_at = time.time()
        self.messages: list[ModelMessage] = []
        self.tokens_in: int | None = None  # None: not reported
        self.tokens_out: int | None = None
        self.dollars: float | None = None  # None: unknown
        self.reserved_dollars = 0.0  # dollars reserved for it
        self.max_call_dollars = 0.0  # of one call; 0: unknown
        self.max_total_dollars = 0.0  # what it took, calls without an answer included
        self._has_unpriced_call = False

    def send(self, endpoint: Endpoint, words: str, deadline: float) -> str:
        """Send a message; returns the text of the reply. Raises NoAnswer."""
        from pydantic_ai.messages import ModelRequest, UserPromptPart

        self.messages.append(ModelRequest(parts=[UserPromptPart(words)]))
        response = request_with_retries(
            endpoint, self.messages, deadline, self._count_lost_call
        )
        self.messages.append(response)
        self._count_usage(endpoint, response)
        text = response.text or ""
        if response.finish_reason == "length" and ">>>>>>> REPLACE" not in text:
            raise NoAnswer(f"cut off after {MAX_OUTPUT_TOKENS} tokens", 0.0)
        return text

    def _count_lost_call(self) -> None:
        """A call was sent and its answer never came: it may be on the bill."""
        self._has_unpriced_call, self.dollars = True, None
        self.max_total_dollars += self.max_call_dollars

    def _count_usage(self, endpoint: Endpoint, response: "ModelResponse") -> None:
        usage = response.usage
        if usage.input_tokens or usage.output_tokens:
            self.tokens_in = (self.tokens_in or 0) + usage.input_tokens
            self.tokens_out = (self.tokens_out or 0) + usage.output_tokens
        cost = (
            estimate_dollars(endpoint, usage.input_tokens, usage.output_tokens)
            if usage.output_tokens
            else None
        )
        self._has_unpriced_call |= cost is None
        self.max_total_dollars += self.max_call_dollars if cost is None else cost
        self.dollars = (
            None if self._has_unpriced_call else (self.dollars or 0.0) + (cost or 0.0)
        )

    def to_json(self) -> bytes:
        """All messages, as JSON."""
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        return bytes(ModelMessagesTypeAdapter.dump_json(self.messages, indent=1))


def unload_ollama(endpoint: Endpoint) -> None:
    """Ask ollama to give the GPU's memory back; other servers know no such call."""
    if endpoint.provider != "ollama":
        return
    parts = urlsplit(endpoint.url)
    body = json.dumps({"model": endpoint.model, "keep_alive": 0}).encode()
    request = urllib.request.Request(  # noqa: S310  (the URL was read by Endpoint)
        f"{parts.scheme}://{parts.netloc}/api/generate",
        body,
        {"content-type": "application/json"},
    )
    # If it cannot be reached now, it holds no memory to free.
    with suppress(OSError), urllib.request.urlopen(request, timeout=20):  # noqa: S310
        pass


# -- money, keys, and the extra --------------------------------------------------------


def estimate_dollars(
    endpoint: Endpoint, tokens_in: int, tokens_out: int
) -> float | None:
    """Dollars of a call by the provider's list price; None if unknown."""
    if endpoint.has_explicit_url or endpoint.provider not in KEY_VARIABLES:
        return None
    from genai_prices import Usage, calc_price

    try:
        found = calc_price(
            Usage(input_tokens=tokens_in, output_tokens=tokens_out),
            endpoint.model,
            provider_id=endpoint.provider,
        )
    except (LookupError, ValueError):
        return None
    return float(found.total_price)


def require_key_and_budget(spec: str, endpoint: Endpoint, desk: Toolkit) -> None:
    """LabError if there is no API key or the cost limit is 0."""
    if endpoint.is_private:
        return
    if endpoint.provider in KEY_VARIABLES and not endpoint.api_key:
        name = KEY_VARIABLES[endpoint.provider]
        raise LabError(f"proposer {spec!r} needs a key. Next: export {name}=...")
    if desk.budget.limit_dollars <= 0:
        raise LabError(
            f"proposer {spec!r} costs money, and dollars is 0. Next: autoresearch run "
            "--dollars 5, or dollars = 5 in program.md"
        )


def require_pydantic_ai() -> None:
    """LabError when the models' library is not installed."""
    try:
        import pydantic_ai.direct  # noqa: F401
    except ImportError:
        raise LabError(
            "a language model needs pydantic-ai. Next: pip install -e '.[llm]'"
        ) from None
