"""The HTTP client: one connection pool, a time limit on every step, no redirects, the key sent to one address only.

Chunks of a stream are time-stamped on arrival and parsed only after its end, so that parsing never delays the stamp of
a token (benchmarks/smoke_client.py).
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, Self
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic_core import from_json

from glm4_deploy import __version__
from glm4_deploy.errors import UsageError
from glm4_deploy.report_model import Timing
from glm4_deploy.text import BRIEF, one_line

# What can go wrong between a request and its answer, each with its own advice.


class FailureKind(StrEnum):
    UNREACHABLE = "unreachable"
    RESET = "reset"
    TLS = "tls"
    HANG = "hang"
    SLOW = "slow"
    TRUNCATED = "truncated"
    REDIRECT = "redirect"
    NOT_OPENAI = "not-openai"
    ENCODING = "encoding"
    TOO_BIG = "too-big"
    SERVER_ERROR = "server-error"


REMEDY = {
    FailureKind.UNREACHABLE: "start the engine, or give its --base-url; `glm4-deploy status` shows what is running",
    FailureKind.TLS: "use http:// if the server has no TLS; set SSL_CERT_FILE for a private certificate authority",
    FailureKind.RESET: "read the engine's log: it died or a proxy cut the connection",
    FailureKind.HANG: "read the engine's log; restart it if its token counter does not move",
    FailureKind.SLOW: "look for other load on the engine; raise --timeout if this machine is slow",
    FailureKind.TRUNCATED: "look for a proxy with a short read timeout; read the engine's log at this moment",
    FailureKind.REDIRECT: "give the final address with --base-url: redirects are not followed, so the key stays here",
    FailureKind.NOT_OPENAI: "another program answers at this address: give the engine's own with --base-url",
    FailureKind.ENCODING: "turn compression off in the proxy in front of the engine",
    FailureKind.TOO_BIG: "another program may answer at this address, or the server ignores max_tokens",
    FailureKind.SERVER_ERROR: "read the engine's log: the cause is above this error",
}


class RequestFailure(Exception):
    """No usable answer arrived. `partial`: the text received so far (untrusted)."""

    def __init__(self, kind: FailureKind, detail: str, *, partial: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.partial = partial

    @property
    def remedy(self) -> str:
        return REMEDY[self.kind]


class Refused(Exception):
    """The server answered with an error status. `message`: its own, shortened."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message
        self.param = param

    @property
    def not_offered(self) -> bool:
        """Whether the status means that the server lacks a feature (a 500 is a failure instead)."""
        return self.status in {400, 404, 405, 422, 501}

    @property
    def not_a_number(self) -> bool:
        """Whether it is vLLM's message for a logprob that is NaN or infinite, which JSON cannot express."""
        return "out of range float values" in self.message.lower()


# Where requests go, and what is expected to answer there.

API_PATHS = ("/completions", "/models", "/health", "/metrics")


class Secret(Protocol):
    """pydantic's SecretStr, or anything that hides its value the same way."""

    def get_secret_value(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTarget:
    """An OpenAI-compatible endpoint.

    Attributes:
        base_url: http(s)://host[:port][/prefix]; a trailing /v1 is dropped.
        model: the served name that must answer; None: the only one that is served.
        started_at: epoch seconds; the engine must have started at or after this (the container's start).
        vllm_version: what GET /version must report ("0.13.0" also accepts "0.13.0+local").
        max_model_len: context length in tokens, for a server that does not report it.
        timeout_s: how long the first token may take (a cold engine compiles on its first request).
    """

    base_url: str
    model: str | None = None
    api_key: Secret | None = None
    started_at: float | None = None
    vllm_version: str | None = None
    max_model_len: int | None = None
    timeout_s: float = 120.0

    @property
    def root(self) -> str:
        """The address without a trailing slash or /v1.

        Raises:
            UsageError: not an http(s) address, or one that contains a user name or password.
        """
        url = self.base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
        hint = "write it like http://localhost:8000"
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise UsageError(f"base URL {url[:80]!r}: {error}", hint=hint) from error
        if "@" in parts.netloc:
            raise UsageError("the base URL contains a user name or a password", hint="give a key with --api-key-file")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"base URL {url[:80]!r} is not an http(s) address", hint=hint)
        if parts.path.endswith(API_PATHS):
            raise UsageError(
                f"base URL {url[:80]!r} is a single endpoint of the API", hint="leave out the path after the port"
            )
        return url

    @property
    def key(self) -> str | None:
        """The key as sent in the header.

        Raises:
            UsageError: it is empty or contains characters that an HTTP header cannot carry.
        """
        if self.api_key is None:
            return None
        key = self.api_key.get_secret_value().strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(
                "the API key is empty or contains a space or a control character", hint="check the key file"
            )
        return key


