"""Imitations of other OpenAI-compatible servers, written from their sources; the servers themselves were not run.

llama.cpp: tools/server (README.md, server-common.cpp). Ollama: openai/openai.go, middleware/openai.go. SGLang:
srt/entrypoints/openai/protocol.py, serving_base.py.
"""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from servers import brain
from servers.reference import Generated, HttpError, Reference, Send


class LlamaCpp(Reference):
    """llama-server with one model: it accepts and repeats any model name, and lists its model without a key.

    /metrics is 501 unless enabled by a flag; errors are {"error": {"code", "message", "type"}}; no token ids.
    """

    def __post_init__(self) -> None:
        self.version = None

    async def route(self, method: str, path: str, headers: dict[str, str], body: bytes, send: Send) -> None:
        if path == "/v1/models":
            await self.send_json(send, self.models())
        elif path == "/metrics":
            words = "This server does not support metrics endpoint. Start it with `--metrics`"
            await self.send_json(send, self.error(501, words, "not_supported_error"), 501)
        elif path == "/version":
            await self.send_json(send, self.error(404, "File Not Found", "not_found_error"), 404)
        else:
            await super().route(method, path, headers, body, send)

    def error(self, code: int, message: str, kind: str) -> dict[str, Any]:
        return {"error": {"code": code, "message": message, "type": kind}}

    async def unauthorized(self, send: Send) -> None:
        await self.send_json(send, self.error(401, "Invalid API Key", "authentication_error"), 401)

    async def health(self, send: Send) -> None:
        await self.send_json(send, {"status": "ok"})

    def models(self) -> dict[str, Any]:
        meta = {"vocab_type": 2, "n_vocab": 151552, "n_ctx_train": 131072, "n_embd": 4096, "n_params": 9_399_951_360}
        row = {"id": self.model, "object": "model", "created": int(time.time()), "owned_by": "llamacpp", "meta": meta}
        return {"models": [{"name": self.model, "model": self.model}], "object": "list", "data": [row]}

    def validate(self, body: dict[str, Any]) -> None:
        prompt = len(brain.prompt_tokens(body["messages"]))
        if prompt > self.max_model_len:
            words = f"request ({prompt} tokens) exceeds the available context size ({self.max_model_len} tokens)"
            error = HttpError(400, words)
            error.body = self.error(400, words, "exceed_context_size_error")
            raise error

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        made = super().completion(body)
        del made["choices"][0]["prompt_logprobs"]
        return made

    def events(self, made: Generated) -> list[dict[str, Any]]:
        """The first delta's content is null, the last delta is empty, and the usage chunk has timings."""
        made.ids = False
        role, *tokens, usage = super().events(made)
        role["choices"][0]["delta"]["content"] = None
        finish, tokens[-1]["choices"][0]["finish_reason"] = tokens[-1]["choices"][0]["finish_reason"], None
        end = {**role, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
        return [role, *tokens, end, usage | {"timings": {"prompt_n": 1, "predicted_n": len(made.pieces)}}]


class Ollama(Reference):
    """No /health, no context length, long prompts cut silently, logprobs ignored, two models listed."""

    def __post_init__(self) -> None:
        self.version = None

    async def route(self, method: str, path: str, headers: dict[str, str], body: bytes, send: Send) -> None:
        if path.startswith("/v1"):
            await super().route(method, path, headers, body, send)
        else:
            await self.send_bytes(send, b"404 page not found", status=404, content_type="text/plain")

    def models(self) -> dict[str, Any]:
        names = (self.model, "qwen3:8b")
        rows = [{"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "library"} for name in names]
        return {"object": "list", "data": rows}

    def validate(self, body: dict[str, Any]) -> None:
        code, words = 0, ""
        if body["model"] != self.model:
            code, words = 404, f'model "{body["model"]}" not found, try pulling it first'
        elif body.get("tools"):
            code, words = 400, f"registry.ollama.ai/library/{self.model} does not support tools"
        if code:
            error = HttpError(code, words)
            error.body = {"error": {"message": words, "type": "api_error", "param": None, "code": None}}
            raise error

    def generate(self, body: dict[str, Any]) -> Generated:
        return super().generate({**body, "logprobs": False, "return_token_ids": False, "ignore_eos": False})

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        made = super().completion(body)
        del made["choices"][0]["prompt_logprobs"]
        return made

    def events(self, made: Generated) -> list[dict[str, Any]]:
        """No chunk for the role, which is in each delta; the last delta has empty content."""
        role, *tokens, usage = super().events(made)
        finish, tokens[-1]["choices"][0]["finish_reason"] = tokens[-1]["choices"][0]["finish_reason"], None
        for event in tokens:
            event["choices"][0]["delta"]["role"] = "assistant"
            del event["choices"][0]["logprobs"]
        end = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": finish}
        return [*tokens, {**role, "choices": [end]}, usage]


class SGLang(Reference):
    """Reports its context, accepts any model name; errors have no `error` field, chunks have `usage: null`.

    A stream that cannot begin ends with an error event and HTTP 200.
    """

    def __post_init__(self) -> None:
        self.version = None

    def error(self, message: str) -> dict[str, Any]:
        return {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}

    def models(self) -> dict[str, Any]:
        listing = super().models()
        listing["data"][0]["owned_by"] = "sglang"
        return listing

    def validate(self, body: dict[str, Any]) -> None:
        prompt = len(brain.prompt_tokens(body["messages"]))
        words = ""
        if prompt > self.max_model_len:
            words = f"The input ({prompt} tokens) is longer than the model's context length ({self.max_model_len})."
        elif prompt + body.get("max_tokens", 1) > self.max_model_len:
            words = f"Requested token count exceeds the model's maximum context length of {self.max_model_len} tokens."
        if words:
            error = HttpError(400, words)
            error.body = self.error(words)
            raise error

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        made = super().completion(body)
        del made["choices"][0]["prompt_logprobs"]
        return made

    def events(self, made: Generated) -> list[dict[str, Any]]:
        made.ids = False
        *chunks, usage = super().events(made)
        return [*({**chunk, "usage": None} for chunk in chunks), usage]


class SGLangRefusesInStream(SGLang):
    """As SGLang refuses a stream: an error event with HTTP 200."""

    async def stream(self, made: Generated) -> AsyncIterator[bytes]:
        yield b"data: " + json.dumps({"error": self.error("Requested token count exceeds the limit.")}).encode()
        yield b"\n\ndata: [DONE]\n\n"
