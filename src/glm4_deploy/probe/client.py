"""The HTTP client: one connection pool, a limit on every step, no redirect followed, the key sent to one address only.

A stream is stamped as its chunks come and parsed when it has ended, so that the client's own work never stands between
two tokens (benchmarks/smoke_client.py).
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urljoin

import httpx
from pydantic_core import from_json

from glm4_deploy import __version__
from glm4_deploy.probe import sse
from glm4_deploy.probe.answer import Answer, Assembly, from_body
from glm4_deploy.probe.target import Target
from glm4_deploy.probe.trouble import Kind, Refused, Trouble
from glm4_deploy.probe.words import shorten

REDIRECTS = frozenset({301, 302, 303, 307, 308})
DONE_END = re.compile(rb"(?:^|\n)data: ?\[DONE\]\s*$")  # at a line's start: a model can say it, but not there
DONE_GRACE_S = 1.0
MAX_BODY = 64 * 1024 * 1024  # bytes after decoding: no honest answer of a few thousand tokens comes near
CONNECT_S = 15.0  # the client's own machine may be starved, and a wrong `unreachable` is worse than a late one
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
        """The body as JSON; None where it is none. NaN is let through: numbers are judged by who reads them."""
        try:
            return from_json(self.body)
        except ValueError:
            return None


class Client:
    """Questions to one endpoint. Use as an async context manager.

    Every method raises Trouble when no whole answer came; ask* raise Refused on an error status.
    """

    def __init__(self, target: Target) -> None:
        self.root = target.root
        self.timeout_s = target.timeout_s
        self._auth = {"authorization": f"Bearer {target.key}"} if target.key else {}
        # trust_env=False: a proxy of the environment, or a .netrc, must not see the prompts or replace the key.
        self._http = httpx.AsyncClient(
            headers={"user-agent": f"glm4-deploy/{__version__}", "accept-encoding": "identity"},
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=128),
            follow_redirects=False,
            trust_env=False,
            # The system's own authorities, so that an operator's private one counts too; none is read for plain http.
            verify=ssl.create_default_context() if self.root.startswith("https") else False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, *, timeout_s: float = 10.0) -> Reply:
        return await self._whole("GET", path, None, timeout_s, auth=self._auth)

    async def post(self, path: str, body: dict[str, Any], *, timeout_s: float | None = None) -> Reply:
        return await self._whole("POST", path, body, timeout_s or self.timeout_s, auth=self._auth)

    async def get_as(self, path: str, key: str | None, *, timeout_s: float = 10.0) -> Reply:
        """GET with another key than the configured one, or with none."""
        auth = {"authorization": f"Bearer {key}"} if key else {}
        return await self._whole("GET", path, None, timeout_s, auth=auth)

    async def post_as(self, path: str, body: dict[str, Any], key: str | None) -> Reply:
        """POST with another key than the configured one, or with none."""
        auth = {"authorization": f"Bearer {key}"} if key else {}
        return await self._whole("POST", path, body, self.timeout_s, auth=auth)

    async def ask_whole(self, path: str, body: dict[str, Any], *, limit_s: float) -> Answer:
        """A chat completion that is not streamed."""
        reply = await self._whole("POST", path, body, limit_s, auth=self._auth)
        _refuse(reply)
        parsed = reply.json()
        try:
            return from_body(parsed if isinstance(parsed, dict) else {}, reply.seconds)
        except KeyError as missing:
            detail = f"HTTP 200 without {missing.args[0]}: {shorten(reply.text)}"
            raise Trouble(Kind.NOT_OPENAI, detail) from missing

    async def ask_stream(self, path: str, body: dict[str, Any], *, limit_s: float) -> Answer:
        """A streamed chat completion: usage asked for, assembled after the last event."""
        payload = body | {"stream": True, "stream_options": {"include_usage": True}}
        raw = _Stream(limit_s, self.timeout_s)
        try:
            await self._collect(path, payload, raw)
        except Trouble as trouble:
            trouble.partial = _assemble(raw.chunks, complete=False).close(0.0).text
            raise
        return _assemble(raw.chunks, complete=True).close(raw.seconds)

    async def _collect(self, path: str, body: dict[str, Any], raw: "_Stream") -> None:
        """Read a stream into `raw`, to its very end, so that the connection goes back to the pool."""
        headers = self._auth | {"accept": "text/event-stream"}
        try:
            async with self._guard(raw), self._open("POST", path, body, headers) as response:
                kind = response.headers.get("content-type", "")
                if response.status_code != 200 or "text/event-stream" not in kind:
                    reply = await _drain(response, raw.start)
                    _refuse(reply)
                    raise Trouble(Kind.NOT_OPENAI, f"asked for a stream, got {_describe(reply)}")
                async for chunk in response.aiter_bytes():
                    raw.take(chunk)
        except Trouble:
            if not raw.done:  # after [DONE] nothing more is owed, not even a clean end
                raise

    async def _whole(
        self, method: str, path: str, body: dict[str, Any] | None, limit_s: float, auth: dict[str, str]
    ) -> Reply:
        raw = _Stream(limit_s, limit_s)
        async with self._guard(raw), self._open(method, path, body, auth) as response:
            reply = await _drain(response, raw.start)
        if reply.status in REDIRECTS:
            raise Trouble(Kind.REDIRECT, _redirect(self.root + path, reply))
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
        """The deadline of one request, and httpx's errors in the words of Kind."""
        try:
            async with asyncio.timeout(raw.patience_s) as raw.deadline:
                yield
        except TimeoutError as error:
            raise raw.timed_out() from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            kind = Kind.TLS if "SSL:" in str(error) else Kind.UNREACHABLE
            raise Trouble(kind, f"{self.root}: {shorten(str(error)) or 'no connection'}") from error
        except httpx.RemoteProtocolError as error:
            raise Trouble(Kind.TRUNCATED if raw.chunks else Kind.RESET, shorten(str(error))) from error
        except httpx.DecodingError as error:
            raise Trouble(Kind.ENCODING, f"the body is not what its content-encoding says: {error}") from error
        except (httpx.ReadError, httpx.WriteError, httpx.CloseError) as error:
            raise Trouble(Kind.RESET, "the connection was cut before the answer was complete") from error
        except httpx.HTTPError as error:
            raise Trouble(Kind.RESET, f"{type(error).__name__}: {shorten(str(error))}") from error


