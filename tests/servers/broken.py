"""Twins of the reference endpoint: each misbehaves in exactly one way, which its class name and docstring state."""

import asyncio
import gzip
import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from servers import brain
from servers.reference import Generated, HttpError, Reference, Send

PROXY_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>nginx</h1></body></html>"
SOUP = ["quart", " zeb", " moil", "ing ", "thex", " poru", " 9 kj", " ald", "omen ", "varn", " ist", " qo"]


# --- reach ------------------------------------------------------------------------------------------------------------
class Sick(Reference):
    """/health is 500, as vLLM's is once its engine process is dead."""

    async def health(self, send: Send) -> None:
        await self.send_bytes(send, b"", status=500)


class NoList(Reference):
    """An error instead of the list of models, from a /health that is green."""

    def models(self) -> dict[str, Any]:
        raise HttpError(500, "EngineCore encountered an issue.", "InternalServerError")


class ProxyPage(Reference):
    """A proxy's HTML error page for every request."""

    async def route(self, method: str, path: str, headers: dict[str, str], body: bytes, send: Send) -> None:
        await self.send_bytes(send, PROXY_PAGE, status=502, content_type="text/html")


class OtherProgram(Reference):
    """Another program: 200 and HTML for every request."""

    async def route(self, method: str, path: str, headers: dict[str, str], body: bytes, send: Send) -> None:
        await self.send_bytes(send, b"<html>It works!</html>", content_type="text/html")


class Redirects(Reference):
    """Redirects every request to another address."""

    elsewhere = "http://127.0.0.1:9/"

    async def route(self, method: str, path: str, headers: dict[str, str], body: bytes, send: Send) -> None:
        await self.send_bytes(send, b"", status=307, location=self.elsewhere + path.lstrip("/"))


class Stale(Reference):
    """A server that is older than the container under test."""

    def __post_init__(self) -> None:
        self.started -= 3600


class StaleCreated(Reference):
    """Like Stale, but without /metrics: only `created` shows it."""

    def __post_init__(self) -> None:
        self.version = None

    def models(self) -> dict[str, Any]:
        listing = super().models()
        listing["data"][0]["created"] -= 3600
        return listing


# --- protocol ---------------------------------------------------------------------------------------------------------
class AnyModel(Reference):
    """Answers for any model name."""

    def validate(self, body: dict[str, Any]) -> None:
        super().validate({**body, "model": self.model})


class OpenDoor(Reference):
    """Has an API key and accepts every request."""

    async def route(self, method: str, path: str, headers: dict[str, str], body: bytes, send: Send) -> None:
        await super().route(method, path, {**headers, "authorization": f"Bearer {self.key}"}, body, send)


class WrongUsage(Reference):
    """Token counts that do not add up."""

    def usage(self, made: Generated) -> dict[str, Any]:
        usage = super().usage(made)
        return {**usage, "total_tokens": usage["total_tokens"] + 7}


class NoUsage(Reference):
    """Leaves the usage chunk out of its streams."""

    def events(self, made: Generated) -> list[dict[str, Any]]:
        return super().events(made)[:-1]


class Mute(Reference):
    """Empty answers."""

    def reply(self, body: dict[str, Any]) -> str:
        return ""


class HtmlAnswer(Reference):
    """A page of HTML with status 200 for every chat."""

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        await self.send_bytes(send, PROXY_PAGE, content_type="text/html")


class ProxyGaveUp(Reference):
    """A proxy that answers chats with its own 504 page."""

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        await self.send_bytes(send, PROXY_PAGE, status=504, content_type="text/html")


class TruncatedStream(Reference):
    """The stream ends regularly after five events, without finish_reason and [DONE]."""

    async def stream(self, made: Generated) -> AsyncIterator[bytes]:
        sent = 0
        async for chunk in super().stream(made):
            yield chunk
            sent += 1
            if sent == 5:
                return


class CutStream(Reference):
    """The connection ends in the middle of the stream, without the last chunk of the transfer encoding."""

    async def stream(self, made: Generated) -> AsyncIterator[bytes]:
        sent = 0
        async for chunk in super().stream(made):
            yield chunk
            sent += 1
            if sent == 5:
                raise ConnectionAbortedError


class ErrorAmidStream(Reference):
    """An error in the middle of a stream, in vLLM's format."""

    async def stream(self, made: Generated) -> AsyncIterator[bytes]:
        sent = 0
        async for chunk in super().stream(made):
            if sent == 4:
                error = {"message": "Internal server error", "type": "InternalServerError", "code": 500}
                yield b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
                yield b"data: [DONE]\n\n"
                return
            yield chunk
            sent += 1


