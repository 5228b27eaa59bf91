"""One HTTP call to a model: retries, limits, and what each failure means."""

import asyncio
import ipaddress
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autoresearch.errors import LabError
from autoresearch.text import to_one_line

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
CALL_SECONDS = 180.0
MAX_OUTPUT_TOKENS = 16_000
MAX_BODY_BYTES = 2 << 20  # of one HTTP answer
MAX_RETRY_WAIT_SECONDS = 30.0  # for a server that asks to wait; beyond it, rest
SHORT_BACKOFF_SECONDS = 600.0  # below it, the time until is told to the second
MAX_LIMIT_SECONDS = 7 * 86_400.0
REFUSED_BACKOFF_SECONDS = 3600.0  # a key that is wrong, a model that is not there
RETRY_PAUSES_SECONDS = (1.0, 3.0, 8.0)


class NoAnswer(Exception):
    """No readable answer; asking again makes sense after `rest_seconds`."""

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
    """A temporary failure; a retry may succeed."""

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

    class SizeLimitedStream(httpx2.AsyncByteStream):
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

    class SizeLimitedTransport(httpx2.AsyncBaseTransport):
        def __init__(self) -> None:
            self._inner = httpx2.AsyncHTTPTransport()

        async def handle_async_request(self, request: Any) -> Any:
            request.headers["accept-encoding"] = "identity"  # no bombs
            response = await self._inner.handle_async_request(request)
            response.stream = SizeLimitedStream(response.stream)
            return response

        async def aclose(self) -> None:
            await self._inner.aclose()

    return httpx2.AsyncClient(
        transport=SizeLimitedTransport(), timeout=limit_seconds, follow_redirects=False
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
