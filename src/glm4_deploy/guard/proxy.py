"""The proxy: every request goes to the engine, every answer comes back byte for byte, unless it is cut.

aiohttp serves: its C parser bounds lines and headers. `upstream` asks the engine, and hands a token's bytes over in the
call that read them; they are written to the client in that call too, unless the client is slow. They are judged before
that where an answer may be cut, otherwise in batches afterwards. Nothing is decompressed: no answer can be a bomb.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from errno import EADDRINUSE
from time import monotonic, perf_counter
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from glm4_deploy.errors import PortTaken, UsageError
from glm4_deploy.guard.answer import marked, shortened
from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.guard.question import Api, Question, read_question, with_repetition_detection
from glm4_deploy.guard.reader import (
    EVENT_STREAM,
    MAX_BODY,
    Backlog,
    Cut,
    DeferredReader,
    Judging,
    Mode,
    NoRoom,
    Reader,
    Reserve,
    Room,
)
from glm4_deploy.guard.upstream import BUFFER, EngineAnswer, EngineTrouble, Header, Upstream, frame
from glm4_deploy.host.system import GIB

MODE_HEADER = "X-GLM4-Guard"
KEY_HEADER = "X-Key-Name"  # the gateway's name for the client's key
MAX_KEY = 64  # characters
MAX_HEAD = 65536  # bytes of a request's head: it is kept for as long as the answer takes
MAX_REQUEST = 4 << 20  # bytes of a request whose answer is judged
MAX_REQUESTS = 128 << 20  # bytes of all such requests at once
BODY_S = 300.0  # for such a request's body
MAX_CHARACTERS = 16 << 20  # of all answers that are judged at once: a detector takes some 50 bytes for each
HEADER_LINE = 16384  # bytes of one line of a request's head
HEADER_LINES = 64  # so that a client that never ends its head holds no more than 1 MiB
IDLE_S = 130.0  # for a request's head, and between two requests; Caddy keeps an idle connection for 120 s
RETRY_S = 10  # what a client should wait while the host is short of memory
# What makes the engine work for long: what is judged, its Anthropic interface, and embeddings.
WORK = frozenset({*Api, "/v1/messages", "/v1/embeddings"})
PENALTY = 1.1  # repetition_penalty of a second try
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)


class _WithoutHeads(logging.Filter):
    """A request that is not HTTP is not logged: aiohttp quotes the line, and that can be the one with the key."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


LOG = logging.getLogger(__name__)
LOG.addFilter(_WithoutHeads())


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """How a guard works.

    Attributes:
        engine: base URL.
        mode_for: a mode for each `key:NAME` and `model:NAME` that has its own; a key's goes first.
        repetition_detection: max_pattern_size and min_count of vLLM's own check, to be set where answers are cut.
        refuse_below_gib: of the host's memory; while less is available, new questions are refused. 0: never.
    """

    engine: str
    mode: Mode = Mode.OBSERVE
    mode_for: Mapping[str, Mode] = field(default_factory=dict)
    repetition_detection: tuple[int, int] | None = None
    refuse_below_gib: float = 0.0