# Server-sent events, from raw chunks that may be cut anywhere.

DONE = b"[DONE]"


def sse_events(chunks: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(seconds, data) of each event, stamped with the arrival of the chunk that completed it.

    Comments and other fields are skipped; several data lines of one event are joined by newlines. An event without its
    closing blank line is not yielded: a truncated stream is recognised by the missing `[DONE]`.
    """
    pending = b""
    for at, chunk in chunks:
        block = (pending + chunk).replace(b"\r\n", b"\n")
        # A chunk may end between \r and \n: keep the \r for the next one.
        *events, pending = block.split(b"\n\n")
        for event in events:
            data = _data(event)
            if data is not None:
                yield at, data


def _data(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:  # the fast path: nearly every event of every server
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


# One answer, from a JSON body or from the events of a stream, with every irregularity noted.


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts as reported by the server; None for one that it leaves out."""

    prompt: int | None
    completion: int | None
    total: int | None
    cached: int | None = None

    @classmethod
    def parse(cls, raw: Any) -> "Usage | None":
        if not isinstance(raw, dict):
            return None
        details = raw.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        return cls(
            prompt=_count(raw.get("prompt_tokens")),
            completion=_count(raw.get("completion_tokens")),
            total=_count(raw.get("total_tokens")),
            cached=_count(cached),
        )

    @property
    def adds_up(self) -> bool:
        counts = (self.prompt, self.completion, self.total)
        return None not in counts and self.prompt + self.completion == self.total  # type: ignore[operator]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """One chat completion.

    Attributes:
        logprobs: one per token, None for a null of the server; None as a whole if it sent none.
        oddities: departures from the protocol, each a short phrase; empty for a correct server.
    """

    text: str
    finish_reason: str | None
    timing: Timing
    usage: Usage | None = None
    model: str | None = None
    role: str | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float | None, ...] | None = None
    tool_calls: tuple[Any, ...] = ()
    oddities: tuple[str, ...] = field(default=())

    @property
    def finite_logprobs(self) -> tuple[float, ...] | None:
        if self.logprobs is None or any(value is None for value in self.logprobs):
            return None
        return tuple(value for value in self.logprobs if value is not None)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _logprobs(choice: dict[str, Any]) -> list[float | None] | None:
    block = choice.get("logprobs")
    content = block.get("content") if isinstance(block, dict) else None
    if not isinstance(content, list):
        return None
    values = [entry.get("logprob") if isinstance(entry, dict) else None for entry in content]
    return [value if isinstance(value, int | float) and abs(value) < float("inf") else None for value in values]


def from_body(body: dict[str, Any], seconds: float) -> ChatAnswer:
    """The answer in a body that was not streamed.

    Raises:
        KeyError: not a chat completion (no choices, no message).
    """
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise KeyError("choices")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise KeyError("choices[0].message")
    usage = Usage.parse(body.get("usage"))
    ids = choice.get("token_ids")
    logprobs = _logprobs(choice)
    return ChatAnswer(
        text=_text(message.get("content")),
        finish_reason=choice.get("finish_reason"),
        timing=Timing(total=seconds, tokens=usage.completion if usage else None),
        usage=usage,
        model=body.get("model"),
        role=message.get("role"),
        token_ids=tuple(ids) if isinstance(ids, list) else None,
        logprobs=tuple(logprobs) if logprobs is not None else None,
        tool_calls=tuple(message.get("tool_calls") or ()),
    )


class Assembly:
    """Builds a streamed answer: feed the events in order, then close."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.ids: list[int] = []
        self.logprobs: list[float | None] = []
        self.arrivals: list[float] = []
        self.tool_calls: list[Any] = []
        self.oddities: list[str] = []
        self.finish: str | None = None
        self.role: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.events = 0

    def feed(self, event: dict[str, Any], at: float) -> None:
        """One parsed event that arrived `at` seconds after the request was sent."""
        self.events += 1
        if self.usage is not None and event.get("choices"):
            self._odd("content after the usage chunk")
        self.model = event.get("model") or self.model
        if event.get("usage"):
            self.usage = Usage.parse(event["usage"])
        choices = event.get("choices")
        if not isinstance(choices, list):
            self._odd("an event without a list of choices")
            return
        if choices and isinstance(choices[0], dict):
            self._choice(choices[0], at)

    def _choice(self, choice: dict[str, Any], at: float) -> None:
        delta = choice.get("delta") or {}
        role, content = delta.get("role"), _text(delta.get("content"))
        if role and self.role is None:
            self.role = role
            if self.text:
                self._odd("the role came after content")
        ids, logprobs = choice.get("token_ids"), _logprobs(choice)
        if self.finish is not None and (content or ids):
            self._odd("content after finish_reason")
        if content or ids or logprobs or delta.get("reasoning_content") or delta.get("tool_calls"):
            self.arrivals.append(at)
        self.text.append(content)
        self.ids.extend(ids or ())
        self.logprobs.extend(logprobs or ())
        self.tool_calls.extend(delta.get("tool_calls") or ())
        finish = choice.get("finish_reason")
        if finish:
            if self.finish is not None:
                self._odd("finish_reason was sent twice")
            self.finish = finish

    def _odd(self, what: str) -> None:
        if what not in self.oddities:
            self.oddities.append(what)

    def close(self, total: float) -> ChatAnswer:
        """The complete answer; `total` seconds after the request was sent."""
        tokens = self.usage.completion if self.usage else None
        return ChatAnswer(
            text="".join(self.text),
            finish_reason=self.finish,
            timing=Timing(total=total, arrivals=tuple(self.arrivals), tokens=tokens),
            usage=self.usage,
            model=self.model,
            role=self.role,
            token_ids=tuple(self.ids) if self.ids else None,
            logprobs=tuple(self.logprobs) if self.logprobs else None,
            tool_calls=tuple(self.tool_calls),
            oddities=tuple(self.oddities),
        )


REDIRECTS = frozenset({301, 302, 303, 307, 308})
DONE_END = re.compile(rb"(?:^|\n)data: ?\[DONE\]\s*$")  # at the start of a line, where a model's own text cannot put it
DONE_GRACE_S = 1.0
MAX_BODY = 64 * 1024 * 1024  # bytes after decoding: far more than an answer of a few thousand tokens
CONNECT_S = 15.0  # generous: this machine may be overloaded, and a wrong `unreachable` is worse than a late one
IDLE_S = 30.0  # between two tokens of one stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A plain HTTP answer of any status."""

    status: int
    headers: httpx.Headers
    body: bytes
    seconds: float

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")

    def json(self) -> Any:
        """The body as JSON; None if it is not JSON. NaN is accepted: the caller judges numbers."""
        try:
            return from_json(self.body)
        except ValueError:
            return None


class Client:
    """Sends requests to one endpoint. Use as an async context manager.

    Every method raises RequestFailure if no complete answer arrives; `ask_*` also raise Refused on an error status.
    """

    def __init__(self, target: ProbeTarget) -> None:
        self.root = target.root
        self.timeout_s = target.timeout_s
        self._auth = {"authorization": f"Bearer {target.key}"} if target.key else {}
        # trust_env=False: a proxy from the environment must not see the prompts, nor a .netrc replace the key.
        self._http = httpx.AsyncClient(
            headers={"user-agent": f"glm4-deploy/{__version__}", "accept-encoding": "identity"},
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=128),
            follow_redirects=False,
            trust_env=False,
            # The system's certificate authorities, so that an operator's private one counts; not loaded for plain http.
            verify=ssl.create_default_context() if self.root.startswith("https") else False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, *, timeout_s: float = 10.0) -> Reply:
        return await self._request("GET", path, None, timeout_s, auth=self._auth)

    async def post(self, path: str, body: dict[str, Any], *, timeout_s: float | None = None) -> Reply:
        return await self._request("POST", path, body, timeout_s or self.timeout_s, auth=self._auth)

    async def get_as(self, path: str, key: str | None, *, timeout_s: float = 10.0) -> Reply:
        """GET with another key than the configured one, or with none."""
        auth = {"authorization": f"Bearer {key}"} if key else {}
        return await self._request("GET", path, None, timeout_s, auth=auth)

    async def post_as(self, path: str, body: dict[str, Any], key: str | None) -> Reply:
        """POST with another key than the configured one, or with none."""
        auth = {"authorization": f"Bearer {key}"} if key else {}
        return await self._request("POST", path, body, self.timeout_s, auth=auth)

    async def ask_whole(self, path: str, body: dict[str, Any], *, limit_s: float) -> ChatAnswer:
        """A chat completion that is not streamed."""
        reply = await self._request("POST", path, body, limit_s, auth=self._auth)
        _refuse(reply)
        parsed = reply.json()
        try:
            return from_body(parsed if isinstance(parsed, dict) else {}, reply.seconds)
        except KeyError as missing:
            detail = f"HTTP 200 without {missing.args[0]}: {one_line(reply.text, BRIEF)}"
            raise RequestFailure(FailureKind.NOT_OPENAI, detail) from missing

    async def ask_stream(self, path: str, body: dict[str, Any], *, limit_s: float) -> ChatAnswer:
        """A streamed chat completion: usage asked for, assembled after the last event."""
        payload = body | {"stream": True, "stream_options": {"include_usage": True}}
        raw = _Stream(limit_s, self.timeout_s)
        try:
            await self._collect(path, payload, raw)
        except RequestFailure as failure:
            failure.partial = _assemble(raw.chunks, complete=False).close(0.0).text
            raise
        return _assemble(raw.chunks, complete=True).close(raw.seconds)

    async def _collect(self, path: str, body: dict[str, Any], raw: "_Stream") -> None:
        """Read a stream into `raw` to its end, so that the connection returns to the pool."""
        headers = self._auth | {"accept": "text/event-stream"}
        try:
            async with self._guard(raw), self._open("POST", path, body, headers) as response:
                kind = response.headers.get("content-type", "")
                if response.status_code != 200 or "text/event-stream" not in kind:
                    reply = await _drain(response, raw.start)
                    _refuse(reply)
                    raise RequestFailure(FailureKind.NOT_OPENAI, f"expected a stream, got {_describe(reply)}")
                async for chunk in response.aiter_bytes():
                    raw.take(chunk)
        except RequestFailure:
            if not raw.done:  # after [DONE] the server owes nothing more, not even a clean end
                raise

    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None, limit_s: float, auth: dict[str, str]
    ) -> Reply:
        raw = _Stream(limit_s, limit_s)
        async with self._guard(raw), self._open(method, path, body, auth) as response:
            reply = await _drain(response, raw.start)
        if reply.status in REDIRECTS:
            raise RequestFailure(FailureKind.REDIRECT, _redirect(self.root + path, reply))
        return reply

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> AsyncIterator[httpx.Response]:
        content = None
        if body is not None:
            content = json.dumps(body, ensure_ascii=False).encode()
            headers = headers | {"content-type": "application/json"}
        async with self._http.stream(method, self.root + path, content=content, headers=headers) as response:
            yield response

    @asynccontextmanager
    async def _guard(self, raw: "_Stream") -> AsyncIterator[None]:
        """Enforce the deadline of one request, and turn httpx's errors into RequestFailure."""
        try:
            async with asyncio.timeout(raw.patience_s) as raw.deadline:
                yield
        except TimeoutError as error:
            raise raw.timed_out() from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            kind = FailureKind.TLS if "SSL:" in str(error) else FailureKind.UNREACHABLE
            raise RequestFailure(kind, f"{self.root}: {one_line(str(error), BRIEF) or 'no connection'}") from error
        except httpx.RemoteProtocolError as error:
            raise RequestFailure(
                FailureKind.TRUNCATED if raw.chunks else FailureKind.RESET, one_line(str(error), BRIEF)
            ) from error
        except httpx.DecodingError as error:
            raise RequestFailure(
                FailureKind.ENCODING, f"the body is not what its content-encoding says: {error}"
            ) from error
        except (httpx.ReadError, httpx.WriteError, httpx.CloseError) as error:
            raise RequestFailure(FailureKind.RESET, "the connection was cut before the answer was complete") from error
        except httpx.HTTPError as error:
            raise RequestFailure(FailureKind.RESET, f"{type(error).__name__}: {one_line(str(error), BRIEF)}") from error


