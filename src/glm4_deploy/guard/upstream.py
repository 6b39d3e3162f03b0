"""The engine's side: one connection per request, its answer parsed in C (llhttp), its head bounded.

The bytes of a token reach their taker in the call in which the event loop read them: no task wakes up for them.
A new connection per request: one that the engine closes while it is idle would fail a request that may not be sent
twice. The next requests use the address that worked last, for ADDRESS_S, instead of asking the resolver.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD = 65536  # bytes
MAX_LINES = 128  # of a head
CONNECT_S = 10.0
HEAD_S = 30.0  # from the first byte of a head to its end
ADDRESS_S = 10.0
BUFFER = 65536  # bytes kept for a slow reader
Header = tuple[bytes, bytes]


class EngineTrouble(Exception):
    """The engine does not answer, not with HTTP, or not to the end."""


def frame(body: bytes) -> bytes:
    """A chunk of HTTP's chunked encoding. body: at least one byte."""
    return b"%x\r\n%s\r\n" % (len(body), body)


class EngineAnswer(asyncio.Protocol):
    """An answer while it comes in: first its head, then its bytes as they come, without their framing.

    Attributes:
        take: gets the bytes first, if set; where it returns False, they are left for `read`.
        status, reason, headers: known after `head`.
    """

    def __init__(self, *, bodiless: bool) -> None:
        self.take: Callable[[bytes], bool] | None = None
        self.status = 0
        self.reason = b""
        self.headers: list[Header] = []
        self._bodiless = bodiless
        self._parser = HttpResponseParser(self)
        self._loop = asyncio.get_running_loop()
        self._began: asyncio.Future[None] = self._loop.create_future()
        self._head_size = 0
        self._slow: asyncio.TimerHandle | None = None
        self._has_length = False
        self._parts: list[bytes] = []  # of the body, from what is being parsed
        self._left = bytearray()  # for `read`
        self._paused = False
        self._complete = False
        self._trouble: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # What the proxy calls.

    async def head(self) -> None:
        """Wait for the head.

        Raises:
            EngineTrouble: it does not come.
        """
        await self._began

    async def read(self) -> bytes:
        """The next bytes of the body; b"" at its end, or after `close`.

        Raises:
            EngineTrouble: the engine broke the answer off.
        """
        while not self._left:
            if self._complete:
                return b""
            if self._trouble:
                raise self._trouble
            if self._paused:
                self._paused = False
                self.transport.resume_reading()
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        left = bytes(self._left)
        self._left.clear()
        return left

    def close(self) -> None:
        """Give the rest up: the engine aborts the request when its connection ends."""
        self._complete = True
        self._left.clear()
        self.transport.abort()
        self._wake()

    async def upload(self, body: AsyncIterator[bytes], *, chunked: bool) -> None:
        """Send the body of the request, as fast as the engine takes it."""
        try:
            async for piece in body:
                if self.transport.is_closing():  # it may answer before it has all
                    return
                self.transport.write(frame(piece) if chunked else piece)
                await self._writable.wait()
        except Exception:  # noqa: BLE001 (whatever the client's side raises)
            self._end(EngineTrouble("the request broke off"))
        else:
            self.transport.write(b"0\r\n\r\n" if chunked else b"")

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._complete or self._trouble:
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._end(EngineTrouble(f"no HTTP: {type(error).__name__}"))
            return
        if not self._began.done():
            self._bound_head(len(data))
        if self._parts:
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            self._pass_on(body)
        if self._complete:
            self._end(None)

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, error: Exception | None) -> None:
        whole = self._complete or (error is None and self._began.done() and not self._has_length)
        self._end(None if whole else EngineTrouble("it closed the connection"))
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What the parser calls.

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._began.done():
            return  # a trailer
        if len(self.headers) == MAX_LINES:
            self._end(EngineTrouble("too many lines in its head"))
            return
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:  # a provisional answer: the real one follows
            self.headers, self.reason = [], b""
            return
        if self._began.done():
            return
        self.status = status
        names = {name.lower(): value.lower() for name, value in self.headers}
        coding = names.get(b"transfer-encoding")
        if coding not in (None, b"chunked"):  # compressed, say: the client could not tell
            self._end(EngineTrouble("an unknown transfer coding"))
            return
        self._has_length = coding is not None or b"content-length" in names
        self._complete = self._bodiless
        if self._slow:
            self._slow.cancel()
        self._began.set_result(None)

    def on_body(self, body: bytes) -> None:
        if not self._bodiless:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._began.done()

    # The rest.

    def _bound_head(self, more: int) -> None:
        self._head_size += more
        if self._head_size > MAX_HEAD:
            self._end(EngineTrouble("its head has no end"))
        elif self._slow is None:
            self._slow = self._loop.call_later(HEAD_S, self._end, EngineTrouble("its head is slow"))

    def _pass_on(self, body: bytes) -> None:
        if self.take and self._reader and not self._left and self.take(body):
            return
        if self._trouble or self.transport.is_closing():
            return
        self._left += body
        if len(self._left) > BUFFER and not self._paused and not self._complete:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def _end(self, trouble: Exception | None) -> None:
        if self._trouble is None and not self._complete:
            self._trouble = trouble
            self._complete = trouble is None
        if self._slow:
            self._slow.cancel()
        if not self._began.done():
            self._began.set_exception(trouble or EngineTrouble("no answer"))
            self._began.exception()  # whoever asked may have left
        self.transport.close() if trouble is None else self.transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)


class Upstream:
    """Where requests go. url: its base address."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._address, self._until = self._host, 0.0
        self.path = parts.path.rstrip("/").encode()
        self.authority = parts.netloc.encode()

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        target: bytes,
        headers: Iterable[Header],
        body: bytes | AsyncIterator[bytes],
        *,
        chunked: bool = False,
    ) -> AsyncIterator[EngineAnswer]:
        """The answer to one request, once its head is there; at the end its connection is closed.

        Args:
            headers: all of them, with the body's length or, with `chunked`, its encoding.

        Raises:
            EngineTrouble: the engine does not answer.
        """
        answer = await self._connect(bodiless=method == "HEAD")
        lines = [b"%s %s%s HTTP/1.1\r\n" % (method.encode("ascii"), self.path, target)]
        lines += [b"%s: %s\r\n" % header for header in headers]
        head = b"".join(lines) + b"\r\n"
        answer.transport.write(head + body if isinstance(body, bytes) else head)
        upload = None if isinstance(body, bytes) else asyncio.create_task(answer.upload(body, chunked=chunked))
        try:
            await answer.head()
            yield answer
        finally:
            answer.close()
            if upload is not None:
                upload.cancel()

    async def _connect(self, *, bodiless: bool) -> EngineAnswer:
        loop = asyncio.get_running_loop()
        known = self._address if loop.time() < self._until else self._host
        name = self._host if self._tls else None
        try:
            async with asyncio.timeout(CONNECT_S):
                transport, answer = await loop.create_connection(
                    lambda: EngineAnswer(bodiless=bodiless), known, self._port, ssl=self._tls, server_hostname=name
                )
        except (OSError, TimeoutError) as error:
            self._until = 0.0
            if known != self._host:
                return await self._connect(bodiless=bodiless)
            raise EngineTrouble(type(error).__name__) from error
        if known == self._host:
            self._address, self._until = transport.get_extra_info("peername")[0], loop.time() + ADDRESS_S
        return answer