class Guard:
    """One engine's guard: `handle` serves one request."""

    def __init__(self, options: GuardOptions, ledger: Ledger, backlog: Backlog) -> None:
        self._options, self._ledger, self._backlog = options, ledger, backlog
        self._engine = Upstream(options.engine)
        self._room = Room(MAX_CHARACTERS)
        self._requests = Room(MAX_REQUESTS)
        self._reserve = Reserve(options.refuse_below_gib)
        ledger.refuses.set_function(lambda: float(self._short_of_memory()))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass one request on, and its answer back."""
        if sum(len(name) + len(value) for name, value in request.raw_headers) > MAX_HEAD:
            return _refusal(431, f"the request's head has more than {MAX_HEAD} bytes")
        wanted = request.headers.get(MODE_HEADER, "").lower()
        if wanted and wanted not in set(Mode):
            return _refusal(400, f"{MODE_HEADER} {wanted[:40]!r} is not one of {', '.join(Mode)}")
        if not request.raw_path.startswith("/"):  # `@elsewhere/` would make another host of the engine's address
            return _refusal(400, "the request's target is not a path")
        api = Api(request.path) if request.method == "POST" and request.path in set(Api) else None
        if request.method == "POST" and request.path in WORK and self._short_of_memory():
            self._ledger.refused()
            why = f"the host is short of memory: less than {self._options.refuse_below_gib:g} GiB, now or just before"
            return _refusal(503, why, {hdrs.RETRY_AFTER: str(RETRY_S)})
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if api is None or hdrs.CONTENT_ENCODING in request.headers:
            return await self._exchange(request, request.content.iter_any() if request.body_exists else None, None)
        with self._requests.taken() as take:
            try:
                async with asyncio.timeout(BODY_S):
                    raw, whole = await _read_request(request, take)
            except TimeoutError:
                return _refusal(408, f"the request took more than {BODY_S:.0f} s")
            if not whole:
                self._ledger.unjudged("request")
                return await self._exchange(request, _with_the_rest(raw, request), None)
            return await self._ask_question(request, api, raw, wanted)

    def _short_of_memory(self) -> bool:
        before, short = self._reserve.short, self._reserve.look(monotonic())
        if short is not before:
            left = self._reserve.left
            self._ledger.event("memory", refuses=short, available_gib=None if left is None else round(left / GIB, 1))
        return short

    async def _ask_question(self, request: web.BaseRequest, api: Api, raw: bytes, wanted: str) -> web.StreamResponse:
        question = read_question(api, raw, key=request.headers.get(KEY_HEADER, "")[:MAX_KEY])
        mode = self._mode(wanted, question)
        if question is None or mode is Mode.OFF:
            self._ledger.unjudged("request" if question is None else "off")
            return await self._exchange(request, raw, None)
        if self._options.repetition_detection and mode in (Mode.CUT, Mode.RETRY):
            raw = with_repetition_detection(question, raw, *self._options.repetition_detection)
        # Events of the Responses API have numbers and an id, which a second answer would restart.
        again = wanted == Mode.RETRY and api is not Api.RESPONSES
        with ExitStack() as taken:
            taken.enter_context(self._ledger.streams.track_inprogress())
            judging = Judging(
                ledger=self._ledger,
                question=question,
                mode=mode,
                room=taken.enter_context(self._room.taken()),
                taken=taken,
                again_in_stream=again,
            )
            return await self._exchange(request, raw, judging)

    def _mode(self, wanted: str, question: Question | None) -> Mode:
        if question is None:
            return Mode.OFF
        known, options = self._options.mode_for, self._options
        own = known.get(f"key:{question.key}") or known.get(f"model:{question.model}") or options.mode
        mode = Mode(wanted) if wanted else own
        # A prompt that is not known may ask for what repeats.
        return mode if question.prompt_known or mode is Mode.OFF else Mode.OBSERVE

    async def _exchange(self, request: web.BaseRequest, body: Any, judging: Judging | None) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        try:
            async with self._ask(request, body) as answer:
                response = _response(answer)
                unjudged = judging and judging.cannot_judge(answer.status, response)
                if judging is None or unjudged:
                    if unjudged:
                        self._ledger.unjudged(unjudged)
                    return await self._forward(request, answer, response)
                streams = response.content_type == EVENT_STREAM
                if judging.mode is Mode.OBSERVE:
                    reader = DeferredReader(judging.events(), self._backlog) if streams else judging.body()
                    return await self._forward(request, answer, response, reader, judging)
                if not streams:
                    return await self._held(request, body, answer, response, judging)
                response.headers.popall(hdrs.CONTENT_LENGTH, None)  # a cut changes it
                if judging.mode is Mode.RETRY:
                    return await self._tried_twice(request, body, answer, response, judging)
                return await self._forward(request, answer, response, judging.events(), judging)
        except (EngineTrouble, OSError, TimeoutError) as error:
            if response is None or not response.prepared:
                self._ledger.event("engine", trouble=str(error) or type(error).__name__)
                return _refusal(502, f"the engine gives no answer ({error or type(error).__name__})")
            # The engine died in mid-answer, or the client left: the client must not take what it has for complete.
            if request.transport is not None:
                request.transport.close()
            return response

    def _ask(self, request: web.BaseRequest, body: Any) -> AbstractAsyncContextManager[EngineAnswer]:
        """The engine's answer; at the end its connection is closed, which makes the engine abort what still runs."""
        dropped = _dropped(request.headers) | {b"content-length"}
        headers: list[Header] = [(name, value) for name, value in request.raw_headers if name.lower() not in dropped]
        if hdrs.HOST not in request.headers:
            headers.insert(0, (b"Host", self._engine.authority))
        length = len(body) if isinstance(body, bytes) else request.content_length
        if body is not None:
            chunked = (b"Transfer-Encoding", b"chunked")
            headers.append(chunked if length is None else (b"Content-Length", b"%d" % length))
        target = request.raw_path.encode()
        return self._engine.ask(request.method, target, headers, body or b"", chunked=length is None)

    # Whole answers in the modes `cut` and `retry`: nothing is sent until they are judged.

    async def _held(
        self, request: web.BaseRequest, raw: bytes, answer: EngineAnswer, response: web.StreamResponse, judging: Judging
    ) -> web.StreamResponse:
        whole = await _whole(answer)
        if len(whole) > MAX_BODY:
            self._ledger.unjudged("too long")
            await response.prepare(request)
            await response.write(whole)
            return await self._forward(request, answer, response)
        reader = judging.body()
        reader.feed(whole)
        sick = await asyncio.to_thread(reader.finals)  # a long text takes some 0.1 s, in which tokens must pass
        action = "seen"
        if sick:
            again = await self._again(request, raw, judging) if judging.mode is Mode.RETRY else None
            try:
                first = reader.parsed
                whole = shortened(judging.question.api, first, sick) if again is None else marked(again, sick[0])
                action = "cut" if again is None else "retried"
                response.headers.popall(hdrs.CONTENT_LENGTH, None)
                response.content_length = len(whole)
            except Exception as error:  # noqa: BLE001 (the engine's own bytes are an answer too)
                self._ledger.fault(error)
        await asyncio.to_thread(reader.close, action)
        await response.prepare(request)
        await response.write(whole)
        await response.write_eof()
        return response

    async def _again(self, request: web.BaseRequest, raw: bytes, judging: Judging) -> dict[str, Any] | None:
        """A second answer to the same question; None if it fails or loops too, or memory is low: it is new work."""
        if self._short_of_memory():
            return None
        with suppress(EngineTrouble, OSError, TimeoutError, TypeError):
            async with self._ask(request, _otherwise(raw)) as answer:
                whole = await _whole(answer)
                if judging.cannot_judge(answer.status, _response(answer)) is None and len(whole) <= MAX_BODY:
                    reader = judging.body()
                    reader.feed(whole)
                    if not await asyncio.to_thread(reader.finals) and reader.parsed:
                        return reader.parsed
        return None

    # Streams in the mode `retry`.

    async def _tried_twice(
        self, request: web.BaseRequest, raw: bytes, answer: EngineAnswer, response: web.StreamResponse, judging: Judging
    ) -> web.StreamResponse:
        """A stream; where it loops, another answer follows if nothing was sent yet, or if the client knows of that."""
        reader = judging.events()
        try:
            first = await answer.read()
        except BaseException:
            reader.leave()
            raise
        cut = reader.feed(first)
        nothing_sent = cut is not None
        if cut is None:
            cut = await self._pass(request, answer, response, reader, judging, first=first, until_cut=True)
            if cut is None:
                return await self._end(response, reader, judging)
        answer.close()
        async with AsyncExitStack() as asked:
            again = None
            if nothing_sent or judging.again_in_stream:
                try:
                    again = await self._again_streamed(asked, request, raw, judging)
                except BaseException:  # the client left
                    reader.was_cut()
                    raise
            if again is not None:
                if not nothing_sent:
                    await response.write(cut.again)
                return await self._forward(request, again, response, judging.events(second=True), judging)
        reader.was_cut()
        if nothing_sent:
            await response.prepare(request)
        await response.write((first[: cut.end] if nothing_sent else b"") + cut.closing)
        await response.write_eof()
        return response

    async def _again_streamed(
        self, asked: AsyncExitStack, request: web.BaseRequest, raw: bytes, judging: Judging
    ) -> EngineAnswer | None:
        """A second stream to the same question; None if the engine does not send one, or memory is low."""
        if self._short_of_memory():
            return None
        with suppress(EngineTrouble, OSError, TimeoutError, TypeError):
            answer = await asked.enter_async_context(self._ask(request, _otherwise(raw)))
            head = _response(answer)
            if judging.cannot_judge(answer.status, head) is None and head.content_type == EVENT_STREAM:
                return answer
        return None

    # Bytes from one side to the other.

    async def _forward(
        self,
        request: web.BaseRequest,
        answer: EngineAnswer,
        response: web.StreamResponse,
        reader: Reader | None = None,
        judging: Judging | None = None,
    ) -> web.StreamResponse:
        """Pass the rest of an answer on, to its end."""
        await self._pass(request, answer, response, reader, judging)
        return await self._end(response, reader, judging)

    async def _end(
        self, response: web.StreamResponse, reader: Reader | None, judging: Judging | None
    ) -> web.StreamResponse:
        """Tell the client that the answer is complete; it is judged as a whole meanwhile."""
        if reader is not None and judging is not None:
            self._backlog.conclude(reader, judging.taken.pop_all())
        await response.write_eof()
        return response

    async def _pass(
        self,
        request: web.BaseRequest,
        answer: EngineAnswer,
        response: web.StreamResponse,
        reader: Reader | None,
        judging: Judging | None,
        *,
        first: bytes = b"",
        until_cut: bool = False,
    ) -> Cut | None:
        """Pass the engine's bytes on as they come. A slow client slows the engine's connection down: nothing piles up.

        Args:
            first: what was read, and judged, before.
            until_cut: stop where the answer is cut, and return the cut instead of sending it.
        """
        unsent: Cut | None = None

        def judged(chunk: bytes) -> bytes:
            nonlocal unsent
            cut = reader.feed(chunk) if reader is not None else None
            if cut is None:
                return chunk
            answer.close()  # before the write: a slow client must not hold the engine's slot
            if until_cut:
                unsent = cut
                return chunk[: cut.end]
            return chunk[: cut.end] + cut.closing

        try:
            if not response.prepared:
                await response.prepare(request)
            if first:
                await response.write(first)
            transport, chunked = request.transport, response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"

            def pass_at_once(chunk: bytes) -> bool:
                """In the call that read the chunk, if the client has taken all that was written before."""
                if transport is None or transport.is_closing() or transport.get_write_buffer_size():
                    return False
                arrived = perf_counter()
                more = judged(chunk)
                transport.write(frame(more) if chunked else more)
                if judging is not None:
                    judging.ledger.delay.observe(perf_counter() - arrived)
                return True

            if request.method != hdrs.METH_HEAD:
                answer.take = pass_at_once
            while chunk := await answer.read():
                await response.write(judged(chunk))
        except BaseException:
            if reader is not None and reader.complete and judging is not None:  # many clients leave at the end mark
                self._backlog.conclude(reader, judging.taken.pop_all())
            elif reader is not None:
                reader.leave()
            raise
        return unsent