class _Stream:
    """The raw chunks of one stream with their arrival times, and the deadline that each of them extends."""

    def __init__(self, limit_s: float, first_s: float) -> None:
        self.start = time.perf_counter()
        self.limit_s = limit_s
        self.first_s = first_s
        self.chunks: list[tuple[float, bytes]] = []
        self.size = 0
        self.done = False
        self.deadline: asyncio.Timeout | None = None
        self._moved = 0.0
        self._tail = b""

    @property
    def patience_s(self) -> float:
        return min(self.limit_s, self.first_s)

    @property
    def seconds(self) -> float:
        return self.chunks[-1][0] if self.chunks else time.perf_counter() - self.start

    def take(self, chunk: bytes) -> None:
        at = time.perf_counter() - self.start
        self.chunks.append((at, chunk))
        self.size += len(chunk)
        if self.size > MAX_BODY:
            raise RequestFailure(FailureKind.TOO_BIG, f"more than {MAX_BODY >> 20} MiB in one stream")
        self._tail = (self._tail + chunk)[-32:]
        if DONE_END.search(self._tail):
            self.done = True
            self._extend(at, DONE_GRACE_S)
        elif at - self._moved > 0.1 or len(self.chunks) < 4:
            self._extend(at, min(IDLE_S, self.first_s) if len(self.chunks) > 2 else self.first_s)

    def _extend(self, at: float, patience_s: float) -> None:
        # At most ten times a second: a timer per token would cost more than the token.
        self._moved = at
        if self.deadline is not None:
            remaining = min(patience_s, self.limit_s - at)
            self.deadline.reschedule(asyncio.get_running_loop().time() + max(remaining, 0.0))

    def timed_out(self) -> RequestFailure:
        if not self.chunks:
            return RequestFailure(FailureKind.HANG, f"no answer within {self.patience_s:.3g} s")
        last = self.chunks[-1][0]
        if time.perf_counter() - self.start - last < min(IDLE_S, self.first_s) / 2:
            return RequestFailure(FailureKind.SLOW, f"still streaming after {self.limit_s:.3g} s")
        return RequestFailure(FailureKind.HANG, f"the stream stood still after {last:.1f} s")


