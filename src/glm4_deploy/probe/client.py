"""The HTTP client: one connection pool, a time limit on every step, no redirects, the key sent to one address only.

Chunks of a stream are time-stamped on arrival and parsed only after its end, so that parsing never delays the stamp of
a token (benchmarks/smoke_client.py).
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic_core import from_json

from glm4_deploy import __version__
from glm4_deploy.errors import UsageError
from glm4_deploy.probe.answers import (
    DONE,
    Assembly,
    ChatAnswer,
    FailureKind,
    Malformed,
    Refused,
    RequestFailure,
    from_body,
    reports_death,
    sse_events,
)
from glm4_deploy.text import BRIEF, one_line

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
        if "@" in url:  # before any message that shows it
            raise UsageError("the base URL contains a user name or a password", hint="give a key with --api-key-file")
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise UsageError(f"base URL {url[:80]!r}: {error}", hint=hint) from error
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


REDIRECTS = frozenset({301, 302, 303, 307, 308})
DONE_END = re.compile(rb"(?:^|\n)data: ?\[DONE\]\s*$")  # at the start of a line, where a model's own text cannot put it
DONE_GRACE_S = 1.0
MAX_BODY = 16 * 1024 * 1024  # bytes: far more than an answer of a few thousand tokens, with log-probabilities
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

    Attributes:
        death: the first error in which the server said that its engine has died; None: it has not. It is kept here
            because a check may take such an error for another one, or see it in one of many concurrent requests.
    """

    def __init__(self, target: ProbeTarget) -> None:
        self.root = target.root
        self.timeout_s = target.timeout_s
        self.death: str | None = None
        self._auth = {"authorization": f"Bearer {target.key}"} if target.key else {}
        # The system's certificate authorities, so that an operator's private one counts; not loaded for plain http.
        verify = ssl.create_default_context() if self.root.startswith("https") else False
        self._http = _connections(verify, kept=128)
        self._new = _connections(verify, kept=0)  # each request on its own connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()
        await self._new.aclose()

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
        except Malformed as error:
            detail = f"HTTP 200, but {error}: {one_line(reply.text, BRIEF)}"
            raise RequestFailure(FailureKind.NOT_OPENAI, detail) from error

    async def ask_stream(self, path: str, body: dict[str, Any], *, limit_s: float) -> ChatAnswer:
        """A streamed chat completion: usage asked for, assembled after the last event."""
        payload = body | {"stream": True, "stream_options": {"include_usage": True}}
        raw = _Stream(limit_s, self.timeout_s)
        try:
            await self._collect(path, payload, raw)
            return _assemble(raw.chunks, complete=True).close(raw.seconds)
        except Refused as refused:
            self._note(refused.status, str(refused))
            raise
        except RequestFailure as failure:
            if failure.kind is FailureKind.SERVER_ERROR:
                self._note(500, failure.detail)
            failure.partial = _assemble(raw.chunks, complete=False).close(0.0).text
            raise

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
                async for chunk in response.aiter_raw():
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
        if reply.status >= 500:
            said = reply.json()
            error = f"HTTP {reply.status}: {_error_message(said)}" if isinstance(said, dict) else _describe(reply)
            self._note(reply.status, error)
        return reply

    def _note(self, status: int, error: str) -> None:
        """Keep the first error of the server that reports a death; any other text may quote a model."""
        if self.death is None and status >= 500 and reports_death(error):
            self.death = error

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> AsyncIterator[httpx.Response]:
        content = None
        if body is not None:
            content = json.dumps(body, ensure_ascii=False).encode()
            headers = headers | {"content-type": "application/json"}
        response = await self._send(method, self.root + path, content, headers)
        try:
            encoding = response.headers.get("content-encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):  # not asked for, and a few bytes of it can become gigabytes
                detail = f"content-encoding {one_line(encoding, 40)}, though none was asked for"
                raise RequestFailure(FailureKind.ENCODING, detail)
            yield response
        finally:
            await response.aclose()

    async def _send(self, method: str, url: str, content: bytes | None, headers: dict[str, str]) -> httpx.Response:
        """Send a request; once more on a new connection if a reused one was closed before the answer began.

        A server may close an idle connection at any time (RFC 9112, 9.3.1), and vLLM 0.19 and 0.20 do so after every
        HTTP 400 without announcing it (vllm#42381): that says nothing about this request. An answer that has begun is
        never requested again.
        """
        reused = True

        async def trace(event: str, _: object) -> None:
            nonlocal reused
            reused = reused and event != "connection.connect_tcp.started"

        request = self._http.build_request(method, url, content=content, headers=headers, extensions={"trace": trace})
        try:
            return await self._http.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if not reused:
                raise
        return await self._new.send(request, stream=True)

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


def _connections(verify: ssl.SSLContext | bool, *, kept: int) -> httpx.AsyncClient:
    """A connection pool. kept: idle connections that it keeps for later requests."""
    # trust_env=False: a proxy from the environment must not see the prompts, nor a .netrc replace the key.
    return httpx.AsyncClient(
        headers={"user-agent": f"glm4-deploy/{__version__}", "accept-encoding": "identity"},
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=kept),
        follow_redirects=False,
        trust_env=False,
        verify=verify,
    )


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
    async for chunk in response.aiter_raw():
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
            try:
                assembly.feed(event, at)
            except Malformed as error:
                if complete:
                    raise RequestFailure(FailureKind.NOT_OPENAI, f"an event in which {error}") from error
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