def _otherwise(raw: bytes) -> bytes:
    """The same question for a second try.

    Raises:
        TypeError: its repetition_penalty is not a number.
    """
    body = json.loads(raw)
    if isinstance(body.get("seed"), int):
        body["seed"] += 1
    body["repetition_penalty"] = max(body.get("repetition_penalty") or 1.0, PENALTY)
    return json.dumps(body).encode()


async def _whole(answer: EngineAnswer) -> bytes:
    """The whole body, or somewhat more than MAX_BODY bytes if it has more."""
    body = bytearray()
    while len(body) <= MAX_BODY and (chunk := await answer.read()):
        body += chunk
    return bytes(body)


async def _read_request(request: web.BaseRequest, take: Callable[[int], None]) -> tuple[bytes, bool]:
    """The body, and whether that is all of it: not if it is too long, or too many are held."""
    body = bytearray()
    with suppress(NoRoom):
        while piece := await request.content.readany():
            body += piece
            take(len(piece))
            if len(body) > MAX_REQUEST:
                return bytes(body), False
        return bytes(body), True
    return bytes(body), False


async def _with_the_rest(begun: bytes, request: web.BaseRequest) -> AsyncIterator[bytes]:
    yield begun
    async for piece in request.content.iter_any():
        yield piece


def _dropped(headers: Mapping[str, str]) -> frozenset[bytes]:
    """Names of the fields that are for one connection only."""
    return HOP_BY_HOP | {name.strip().lower().encode() for name in headers.get(hdrs.CONNECTION, "").split(",")}