async def _drain(response: httpx.Response, start: float) -> Reply:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_BODY:
            raise RequestFailure(FailureKind.TOO_BIG, f"more than {MAX_BODY >> 20} MiB in one answer")
    seconds = time.perf_counter() - start
    return Reply(status=response.status_code, headers=response.headers, body=bytes(body), seconds=seconds)


def _assemble(chunks: list[tuple[float, bytes]], *, complete: bool) -> Assembly:
    """The events of a stream. With `complete`, a truncated stream or one with an error raises RequestFailure."""
    assembly = Assembly()
    done = False
    for at, data in sse_events(chunks):
        if data == DONE:
            done = True
            break
        try:
            event = from_json(data)
        except ValueError as error:
            if complete:
                raise RequestFailure(
                    FailureKind.NOT_OPENAI, f"an event that is not JSON: {one_line(repr(data), BRIEF)}"
                ) from error
            continue
        if isinstance(event, dict) and event.get("error") and complete:
            detail = f"an error within the stream: {_error_message(event)}"
            raise RequestFailure(FailureKind.SERVER_ERROR, detail, partial="".join(assembly.text))
        if isinstance(event, dict):
            assembly.feed(event, at)
    if complete and not done:
        raise RequestFailure(FailureKind.TRUNCATED, f"the stream ended after {assembly.events} events without [DONE]")
    return assembly


