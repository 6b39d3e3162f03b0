"""An endpoint that answers as vLLM 0.32.0 answers the same requests.

Plain ASGI. Each step is a method, so that a twin can break exactly one of them (broken.py).
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from servers import brain

Send = Callable[[dict[str, Any]], Awaitable[None]]
BLOCK = 16  # tokens of one prefix cache block


@dataclass(kw_only=True)
class Generated:
    """One answer before it is sent: its tokens, why it ended, and its prompt."""

    prompt: list[str]
    pieces: list[str]
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: bool = False
    ids: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class HttpError(Exception):
    """An answer with an error status, in vLLM's format."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        error = {"message": message, "type": kind, "param": param, "code": status}
        self.status = status
        self.body: dict[str, Any] = {"error": error}


@dataclass(kw_only=True)
class Reference:
    """vLLM as it should be."""

    model: str = "glm-4-9b-chat"
    key: str | None = None
    """The API key that /v1 requires."""
    max_model_len: int = 2048
    version: str | None = "0.32.0"
    """None: no /version and no /metrics."""
    token_s: float = 0.0
    """Seconds between two tokens."""
    tools: bool = False
    """Whether tool calls are enabled."""
    started: float = field(default_factory=time.time)
    counts: Counter[str] = field(default_factory=Counter)
    cached: set[int] = field(default_factory=set)
    seen_keys: list[str | None] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """For twins that change a field."""

    # --- ASGI -------------------------------------------------------------------------------------------------------
    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        assert scope["type"] == "http"
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen_keys.append(headers.get("authorization"))
        try:
            await self.route(scope["method"], scope["path"], headers, body, send)
        except HttpError as error:
            await self.send_json(send, error.body, error.status)

    async def route(self, method: str, path: str, headers: dict[str, str], body: bytes, send: Send) -> None:
        if path.startswith("/v1") and self.key and headers.get("authorization") != f"Bearer {self.key}":
            await self.unauthorized(send)
        elif path == "/health":
            await self.health(send)
        elif path == "/version" and self.version:
            await self.send_json(send, {"version": self.version})
        elif path == "/metrics" and self.version:
            await self.send_bytes(send, self.metrics().encode(), content_type="text/plain; version=1.0.0")
        elif path == "/v1/models":
            await self.send_json(send, self.models())
        elif path == "/v1/chat/completions" and method == "POST":
            await self.chat(json.loads(body), send)
        elif path == "/v1/completions" and method == "POST":
            await self.send_json(send, self.completion(json.loads(body)))
        else:
            await self.send_json(send, {"detail": "Not Found"}, 404)

    async def send_bytes(
        self, send: Send, body: bytes, status: int = 200, content_type: str = "application/json", **more: str
    ) -> None:
        headers = {"content-type": content_type, "content-length": str(len(body)), **more}
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    async def send_json(self, send: Send, body: dict[str, Any], status: int = 200) -> None:
        await self.send_bytes(send, json.dumps(body, ensure_ascii=False).encode(), status)

    # --- single answers -----------------------------------------------------------------------------------------------
    async def unauthorized(self, send: Send) -> None:
        await self.send_json(send, {"error": "Unauthorized"}, 401)

    async def health(self, send: Send) -> None:
        await self.send_bytes(send, b"")

    def models(self) -> dict[str, Any]:
        now = int(time.time())  # as vLLM does: the time of the request, not of the start
        row = {"id": self.model, "object": "model", "created": now, "owned_by": "vllm", "root": "/model"}
        return {"object": "list", "data": [row | {"parent": None, "max_model_len": self.max_model_len}]}

    def metrics(self) -> str:
        label = f'engine="0",model_name="{self.model}"'
        lines = [
            "# TYPE process_start_time_seconds gauge",
            f"process_start_time_seconds {self.started}",
            "# TYPE vllm:cache_config_info gauge",
            f'vllm:cache_config_info{{block_size="{BLOCK}",enable_prefix_caching="True",engine="0"}} 1.0',
            "# TYPE vllm:request_success_total counter",
        ]
        for reason in ("stop", "length", "abort"):
            value = self.counts[f"success:{reason}"]
            lines.append(f'vllm:request_success_total{{engine="0",finished_reason="{reason}"}} {value}.0')
        for name in (
            "corrupted_requests_total",
            "generation_tokens_total",
            "prompt_tokens_total",
            "prefix_cache_queries_total",
            "prefix_cache_hits_total",
            "num_preemptions_total",
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
        ):
            lines.append(f"vllm:{name}{{{label}}} {float(self.counts[name])}")
        return "\n".join(lines) + "\n"

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        if isinstance(body["prompt"], list):
            return self.completion_of_ids(body)
        pieces = brain.tokens(body["prompt"])
        rows: list[Any] = [None]
        for piece in pieces[1:]:
            entry = {"logprob": brain.logprob(piece)["logprob"], "rank": 1, "decoded_token": piece}
            rows.append({str(brain.token_id(piece)): entry})
        choice = {"index": 0, "text": ".", "finish_reason": "length", "prompt_logprobs": rows, "logprobs": None}
        if body.get("return_token_ids"):
            choice["prompt_token_ids"] = [brain.token_id(piece) for piece in pieces]
        usage = {"prompt_tokens": len(pieces), "completion_tokens": 1, "total_tokens": len(pieces) + 1}
        return {"object": "text_completion", "model": self.model, "choices": [choice], "usage": usage}

    def completion_of_ids(self, body: dict[str, Any]) -> dict[str, Any]:
        """As vLLM: of each token of the prompt but the first, and of the one that comes after it."""
        ids = body["prompt"]
        choice: dict[str, Any] = {"index": 0, "text": ".", "finish_reason": "length", "logprobs": None}
        if body.get("prompt_logprobs"):
            rows = [
                {str(token): {"logprob": value, "rank": 1} for token, value in self.ranked(ids[:length]).items()}
                for length in range(1, len(ids))
            ]
            choice["prompt_logprobs"] = [None, *rows]
        if body.get("logprobs"):
            choice["logprobs"] = {
                "top_logprobs": [{f"token_id:{token}": value for token, value in self.ranked(ids).items()}]
            }
        return {"object": "text_completion", "model": self.model, "choices": [choice]}

    def ranked(self, ids: list[int]) -> dict[int, float]:
        """The most likely tokens after these, and their log probabilities."""
        return brain.ranked(ids)

    # --- chat ---------------------------------------------------------------------------------------------------------
    async def chat(self, body: dict[str, Any], send: Send) -> None:
        self.requests.append(body)
        self.validate(body)
        if body.get("tools"):
            await self.send_tools(body, send)
            return
        made = self.generate(body)
        self.count(made)
        if body.get("stream"):
            await self.send_stream(send, made)
        else:
            await asyncio.sleep(self.token_s * len(made.pieces))
            await self.send_json(send, self.chat_body(made))

    def validate(self, body: dict[str, Any]) -> None:
        if body["model"] != self.model:
            words = f"The model `{body['model']}` does not exist. Valid aliases: {self.model}."
            raise HttpError(404, words, "NotFoundError", "model")
        prompt = len(brain.prompt_tokens(body["messages"]))
        limit = self.max_model_len
        if prompt > limit:
            words = f"This model's maximum context length is {limit} tokens. However, your prompt contains {prompt}."
            raise HttpError(400, words, param="input_tokens")
        if body.get("max_tokens", 1) + prompt > limit:
            words = f"max_tokens={body['max_tokens']} cannot be greater than max_model_len={limit}."
            raise HttpError(400, words, param="max_tokens")
        if body.get("tools") and not self.tools:
            words = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            raise HttpError(400, words)

    def generate(self, body: dict[str, Any]) -> Generated:
        pieces = brain.tokens(self.reply(body))
        finish, stop_reason = "stop", None
        if body.get("ignore_eos"):
            pieces = (pieces * (1 + body["max_tokens"] // max(1, len(pieces))))[: body["max_tokens"]]
        for stop in body.get("stop", ()):
            text = "".join(pieces)
            if stop in text:
                pieces, stop_reason = brain.tokens(text.split(stop)[0]), stop
        if len(pieces) >= body.get("max_tokens", 1 << 30) and stop_reason is None:
            pieces = pieces[: body["max_tokens"]]
            finish = "length"
        return Generated(
            prompt=brain.prompt_tokens(body["messages"]),
            pieces=pieces,
            finish_reason=finish,
            stop_reason=stop_reason,
            logprobs=bool(body.get("logprobs")),
            ids=bool(body.get("return_token_ids")),
        )

    def tool_message(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request with tools: a call for each city, or text."""
        last = body["messages"][-1]
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if last["role"] == "tool":
            return message | {"content": f"The tool says: {last['content']}."}
        if "weather" not in last["content"] or body.get("tool_choice") == "none":
            return message | {"content": "Hello."}
        cities = [city for city in ("Paris", "Berlin") if city in last["content"]]
        functions = [{"name": "get_weather", "arguments": json.dumps({"city": city})} for city in cities]
        calls = [{"id": f"call-{n}", "type": "function", "function": one} for n, one in enumerate(functions)]
        return message | {"tool_calls": calls}

    def tool_deltas(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """A message with tool calls as the deltas of a stream: the name first, then the arguments in pieces."""
        deltas = [{"content": message["content"]}] if message["content"] else []
        for index, call in enumerate(message.get("tool_calls", ())):
            function = call["function"]
            deltas.append({"tool_calls": [{**call, "index": index, "function": {"name": function["name"]}}]})
            for piece in brain.tokens(function["arguments"]):
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        return deltas

    async def send_tools(self, body: dict[str, Any], send: Send) -> None:
        message = self.tool_message(body)
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        head = {"id": "chatcmpl-1", "created": int(time.time()), "model": self.model}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            await self.send_json(send, head | {"object": "chat.completion", "choices": [choice], "usage": usage})
            return
        deltas = [{"role": "assistant", "content": ""}, *self.tool_deltas(message)]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": finish})
        head["object"] = "chat.completion.chunk"
        await self.send_events(
            send, [*(head | {"choices": [one]} for one in choices), head | {"choices": [], "usage": usage}]
        )

    async def send_events(self, send: Send, events: list[dict[str, Any]]) -> None:
        lines = [b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events]
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"".join([*lines, b"data: [DONE]\n\n"])})

    def reply(self, body: dict[str, Any]) -> str:
        return brain.reply(body["messages"])

    def count(self, made: Generated) -> None:
        self.counts[f"success:{made.finish_reason}"] += 1
        self.counts["generation_tokens_total"] += len(made.pieces)
        self.counts["prompt_tokens_total"] += len(made.prompt)
        self.counts["prefix_cache_queries_total"] += len(made.prompt)
        self.counts["prefix_cache_hits_total"] += self.cache(made)

    def cache(self, made: Generated) -> int:
        """Prompt tokens that are in the cache from earlier prompts, whole blocks only."""
        hit = prefix = 0
        for end in range(BLOCK, len(made.prompt), BLOCK):
            prefix = hash((prefix, *made.prompt[end - BLOCK : end]))
            hit = end if prefix in self.cached else hit
            self.cached.add(prefix)
        return hit

    def usage(self, made: Generated) -> dict[str, Any]:
        prompt, completion = len(made.prompt), len(made.pieces)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def logprob(self, piece: str) -> dict[str, Any]:
        return brain.logprob(piece)

    def chat_body(self, made: Generated) -> dict[str, Any]:
        logprobs = {"content": [self.logprob(piece) for piece in made.pieces]} if made.logprobs else None
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": made.text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": made.finish_reason,
            "stop_reason": made.stop_reason,
            "token_ids": [brain.token_id(piece) for piece in made.pieces] if made.ids else None,
        }
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": int(time.time()), "model": self.model}
        if made.ids:
            head["prompt_token_ids"] = [brain.token_id(piece) for piece in made.prompt]
        return head | {"choices": [choice], "usage": self.usage(made)}

    def events(self, made: Generated) -> list[dict[str, Any]]:
        """The chunks of a stream, in vLLM's order: role, one per token, usage without choices."""
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": int(time.time()), "model": self.model}
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        out = [head | {"choices": [role]}]
        for place, piece in enumerate(made.pieces):
            last = place == len(made.pieces) - 1
            choice: dict[str, Any] = {"index": 0, "delta": {"content": piece}, "logprobs": None}
            choice["finish_reason"] = made.finish_reason if last else None
            if made.logprobs:
                choice["logprobs"] = {"content": [self.logprob(piece)]}
            if made.ids:
                choice["token_ids"] = [brain.token_id(piece)]
            out.append(head | {"choices": [choice]})
        return [*out, head | {"choices": [], "usage": self.usage(made)}]

    async def stream(self, made: Generated) -> AsyncIterator[bytes]:
        for event in self.events(made):
            await asyncio.sleep(self.token_s)
            yield b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def send_stream(self, send: Send, made: Generated) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for chunk in self.stream(made):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