def _response(answer: EngineAnswer) -> web.StreamResponse:
    """The head of the engine's answer."""
    headers = CIMultiDict[str](
        (name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in answer.headers
    )
    for name in _dropped(headers):
        headers.popall(name.decode(), None)
    return web.StreamResponse(status=answer.status, reason=answer.reason.decode("latin-1"), headers=headers)


def _refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error of the guard itself, in OpenAI's form."""
    kind = {502: "BadGateway", 503: "ServiceUnavailable"}.get(status, "BadRequestError")
    error = {"message": f"guard: {message}", "type": kind, "param": None, "code": status}
    return web.json_response({"error": error}, status=status, headers=headers)


# Serving.


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

    async with AsyncExitStack() as listening:
        ports, backlog = [], Backlog()
        listening.push_async_callback(backlog.ended)
        for handler, at in ((Guard(options, ledger, backlog).handle, port), (own, metrics_port)):
            server = web.Server(
                handler,
                handler_cancellation=True,  # a client that leaves ends the engine's request at once
                auto_decompress=False,
                keepalive_timeout=IDLE_S,
                read_bufsize=BUFFER,
                max_line_size=HEADER_LINE,
                max_field_size=HEADER_LINE,
                max_headers=HEADER_LINES,
                access_log=None,
                logger=LOG,
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
