"""Twins of the reference endpoint whose engine dies while it serves, each in one of the ways in which vLLM shows it."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from servers.reference import Generated, HttpError, Reference, Send

DEATH = "EngineCore encountered an issue. See stack trace (above) for the root cause."


@dataclass(kw_only=True)
class Dies(Reference):
    """Dies at the first request with a JSON schema, as vLLM 0.13 does on a CPU (xgrammar: logits must be float32).

    This one keeps its API server, as with VLLM_KEEP_ALIVE_ON_ENGINE_DEATH=1 in vLLM 0.32: every later request gets a
    500 with the error, and /health a 503; /v1/models and /metrics answer as before.
    """

    dead: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The chats that arrived after its death."""

    def fatal(self, body: dict[str, Any]) -> bool:
        return bool(body.get("response_format"))

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        if self.dead:
            self.asked.append(body)
        self.dead = self.dead or self.fatal(body)
        if self.dead:
            await self.fail(body, send)
        else:
            await super().chat(body, send)

    async def fail(self, body: dict[str, Any], send: Send) -> None:
        raise HttpError(500, DEATH, "InternalServerError")

    async def health(self, send: Send) -> None:
        await self.send_bytes(send, b"", status=503 if self.dead else 200)


class DiesWithoutAWord(Dies):
    """An empty 500, as in vLLM 0.11 to 0.13: only /health says what it means."""

    async def fail(self, body: dict[str, Any], send: Send) -> None:
        await self.send_bytes(send, b"", status=500)


class DiesAmidStream(Dies):
    """The error is an event of the stream, after a status of 200 and some tokens."""

    async def fail(self, body: dict[str, Any], send: Send) -> None:
        await self.send_stream(send, self.generate(body))

    async def stream(self, made: Generated) -> AsyncIterator[bytes]:
        sent = 0
        async for chunk in super().stream(made):
            if self.dead and sent == 4:
                error = {"message": DEATH, "type": "InternalServerError", "param": None, "code": 500}
                yield b"data: " + json.dumps({"error": error}).encode() + b"\n\ndata: [DONE]\n\n"
                return
            yield chunk
            sent += 1


class DiesBehindARouter(Dies):
    """One of several engines behind an address, which stays healthy."""

    async def health(self, send: Send) -> None:
        await self.send_bytes(send, b"")


class DiesAndComesBack(Dies):
    """The connection breaks, and when the client asks again, a new process answers: Docker restarted it."""

    async def fail(self, body: dict[str, Any], send: Send) -> None:
        self.dead = False
        self.started += 60
        raise ConnectionAbortedError


class DiesUnderLoad(Dies):
    """Dies at the eighth of many concurrent requests; those that wait for their answers get the error too."""

    running: int = 0

    def fatal(self, body: dict[str, Any]) -> bool:
        return self.running >= 8

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        self.running += 1
        try:
            # Longer than the pause between the requests of a check, so that they meet however slow the machine is.
            await asyncio.sleep(2.0 if self.running > 1 or self.dead else 0.1)
            await super().chat(body, send)
        finally:
            self.running -= 1


CORE = f"(EngineCore_DP0 pid={os.getpid()}) ERROR 11-28 12:26:16 [core.py:1402]"
SERVER = f"(APIServer pid={os.getpid()}) ERROR 11-28 12:26:16 [async_llm.py:906]"
LAST_WORDS = f"""{CORE} EngineCore encountered a fatal error.
{CORE} Traceback (most recent call last):
{CORE}   File "/vllm/v1/engine/core.py", line 1393, in run_engine_core
{CORE}     engine_core.run_busy_loop()
{CORE} ValueError: logits must be of type float32
{SERVER} AsyncLLM output_handler failed.
{SERVER} Traceback (most recent call last):
{SERVER}   File "/vllm/v1/engine/async_llm.py", line 849, in output_handler
{SERVER} vllm.v1.engine.exceptions.EngineDeadError: {DEATH}
"""


class DiesAndLogsIt(Dies):
    """Writes what vLLM 0.32 writes when its engine core ends with an exception."""

    async def fail(self, body: dict[str, Any], send: Send) -> None:
        sys.stdout.write(LAST_WORDS)
        sys.stdout.flush()
        await super().fail(body, send)


class DiesInItsGate(DiesAndLogsIt):
    """Dies at the first long text."""

    def fatal(self, body: dict[str, Any]) -> bool:
        return bool(body["max_tokens"] > 200)


class Fails(Dies):
    """Not dead: its requests fail one by one (vLLM's EngineGenerateError), and /health is right to be green."""

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        if self.fatal(body):
            raise HttpError(500, "Internal server error", "InternalServerError")
        await super().chat(body, send)
