"""The proxy: every request goes to the engine, every answer comes back byte for byte, unless it is cut.

aiohttp serves and asks: its C parsers read a token's chunk in microseconds, and bound lines and headers on both sides.
Nothing is decompressed, so that no answer can be a bomb. A new connection per request: one that the engine closes
while it is idle would fail a request that may not be sent twice.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from errno import EADDRINUSE
from time import perf_counter
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, hdrs, web
from multidict import CIMultiDict
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from yarl import URL

from glm4_deploy.errors import PortTaken, UsageError
from glm4_deploy.guard.answer import marked, shortened
from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.guard.question import Api, Question, read_question
from glm4_deploy.guard.reader import EVENT_STREAM, MAX_BODY, BodyReader, Judging, Mode, Reader, Room

MODE_HEADER = "X-GLM4-Guard"
MAX_REQUEST = 16 << 20  # bytes of a request whose answer is judged
MAX_CHARACTERS = 16 << 20  # of all answers that are judged at once: a detector takes some 50 bytes for each
HEADER_LINE = 32768  # bytes of one line of a request's or an answer's head; of those, aiohttp accepts 128
CONNECT_S = 10.0
BUFFER = 65536  # bytes read ahead of a slow reader
PENALTY = 1.1  # repetition_penalty of a second try
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """engine: base URL. models: a mode for each model that has its own."""

    engine: str
    mode: Mode = Mode.OBSERVE
    models: Mapping[str, Mode] = field(default_factory=dict)


class Guard:
    """One engine's guard: `handle` serves one request."""

    def __init__(self, options: GuardOptions, ledger: Ledger, session: ClientSession) -> None:
        self._options = options
        self._ledger = ledger
        self._engine = options.engine.rstrip("/")
        self._room = Room(MAX_CHARACTERS)
        self._session = session

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass one request on, and its answer back."""
        wanted = request.headers.get(MODE_HEADER, "").lower()
        if wanted and wanted not in set(Mode):
            return _refusal(400, f"{MODE_HEADER} {wanted[:40]!r} is not one of {', '.join(Mode)}")
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not request.raw_path.startswith("/"):  # `@elsewhere/` would make another host of the engine's address
            return _refusal(400, "the request's target is not a path")
        api = Api(request.path) if request.method == "POST" and request.path in set(Api) else None
        if api is None or hdrs.CONTENT_ENCODING in request.headers:
            return await self._exchange(request, request.content if request.body_exists else None, None)
        raw = await _body(request.content, MAX_REQUEST)
        if len(raw) > MAX_REQUEST:
            return _refusal(413, f"the request has more than {MAX_REQUEST} bytes")
        question = read_question(api, raw)
        mode = self._mode(wanted, question)
        if question is None or mode is Mode.OFF:
            self._ledger.unjudged("request" if question is None else "off")
            return await self._exchange(request, raw, None)
        with self._ledger.streams.track_inprogress(), self._room.taken() as room:
            return await self._exchange(request, raw, Judging(self._ledger, question, mode, room))

    def _mode(self, wanted: str, question: Question | None) -> Mode:
        if question is None:
            return Mode.OFF
        mode = Mode(wanted) if wanted else self._options.models.get(question.model, self._options.mode)
        # A prompt that is not known may ask for what repeats.
        return mode if question.prompt_known or mode is Mode.OFF else Mode.OBSERVE

    async def _exchange(self, request: web.BaseRequest, body: Any, judging: "Judging | None") -> web.StreamResponse:
        response: web.StreamResponse | None = None
        try:
            async with AsyncExitStack() as held:
                answer = await held.enter_async_context(self._ask(request, body))
                unjudged = judging and judging.cannot_judge(answer)
                if judging is None or unjudged:
                    if unjudged:
                        self._ledger.unjudged(unjudged)
                    response = _response(answer)
                    return await _forward(request, answer, response)
                if answer.content_type == EVENT_STREAM:
                    response = _response(answer)
                    return await _forward(request, answer, response, judging.events(), self._ledger)
                if judging.mode is Mode.OBSERVE:
                    response = _response(answer)
                    return await _forward(request, answer, response, judging.body(), self._ledger)
                return await self._held(request, body, answer, judging)
        except (ClientError, OSError, TimeoutError) as error:
            if response is None or not response.prepared:
                self._ledger.event("engine", trouble=type(error).__name__)
                return _refusal(502, f"the engine gives no answer ({type(error).__name__})")
            # The engine died in mid-answer, or the client left: the client must not take what it has for complete.
            if request.transport is not None:
                request.transport.close()
            return response

    @asynccontextmanager
    async def _ask(self, request: web.BaseRequest, body: Any) -> AsyncIterator[ClientResponse]:
        """The engine's answer; at the end its connection is closed, which makes the engine abort what still runs."""
        dropped = HOP_BY_HOP | {name.strip().lower() for name in request.headers.get(hdrs.CONNECTION, "").split(",")}
        headers = _headers(request.raw_headers, dropped)
        if isinstance(body, bytes):
            headers[hdrs.CONTENT_LENGTH] = str(len(body))
        url = URL(self._engine + request.raw_path, encoded=True)
        answer = await self._session.request(request.method, url, headers=headers, data=body, allow_redirects=False)
        try:
            yield answer
        finally:
            answer.close()

    # Whole answers in the modes `cut` and `retry`: nothing is sent until they are judged.

    async def _held(
        self, request: web.BaseRequest, raw: bytes, answer: ClientResponse, judging: "Judging"
    ) -> web.StreamResponse:
        whole = await _body(answer.content, MAX_BODY)
        response = _response(answer)
        if len(whole) > MAX_BODY:
            self._ledger.unjudged("too long")
            await response.prepare(request)
            await response.write(whole)
            return await _forward(request, answer, response)
        reader = judging.body()
        reader.feed(whole)
        sick = await asyncio.to_thread(reader.finals)  # a long text takes some 0.1 s, in which tokens must pass
        action = "seen"
        if sick:
            again = await self._again(request, raw, judging) if judging.mode is Mode.RETRY else None
            action = "cut" if again is None else "retried"
            whole = shortened(judging.question.api, reader.parsed, sick) if again is None else marked(again, sick[0])
            response.headers.popall(hdrs.CONTENT_LENGTH, None)
            response.content_length = len(whole)
        reader.close(action)
        await response.prepare(request)
        await response.write(whole)
        await response.write_eof()
        return response

    async def _again(self, request: web.BaseRequest, raw: bytes, judging: "Judging") -> dict[str, Any] | None:
        """A second answer to the same question; None if it fails or loops too."""
        body = json.loads(raw)
        if isinstance(body.get("seed"), int):
            body["seed"] += 1
        with suppress(ClientError, OSError, TimeoutError, TypeError):
            body["repetition_penalty"] = max(body.get("repetition_penalty") or 1.0, PENALTY)
            async with self._ask(request, json.dumps(body).encode()) as answer:
                whole = await _body(answer.content, MAX_BODY)
                if judging.cannot_judge(answer) is None and len(whole) <= MAX_BODY:
                    reader = judging.body()
                    reader.feed(whole)
                    if not await asyncio.to_thread(reader.finals) and reader.parsed:
                        return reader.parsed
        return None


