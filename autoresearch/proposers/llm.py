"""`provider:model[@URL]`: a language model, asked for one change at a time.

By pydantic-ai: anthropic, openai, google, openrouter, and any OpenAI-compatible server
(ollama, vllm, llamacpp, or any of them at a URL). The answer is text in the form that
`context.ASK` states, so a model needs no tool calls and writes code unescaped.

Promises: a wait, a refusal or nonsense never stalls a night: every asking ends inside
its limit, with one outcome on record and its cost, unknown where nobody says. 429 and
5xx are tried again as the server asks, or the model rests until then. An answer that
does not fit goes back once with the reason. A reply is read up to a size. Money is
spent only within `dollars`, counted before each call at the most it can cost.

Keys come from the environment alone: ANTHROPIC_API_KEY, OPENAI_API_KEY, GOOGLE_API_KEY,
OPENROUTER_API_KEY. Not covered: streaming; tools; a provider's own retries (off).
"""

import asyncio
import ipaddress
import json
import math
import os
import re
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
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
    from pydantic_ai.models import Model

SPEC_PATTERN = re.compile(r"([a-z][a-z0-9_-]*):([^@\s]+)(?:@(https?://[^\s@]+))?")
# Where a provider lives when no URL is given, and what its key is called.
KEY_VARIABLES = {
    "anthropic": "ANTHROPIC_API_KEY",
    "openai": "OPENAI_API_KEY",
    "google": "GOOGLE_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
}
DEFAULT_URLS = {
    "ollama": "http://localhost:11434/v1",
    "vllm": "http://localhost:8000/v1",
    "llamacpp": "http://localhost:8080/v1",
    "openrouter": "https://openrouter.ai/api/v1",
}
# How a server of one's own is started, and how it gets a model.
SERVER_COMMANDS = {
    "ollama": ("ollama serve", "ollama pull {model}"),
    "vllm": ("vllm serve {model}", ""),
    "llamacpp": ("llama-server -m {model}", ""),
}
PROVIDERS = (*KEY_VARIABLES, "ollama", "vllm", "llamacpp")
ANSWER_SECONDS = 300.0  # of one asking, tries and waits included
CALL_SECONDS = 180.0
MAX_OUTPUT_TOKENS = 16_000
MAX_BODY_BYTES = 2 << 20  # of one HTTP answer
MAX_RETRY_WAIT_SECONDS = 30.0  # for a server that asks to wait; beyond it, rest
INITIAL_BACKOFF_SECONDS = 30.0
SHORT_BACKOFF_SECONDS = 600.0  # below it, the time until is told to the second
MAX_BACKOFF_SECONDS = 900.0
MAX_LIMIT_SECONDS = 7 * 86_400.0
REFUSED_BACKOFF_SECONDS = 3600.0  # a key that is wrong, a model that is not there
RETRY_PAUSES_SECONDS = (1.0, 3.0, 8.0)


CODEWORD = "PELARGONIUM"
CODEWORD_QUESTION = "Reply with the codeword from the very beginning, and nothing else."
WINDOW_TOKENS = 49_152  # a context, an answer, and both once more


def make_filler_text() -> str:
    """A text as long as the largest context."""
    line = "{:05}: the loss fell, then it rose, and nobody knew why."
    count = context.BUDGET_TOKENS // context.estimate_tokens(line.format(0) + "\n")
    return "\n".join(line.format(number) for number in range(count))


class NoAnswer(Exception):
    """Nothing came that could be read. `rest_seconds` until it makes sense to ask."""

    def __init__(
        self,
        words: str,
        rest_seconds: float,
        *,
        limit: bool = False,
        lost: bool = False,
    ) -> None:
        super().__init__(words)
        # Servers say anything, also a thousand years.
        self.backoff_seconds = min(max(0.0, rest_seconds), MAX_LIMIT_SECONDS)
        self.is_usage_limit = limit  # a usage limit: nothing is wrong
        self.may_be_billed = lost  # there may have been an answer, which is billed