def _refuse(reply: Reply) -> None:
    """Raise for an error status: Refused if it comes with JSON from the server, else RequestFailure (a proxy)."""
    if reply.status == 200:
        return
    if reply.status in REDIRECTS:
        raise RequestFailure(FailureKind.REDIRECT, _redirect("", reply))
    body = reply.json()
    if not isinstance(body, dict):
        kind = FailureKind.SERVER_ERROR if reply.status >= 500 else FailureKind.NOT_OPENAI
        raise RequestFailure(kind, _describe(reply))
    error = body.get("error")
    param = error.get("param") if isinstance(error, dict) else None
    raise Refused(reply.status, _error_message(body), param=param if isinstance(param, str) else None)


def _error_message(body: dict[str, Any]) -> str:
    """OpenAI's {"error": {"message"}}, {"error": "…"}, FastAPI's {"detail"}, older vLLM's {"message"}."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return one_line(str(message or body.get("detail") or body.get("message") or body), BRIEF)


def _describe(reply: Reply) -> str:
    kind = reply.headers.get("content-type", "no content type").split(";")[0]
    return f"HTTP {reply.status}, {kind}: {one_line(reply.text, BRIEF)}"


def _redirect(url: str, reply: Reply) -> str:
    return f"HTTP {reply.status} to {one_line(urljoin(url, reply.headers.get('location', 'nowhere')), BRIEF)}"