class OtherWords(Reference):
    """Answers differently with and without streaming."""

    def events(self, made: Generated) -> list[dict[str, Any]]:
        made.pieces = [*made.pieces[:-1], " indeed"]
        return super().events(made)


class AfterTheEnd(Reference):
    """Sends more tokens after finish_reason."""

    def events(self, made: Generated) -> list[dict[str, Any]]:
        events = super().events(made)
        return [*events[:-1], events[-2], events[-1]]


class Buffered(Reference):
    """Withholds each stream until it is complete, as a proxy does."""

    async def send_stream(self, send: Send, made: Generated) -> None:
        body = b"".join([chunk async for chunk in self.stream(made)])
        await self.send_bytes(send, body, content_type="text/event-stream")


class Bomb(Reference):
    """2 GiB of zeros in 3 kB: compressed twice, though no compression was asked for."""

    async def send_json(self, send: Send, body: dict[str, Any], status: int = 200) -> None:
        bomb = gzip.compress(gzip.compress(bytes(1 << 24)) * 128)
        await self.send_bytes(send, bomb, status, content_encoding="gzip, gzip")


class Boundless(Reference):
    """Reports a context of 10¹² tokens: a number to be used as a size."""

    async def send_json(self, send: Send, body: dict[str, Any], status: int = 200) -> None:
        for row in body.get("data", ()):
            row["max_model_len"] = 10**12
        await super().send_json(send, body, status)


class TextDelta(Reference):
    """Sends `"delta": "text"` where the protocol has an object."""

    def events(self, made: Generated) -> list[dict[str, Any]]:
        return [
            event | {"choices": [choice | {"delta": "text"} for choice in event["choices"]]}
            for event in super().events(made)
        ]


class SaysGzip(Reference):
    """Declares gzip for bodies that are not compressed."""

    async def send_json(self, send: Send, body: dict[str, Any], status: int = 200) -> None:
        await self.send_bytes(send, json.dumps(body).encode(), status, content_encoding="gzip")


class Hangs(Reference):
    """Accepts a chat and never answers; /health and /metrics stay fine, the token counter stands still."""

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        self.counts["num_requests_running"] += 1
        await asyncio.sleep(600)


class HangsAmidStream(Reference):
    """Sends nothing after five events."""

    async def stream(self, made: Generated) -> AsyncIterator[bytes]:
        sent = 0
        async for chunk in super().stream(made):
            yield chunk
            sent += 1
            if sent == 5:
                await asyncio.sleep(600)


class Drips(Reference):
    """Sends one byte every 20 ms, forever."""

    async def stream(self, made: Generated) -> AsyncIterator[bytes]:
        while True:
            yield b":"
            await asyncio.sleep(0.02)


class Busy(Hangs):
    """Never answers our chat, but its counters show that it works for others."""

    def metrics(self) -> str:
        self.counts["generation_tokens_total"] += 100
        return super().metrics()


class Endless(Reference):
    """Ignores max_tokens."""

    def generate(self, body: dict[str, Any]) -> Generated:
        return super().generate({**body, "max_tokens": body["max_tokens"] + 20})


class CutsInSilence(Reference):
    """Accepts prompts that are too long without an error."""

    def validate(self, body: dict[str, Any]) -> None:
        if body["model"] != self.model:
            super().validate(body)


class NullLogprobs(Reference):
    """NaN logits, as vLLM 0.32 shows them in a stream: null logprobs."""

    def logprob(self, piece: str) -> dict[str, Any]:
        return {**super().logprob(piece), "logprob": None}


class Nan400(Reference):
    """NaN logits, as vLLM 0.32 shows them without streaming: HTTP 400."""

    def chat_body(self, made: Generated) -> dict[str, Any]:
        if made.logprobs:
            raise HttpError(400, "Out of range float values are not JSON compliant: nan")
        return super().chat_body(made)


class Corrupts(Reference):
    """Counts a corrupted request with every answer."""

    def count(self, made: Generated) -> None:
        super().count(made)
        self.counts["corrupted_requests_total"] += 1


class Leaks(Reference):
    """Leaves a template token in the text."""

    def reply(self, body: dict[str, Any]) -> str:
        return super().reply(body) + "<|user|>"