class _Stream:
    """The raw chunks of one stream, each with its arrival, and the deadline that moves on with them."""

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
            raise Trouble(Kind.TOO_BIG, f"more than {MAX_BODY >> 20} MiB in one stream")
        self._tail = (self._tail + chunk)[-32:]
        if DONE_END.search(self._tail):
            self.done = True
            self._extend(at, DONE_GRACE_S)
        elif at - self._moved > 0.1 or len(self.chunks) < 4:
            self._extend(at, min(IDLE_S, self.first_s) if len(self.chunks) > 2 else self.first_s)

    def _extend(self, at: float, patience_s: float) -> None:
        # Ten times a second at most: a timer for each token would cost more than the token.
        self._moved = at
        if self.deadline is not None:
            rest = min(patience_s, self.limit_s - at)
            self.deadline.reschedule(asyncio.get_running_loop().time() + max(rest, 0.0))

    def timed_out(self) -> Trouble:
        if not self.chunks:
            return Trouble(Kind.HANG, f"no answer within {self.patience_s:.3g} s")
        last = self.chunks[-1][0]
        if time.perf_counter() - self.start - last < min(IDLE_S, self.first_s) / 2:
            return Trouble(Kind.SLOW, f"still streaming after {self.limit_s:.3g} s")
        return Trouble(Kind.HANG, f"the stream stood still after {last:.1f} s")


async def _drain(response: httpx.Response, start: float) -> Reply:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_BODY:
            raise Trouble(Kind.TOO_BIG, f"more than {MAX_BODY >> 20} MiB in one answer")
    seconds = time.perf_counter() - start
    return Reply(status=response.status_code, headers=response.headers, body=bytes(body), seconds=seconds)


def _assemble(chunks: list[tuple[float, bytes]], *, complete: bool) -> Assembly:
    """The events of a stream; with `complete`, a stream that broke off or carries an error is Trouble."""
    assembly = Assembly()
    done = False
    for at, data in sse.events(chunks):
        if data == sse.DONE:
            done = True
            break
        try:
            event = from_json(data)
        except ValueError as error:
            if complete:
                raise Trouble(Kind.NOT_OPENAI, f"an event that is no JSON: {shorten(repr(data))}") from error
            continue
        if isinstance(event, dict) and event.get("error") and complete:
            words = _error_words(event)
            raise Trouble(Kind.SERVER_ERROR, f"an error amid the stream: {words}", partial="".join(assembly.text))
        if isinstance(event, dict):
            assembly.feed(event, at)
    if complete and not done:
        raise Trouble(Kind.TRUNCATED, f"the stream ended after {assembly.events} events without [DONE]")
    return assembly


def _refuse(reply: Reply) -> None:
    """Raise what an error status means: Refused where the server says so in JSON, Trouble where a proxy speaks."""
    if reply.status == 200:
        return
    if reply.status in REDIRECTS:
        raise Trouble(Kind.REDIRECT, _redirect("", reply))
    body = reply.json()
    if not isinstance(body, dict):
        kind = Kind.SERVER_ERROR if reply.status >= 500 else Kind.NOT_OPENAI
        raise Trouble(kind, _describe(reply))
    error = body.get("error")
    param = error.get("param") if isinstance(error, dict) else None
    raise Refused(reply.status, _error_words(body), param=param if isinstance(param, str) else None)


def _error_words(body: dict[str, Any]) -> str:
    """OpenAI's {"error": {"message"}}, {"error": "…"}, FastAPI's {"detail"}, older vLLM's {"message"}."""
    error = body.get("error")
    words = error.get("message") if isinstance(error, dict) else error
    return shorten(str(words or body.get("detail") or body.get("message") or body))


def _describe(reply: Reply) -> str:
    kind = reply.headers.get("content-type", "no content type").split(";")[0]
    return f"HTTP {reply.status}, {kind}: {shorten(reply.text)}"


def _redirect(url: str, reply: Reply) -> str:
    return f"HTTP {reply.status} to {shorten(urljoin(url, reply.headers.get('location', 'nowhere')))}"