class ResponseTooLarge(Exception):
    """An answer that does not end."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is, from its spec."""

    provider: str
    model: str
    url: str  # "": the provider's own
    has_explicit_url: bool  # whether the spec named the URL

    @classmethod
    def parse(cls, spec: str) -> "Endpoint":
        """`provider:model[@URL]` -> Endpoint, or LabError."""
        found = SPEC_PATTERN.fullmatch(spec)
        if found is None or found[1] not in PROVIDERS:
            raise LabError(
                f"proposer {spec!r}: the providers are {', '.join(PROVIDERS)}. "
                "Next: write provider:model, or provider:model@http://host:port"
            )
        provider, model, url = found[1], found[2], found[3] or ""
        base = url or DEFAULT_URLS.get(provider, "")
        if url and urlsplit(url).path in ("", "/") and provider not in KEY_VARIABLES:
            base = url.rstrip("/") + "/v1"
        return cls(provider, model, base, bool(url))

    @property
    def is_private(self) -> bool:
        """Whether it is a machine of the user's own, so that nothing is billed."""
        host = urlsplit(self.url).hostname or ""
        if not host:
            return False
        try:
            return ipaddress.ip_address(host).is_private
        except ValueError:
            return host == "localhost" or host.endswith((".local", ".lan", ".internal"))

    @property
    def is_local(self) -> bool:
        """Whether it is this very machine."""
        host = urlsplit(self.url).hostname or ""
        return host == "localhost" or host.startswith("127.") or host == "::1"

    @property
    def api_key(self) -> str:
        """The key from the environment; "" where there is none."""
        return os.environ.get(KEY_VARIABLES.get(self.provider, ""), "")


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
        """Whether its money is gone."""
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
            self._toolkit.budget.release_dollars(talk.held)
            if self.shares_gpu:
                unload_ollama(self._endpoint)
        return proposal

    def _reserve_cost(self, talk: "Conversation", prompt: str) -> bool:
        """Put aside the most that one more call can cost, if there is as much."""
        most = self.max_call_dollars(prompt)
        if not self._toolkit.budget.reserve(most):
            return False
        talk.held += most or 0.0
        talk.most_dollars = most or 0.0
        return True

    def _stop_unaffordable(self, ledger: Ledger, talk: "Conversation") -> None:
        """It cannot pay: for good, unless calls under way leave something over."""
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
                f"Refused:\n{context.quote_data('reason', strip_invisible(why))}\nSend the whole "
                "reply again, corrected, in the same form. Or another idea that fits."
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
        """Take note of a failure, and do not ask for a while."""
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
            self._toolkit.save_transcript(talk.transcript()) if talk.messages else ""
        )
        self._toolkit.record_call(
            ledger,
            ProposerCall(
                self.name,
                talk.asked_at,
                time.time() - talk.asked_at,
                talk.dollars,
                talk.tokens_in,
                talk.tokens_out,
                to_one_line(outcome)[:400],
                talk.blob,
                blob,
                transcript,
            ),
            at_most=talk.at_most_dollars,
        )

    def max_call_dollars(self, prompt: str) -> float | None:
        """The most that one call with this prompt can cost; None: unknown."""
        return estimate_dollars(
            self._endpoint, context.estimate_tokens(prompt), MAX_OUTPUT_TOKENS
        )

    def close(self) -> None:
        """Nothing is held between two askings."""

    def check_ready(self) -> str:
        """Ask it something of full size: `ok ...`, or what is wrong and the remedy.

        Servers of local models cut a prompt that does not fit their window, from its
        beginning and without a word; so the word to repeat stands at the beginning.
        """
        prompt = f"The codeword is {CODEWORD}.\n\n{make_filler_text()}\n\n{CODEWORD_QUESTION}"
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
            self._toolkit.budget.charge(talk.dollars, tokens, talk.at_most_dollars)
            self._toolkit.budget.release_dollars(talk.held)
            if self.shares_gpu:
                unload_ollama(self._endpoint)
        took = time.monotonic() - begun
        if CODEWORD not in reply.upper():
            return f"loses the beginning of a long prompt. Next: {self._context_window_hint}"
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
        model; "" where nobody knows."""
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
    """One conversation: what was said, and what it took."""

    def __init__(self, blob: str) -> None:
        self.blob = blob
        self.asked_at = time.time()
        self.messages: list[ModelMessage] = []
        self.tokens_in: int | None = None  # None: nobody said
        self.tokens_out: int | None = None
        self.dollars: float | None = None  # None: nobody knows
        self.held = 0.0  # dollars put aside for it
        self.most_dollars = 0.0  # of one call; 0: nobody knows
        self.at_most_dollars = 0.0  # what it took, calls without an answer included
        self._unpriced = False

    def send(self, endpoint: Endpoint, words: str, deadline: float) -> str:
        """Say something; the text that comes back. Raises NoAnswer."""
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
        self._unpriced, self.dollars = True, None
        self.at_most_dollars += self.most_dollars

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
        self._unpriced |= cost is None
        self.at_most_dollars += self.most_dollars if cost is None else cost
        self.dollars = None if self._unpriced else (self.dollars or 0.0) + (cost or 0.0)

    def transcript(self) -> bytes:
        """Everything that was said, as JSON."""
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        return bytes(ModelMessagesTypeAdapter.dump_json(self.messages, indent=1))


# -- one call --------------------------------------------------------------------------


def request_with_retries(
    endpoint: Endpoint,
    messages: "Sequence[ModelMessage]",
    deadline: float,
    lost: Callable[[], None],
) -> "ModelResponse":
    """One response, with tries and waits, by the deadline; or NoAnswer.

    `lost` hears of each call that may be billed though its answer never came.
    """
    for pause in (*RETRY_PAUSES_SECONDS, None):
        left = deadline - time.monotonic()
        if left <= 0:
            raise NoAnswer("no answer in time", 0.0)
        try:
            return asyncio.run(
                request_once(endpoint, messages, min(left, CALL_SECONDS))
            )
        except NoAnswer as none:
            if none.may_be_billed:
                lost()
            raise
        except RetryLater as again:
            if again.lost:
                lost()
            wait = pause if again.after_seconds is None else again.after_seconds
            late = wait is None or wait > min(MAX_RETRY_WAIT_SECONDS, left)
            if pause is None or wait is None or late:
                rest = again.after_seconds or 0.0
                raise NoAnswer(str(again), rest, limit=again.limit) from None
            time.sleep(wait)
    raise AssertionError("the last pause is None")


class RetryLater(Exception):
    """Not now; another try may work."""

    def __init__(
        self,
        words: str,
        after: float | None,
        *,
        limit: bool = False,
        lost: bool = False,
    ) -> None:
        super().__init__(words)
        # None: the server did not say, or nothing that is a time.
        known = after is not None and math.isfinite(after) and after >= 0
        self.after_seconds = after if known else None
        self.limit = limit
        self.lost = lost  # there may have been an answer, which is billed


async def request_once(
    endpoint: Endpoint, messages: "Sequence[ModelMessage]", limit_seconds: float
) -> "ModelResponse":
    """One HTTP call -> its response; Again or NoAnswer."""
    from pydantic_ai import exceptions
    from pydantic_ai.direct import model_request
    from pydantic_ai.settings import ModelSettings

    settings = ModelSettings(max_tokens=MAX_OUTPUT_TOKENS, timeout=limit_seconds)
    try:
        async with (
            asyncio.timeout(limit_seconds),
            make_http_client(limit_seconds) as http,
        ):
            model = make_model(endpoint, http)
            return await model_request(model, messages, model_settings=settings)
    except TimeoutError:
        words = f"no answer within {limit_seconds:.0f} s"
        raise RetryLater(words, None, lost=True) from None
    except exceptions.ModelHTTPError as error:
        raise error_from_status(error) from None
    except exceptions.ModelAPIError as error:  # connection refused, cut off, too large
        raise RetryLater(to_one_line(str(error))[:300], None, lost=True) from None
    except exceptions.AgentRunError as error:  # an answer that is no answer
        raise RetryLater(to_one_line(str(error))[:300], None, lost=True) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        # What the provider's library makes of garbage; it does not promise a kind.
        words = f"{type(error).__name__}: {to_one_line(str(error))[:200]}"
        raise RetryLater(words, None, lost=True) from None
    except ResponseTooLarge:
        words = f"the answer is larger than {MAX_BODY_BYTES >> 20} MB"
        raise NoAnswer(words, 0.0, lost=True) from None


def error_from_status(error: Any) -> Exception:
    """An HTTP status -> what to do about it."""
    words = to_one_line(f"{error.status_code}: {error.body}")[:300]
    code = error.status_code
    if code == 429 or code >= 500 or code == 408:
        return RetryLater(words, error.retry_after, limit=code == 429)
    if code in (401, 402, 403, 404):
        return NoAnswer(words, REFUSED_BACKOFF_SECONDS)
    return NoAnswer(words, 0.0)


def make_http_client(limit_seconds: float) -> Any:
    """An HTTP client that stops reading at a size. Redirects are not followed."""
    import httpx2

    class Measured(httpx2.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> Any:
            total = 0
            async for chunk in self._stream:
                total += len(chunk)
                if total > MAX_BODY_BYTES:
                    raise ResponseTooLarge
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    class Bounded(httpx2.AsyncBaseTransport):
        def __init__(self) -> None:
            self._inner = httpx2.AsyncHTTPTransport()

        async def handle_async_request(self, request: Any) -> Any:
            request.headers["accept-encoding"] = "identity"  # no bombs
            response = await self._inner.handle_async_request(request)
            response.stream = Measured(response.stream)
            return response

        async def aclose(self) -> None:
            await self._inner.aclose()

    return httpx2.AsyncClient(
        transport=Bounded(), timeout=limit_seconds, follow_redirects=False
    )


def make_model(endpoint: Endpoint, http: Any) -> "Model":
    """The model as pydantic-ai knows it, without retries of the provider's library."""
    if endpoint.provider == "anthropic":
        from anthropic import AsyncAnthropic
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        anthropic = AsyncAnthropic(
            api_key=endpoint.api_key,
            base_url=endpoint.url or None,
            max_retries=0,
            http_client=http,
        )
        return AnthropicModel(
            endpoint.model, provider=AnthropicProvider(anthropic_client=anthropic)
        )
    if endpoint.provider == "google":
        from pydantic_ai.models.google import GoogleModel
        from pydantic_ai.providers.google import GoogleProvider

        provider = GoogleProvider(
            api_key=endpoint.api_key, base_url=endpoint.url or None, http_client=http
        )
        return GoogleModel(endpoint.model, provider=provider)
    from openai import AsyncOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    openai = AsyncOpenAI(
        api_key=endpoint.api_key or "none",
        base_url=endpoint.url or "https://api.openai.com/v1",
        max_retries=0,
        http_client=http,
    )
    return OpenAIChatModel(
        endpoint.model, provider=OpenAIProvider(openai_client=openai)
    )


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
    # If it cannot be reached now, it holds no memory that anybody could free.
    with suppress(OSError), urllib.request.urlopen(request, timeout=20):  # noqa: S310
        pass


# -- money, keys, and the extra --------------------------------------------------------


def estimate_dollars(
    endpoint: Endpoint, tokens_in: int, tokens_out: int
) -> float | None:
    """Dollars of a call by the provider's list price; None where nobody knows it."""
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
    """LabError when there is no key, or no leave to spend money."""
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