class RunsOn(Reference):
    """Does not know its end tokens: every answer continues until max_tokens."""

    def reply(self, body: dict[str, Any]) -> str:
        story = " ".join(f"{brain.STORY_EN} Part {part}." for part in range(20))
        return f"{super().reply(body)}\n{story}"


class RunsPastHidden(Reference):
    """Runs past its end token, which only shows with special tokens."""

    def reply(self, body: dict[str, Any]) -> str:
        text = super().reply(body)
        return text if body.get("skip_special_tokens", True) else f"{text}<|user|>\nAnd now? {text}"


class NoStopStrings(Reference):
    """Ignores the field `stop`."""

    def generate(self, body: dict[str, Any]) -> Generated:
        return super().generate({key: value for key, value in body.items() if key != "stop"})


class BlankJson(Reference):
    """Endless white space under a JSON schema (vllm#40080)."""

    def reply(self, body: dict[str, Any]) -> str:
        return '{"name":' + "\n" * 400 if body.get("response_format") else super().reply(body)


class ProseJson(Reference):
    """Prose where JSON was requested."""

    def reply(self, body: dict[str, Any]) -> str:
        return "Her name is Li Na." if body.get("response_format") else super().reply(body)


class LeakyTools(Reference):
    """A tool parser that does not match the model: the call arrives as text."""

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        message = super().tool_message(body)
        calls = message.pop("tool_calls", ())
        texts = [f"{call['function']['name']}\n{call['function']['arguments']}" for call in calls]
        return message | ({"content": "\n".join(texts)} if texts else {})


class BadArguments(Reference):
    """A tool call whose arguments are not JSON."""

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        message = super().tool_message(body)
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = "city=Paris"
        return message