# Bytes from one side to the other.


async def _forward(
    request: web.BaseRequest,
    answer: ClientResponse,
    response: web.StreamResponse,
    reader: Reader | None = None,
    ledger: Ledger | None = None,
) -> web.StreamResponse:
    """Pass the engine's bytes on as they come. A slow client slows the engine's connection down: nothing piles up."""
    try:
        if not response.prepared:
            await response.prepare(request)
        async for chunk in answer.content.iter_any():
            if reader is None or ledger is None:
                await response.write(chunk)
                continue
            arrived = perf_counter()
            cut = reader.feed(chunk)
            if cut is not None:
                answer.close()  # first: a slow client must not hold the engine's slot
            await response.write(chunk if cut is None else chunk[: cut.end] + cut.closing)
            ledger.delay.observe(perf_counter() - arrived)
            if cut is not None:
                break
        if isinstance(reader, BodyReader):
            await asyncio.to_thread(reader.close)
        elif reader is not None:
            reader.close()
        await response.write_eof()
    except BaseException:
        if reader is not None:
            reader.leave()
        raise
    return response


async def _body(content: Any, limit: int) -> bytes:
    """All bytes, or somewhat more than `limit` of them if there are more."""
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > limit:
            break
    return bytes(body)


def _headers(raw: tuple[tuple[bytes, bytes], ...], dropped: frozenset[str] | set[str]) -> CIMultiDict[str]:
    headers = CIMultiDict[str]()
    for raw_name, value in raw:
        name = raw_name.decode("latin-1")
        if name.lower() not in dropped:
            headers.add(name, value.decode("utf-8", "replace"))
    return headers