class LosesPieces(Reference):
    """Streams the arguments of a tool call without their last piece, as a parser does that waits for more."""

    def tool_deltas(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        deltas = super().tool_deltas(message)
        return deltas[:-1] if message.get("tool_calls") else deltas


class RepeatsNames(Reference):
    """Sends the name with every piece of a streamed call."""

    def tool_deltas(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        deltas = super().tool_deltas(message)
        for delta in deltas:
            for call in delta.get("tool_calls", ()):
                call["function"]["name"] = "get_weather"
        return deltas


class MergesCalls(Reference):
    """Makes one call of two."""

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        message = super().tool_message(body)
        calls = message.get("tool_calls", ())
        if len(calls) > 1:
            calls[0]["function"]["arguments"] += calls[1]["function"]["arguments"]
            del calls[1:]
        return message


class OneId(Reference):
    """Gives every call the same id."""

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        message = super().tool_message(body)
        for call in message.get("tool_calls", ()):
            call["id"] = "call-1"
        return message


class OneCity(Reference):
    """Calls a tool for the first city only."""

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        message = super().tool_message(body)
        return message | {"tool_calls": message["tool_calls"][:1]} if message.get("tool_calls") else message


class IgnoresResults(Reference):
    """A chat template that drops the tool's turn."""

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["messages"][-1]["role"] == "tool":
            return {"role": "assistant", "content": "I cannot know the weather."}
        return super().tool_message(body)


class AlwaysCalls(Reference):
    """Calls a tool whatever was asked."""

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = [{"role": "user", "content": "weather in Paris"}]
        return super().tool_message({**body, "messages": asked})


class ForcesCalls(Reference):
    """Ignores tool_choice none."""

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        return super().tool_message({**body, "tool_choice": "auto"})


class TalksOnly(Reference):
    """A model that calls no tool."""

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        return super().tool_message({**body, "tool_choice": "none"})


class FrozenCounters(Reference):
    """Counts nothing."""

    def count(self, made: Generated) -> None:
        return


# --- sense ------------------------------------------------------------------------------------------------------------
class WrongDigits(Reference):
    """Wrong digits, the first symptom of FP4 damage."""

    def reply(self, body: dict[str, Any]) -> str:
        return super().reply(body).translate(str.maketrans("2468", "7391"))


class Slips(Reference):
    """Makes a mistake at 97 when counting."""

    def reply(self, body: dict[str, Any]) -> str:
        return super().reply(body).replace("97, 98", "98, 98")


class Forgets(Reference):
    """Does not remember names."""

    def reply(self, body: dict[str, Any]) -> str:
        return super().reply(body).replace("Ada Lovelace", "Grace Hopper").replace("Bo", "Rex")


class EnglishOnly(Reference):
    """Knows no Chinese."""

    def reply(self, body: dict[str, Any]) -> str:
        return super().reply(body).replace("北京", "I do not understand.")


class Perplexed(Reference):
    """A model that got worse: its texts are far less likely than before."""

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        made = super().completion(body)
        for row in made["choices"][0]["prompt_logprobs"][1:]:
            for entry in row.values():
                entry["logprob"] -= 0.5
        return made


class Sharpened(Reference):
    """Every log probability comes from logits that are half as large again: a wrong scale."""

    def ranked(self, ids: list[int]) -> dict[int, float]:
        return {token: value * 1.5 - 0.05 for token, value in super().ranked(ids).items()}


class LosesTheStart(Reference):
    """Long prompts give other answers than short ones, as with a wrong rope_theta."""

    def ranked(self, ids: list[int]) -> dict[int, float]:
        found = super().ranked(ids)
        return {token + 1: value for token, value in found.items()} if len(ids) > 500 else found


class OtherTemplate(Reference):
    """Another chat template: the prompt has one more token."""

    def generate(self, body: dict[str, Any]) -> Generated:
        made = super().generate(body)
        return replace(made, prompt=["\n", *made.prompt])


class PerplexedNan(Reference):
    """A prompt logprob that is not a finite number."""

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        made = super().completion(body)
        next(iter(made["choices"][0]["prompt_logprobs"][3].values()))["logprob"] = -math.inf
        return made

    async def send_json(self, send: Send, body: dict[str, Any], status: int = 200) -> None:
        await self.send_bytes(send, json.dumps(body).encode(), status)


# --- loops ------------------------------------------------------------------------------------------------------------
class LoopsGreedy(Reference):
    """Loops at temperature 0."""

    def reply(self, body: dict[str, Any]) -> str:
        text = super().reply(body)
        return text[:40] + " and the lamp went out" * 120 if len(text) > 200 and not body["temperature"] else text


class LoopsSampled(Reference):
    """Sane at temperature 0, loops when sampled."""

    def reply(self, body: dict[str, Any]) -> str:
        text = super().reply(body)
        return text[:40] + " and the lamp went out" * 120 if len(text) > 200 and body["temperature"] else text


class LoopsLate(Reference):
    """Sane for 512 tokens, then loops."""

    def reply(self, body: dict[str, Any]) -> str:
        text = super().reply(body)
        return text + " Then the lamp went out." * 100 if body["max_tokens"] > 512 and "lamp" in text else text


# --- context and load -------------------------------------------------------------------------------------------------
class ShortSighted(Reference):
    """Sees only the last words of a long prompt."""

    def reply(self, body: dict[str, Any]) -> str:
        if "code word" in body["messages"][-1]["content"]:
            return "The code word is 1234567."
        return super().reply(body)


class LoopsBehindLongPrompt(Reference):
    """Loops after a long prompt."""

    def reply(self, body: dict[str, Any]) -> str:
        text = super().reply(body)
        return text[:40] + " and the lamp went out" * 120 if len(body["messages"][-1]["content"]) > 9000 else text


class SpoiltCache(Reference):
    """Garbage whenever the prompt came from the cache."""

    def generate(self, body: dict[str, Any]) -> Generated:
        made = super().generate(body)
        if len(made.prompt) > 100 and self.cache(made):
            made.pieces = ["!"] * body["max_tokens"]
            made.finish_reason = "length"
        return made


class NoHits(Reference):
    """Counts no hits although prefix caching is on."""

    def cache(self, made: Generated) -> int:
        return 0


class CracksUnderLoad(Reference):
    """Gets sums wrong while more than one request is being served."""

    inside = 0

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        self.inside += 1
        try:
            await asyncio.sleep(0.03)
            await super().chat(body, send)
        finally:
            self.inside -= 1

    def reply(self, body: dict[str, Any]) -> str:
        text = super().reply(body)
        return text.translate(str.maketrans("2468", "7391")) if self.inside > 1 and len(text) < 9 else text


class Tires(Reference):
    """Gets sums wrong from the third on: output that degrades over time."""

    sums = 0

    def reply(self, body: dict[str, Any]) -> str:
        text = super().reply(body)
        self.sums += text == "42"
        return "41" if self.sums > 2 and text == "42" else text


class Slow(Reference):
    """At most 200 tokens per second."""

    def __post_init__(self) -> None:
        self.token_s = 0.005