def _response(answer: ClientResponse) -> web.StreamResponse:
    """The head of the engine's answer."""
    dropped = HOP_BY_HOP | {name.strip().lower() for name in answer.headers.get(hdrs.CONNECTION, "").split(",")}
    return web.StreamResponse(status=answer.status, reason=answer.reason, headers=_headers(answer.raw_headers, dropped))


def _refusal(status: int, message: str) -> web.Response:
    """An error of the guard itself, in OpenAI's form."""
    kind = "BadGateway" if status >= 500 else "BadRequestError"
    error = {"message": f"guard: {message}", "type": kind, "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


# Serving.


def _session() -> ClientSession:
    """The client's side."""
    return ClientSession(
        connector=TCPConnector(limit=0, force_close=True),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=None, sock_connect=CONNECT_S),
        auto_decompress=False,
        skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE),
        read_bufsize=BUFFER,
        max_line_size=HEADER_LINE,
        max_field_size=HEADER_LINE,
    )


@asynccontextmanager
async def serving(
    options: GuardOptions, ledger: Ledger, listen: str, port: int, metrics_port: int
) -> AsyncIterator[tuple[int, int]]:
    """Serve clients on `port`, and /metrics and /healthz on `metrics_port`; yields both. 0: any free port.

    Raises:
        PortTaken: a port is taken.
        UsageError: the address is not one of this machine.
    """

    async def own(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/metrics":
            body = generate_latest(ledger.registry)
            return web.Response(body=body, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})
        return web.Response(text="ok\n") if request.path == "/healthz" else web.Response(status=404)

    async with _session() as session, AsyncExitStack() as listening:
        ports = []
        for handler, at in ((Guard(options, ledger, session).handle, port), (own, metrics_port)):
            server = web.Server(
                handler,
                handler_cancellation=True,  # a client that leaves ends the engine's request at once
                auto_decompress=False,
                read_bufsize=BUFFER,
                max_line_size=HEADER_LINE,
                max_field_size=HEADER_LINE,
                access_log=None,
            )
            runner = web.ServerRunner(server, shutdown_timeout=1.0)
            await runner.setup()
            listening.push_async_callback(runner.cleanup)
            try:
                await web.TCPSite(runner, listen, at, backlog=1024).start()
            except OSError as error:
                raise _cannot_listen(error, listen, at) from error
            ports.append(runner.addresses[0][1])
        yield ports[0], ports[1]


def _cannot_listen(error: OSError, listen: str, port: int) -> PortTaken | UsageError:
    if error.errno == EADDRINUSE:
        return PortTaken(f"port {port} is taken on {listen}", hint="choose another with --port or --metrics-port")
    return UsageError(f"cannot listen on {listen}:{port}: {error.strerror}", hint="see --listen")
