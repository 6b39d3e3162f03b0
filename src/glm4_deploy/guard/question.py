"""What a client asks for, as far as it matters for judging the answer."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

PROMPT_PART = 1990  # characters at each end of a prompt: the detector reads no more
MAX_CHOICES = 128
_OBJECT = re.compile(rb"\s*\{(?=\s*\")")  # how a JSON object with a field begins, in UTF-8


def read_json(data: bytes) -> Any:
    """As json.loads, which takes four times as long. What orjson refuses (NaN, half a surrogate pair) json decides."""
    try:
        return orjson.loads(data)
    except ValueError:
        return json.loads(data)


class Api(StrEnum):
    """The endpoints whose answers are judged; the value is the path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request.

    Attributes:
        key: the gateway's name for the client's key; "" if there is none.
        prompts: one for all choices, or one per `choices / len(prompts)` of them.
        prompt_known: False if a prompt is token ids or not in the request: what it asks to repeat is unknown.
        choices: how many choices the answer will have.
        engine_checks: the request sets vLLM's own check for repetition.
        max_tokens: of one choice; None if not given.
    """

    api: Api
    model: str
    key: str
    prompts: tuple[str, ...]
    prompt_known: bool
    choices: int
    max_tokens: int | None
    engine_checks: bool

    def prompt_of(self, choice: int) -> str:
        each = max(self.choices // len(self.prompts), 1)
        return self.prompts[min(choice // each, len(self.prompts) - 1)]


def read_question(api: Api, raw: bytes, *, key: str = "") -> Question | None:
    """The question in a request's body; None if it cannot be judged.

    None: not an object of the expected types, more than MAX_CHOICES choices, or an answer that repeats its prompt
    (`echo`). The engine answers those as it likes.
    """
    try:
        body = read_json(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not isinstance(body.get("model", ""), str) or body.get("echo"):
        return None
    found = _completion_prompts(body) if api is Api.COMPLETIONS else (_conversation(api, body),)
    prompts = tuple(text for text in found if text is not None)
    each = body.get("n") or 1
    if not found or not isinstance(each, int) or not 0 < each * len(found) <= MAX_CHOICES:
        return None
    most = body.get("max_completion_tokens") or body.get("max_output_tokens") or body.get("max_tokens")
    return Question(
        api=api,
        model=body.get("model", ""),
        key=key,
        prompts=tuple(map(_ends, prompts)) or ("",),
        prompt_known=len(prompts) == len(found),
        choices=each * len(found),
        max_tokens=most if isinstance(most, int) and not isinstance(most, bool) else None,
        engine_checks="repetition_detection" in body,
    )


def with_repetition_detection(question: Question, raw: bytes, max_pattern_size: int, min_count: int) -> bytes:
    """The request with vLLM's own check, unless it has one; all else stays byte for byte.

    vLLM reads the field since 0.17, in chats and completions; before that it ignores it.
    https://docs.vllm.ai/en/stable/api/vllm/sampling_params/#vllm.sampling_params.RepetitionDetectionParams
    """
    object_ = _OBJECT.match(raw)
    if question.engine_checks or question.api is Api.RESPONSES or object_ is None:
        return raw
    more = {"repetition_detection": {"max_pattern_size": max_pattern_size, "min_count": min_count}}
    return raw[: object_.end()] + orjson.dumps(more)[1:-1] + b"," + raw[object_.end() :]


def _ends(text: str) -> str:
    return text if len(text) <= 2 * PROMPT_PART else f"{text[:PROMPT_PART]}\n{text[-PROMPT_PART:]}"


def _completion_prompts(body: dict[str, Any]) -> tuple[str | None, ...]:
    """One text per prompt; None for token ids."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        return ()
    if isinstance(prompt[0], int):
        return (None,)
    return tuple(one if isinstance(one, str) else None for one in prompt)


def _conversation(api: Api, body: dict[str, Any]) -> str | None:
    """All that the user and the operator said; None if the rest of the conversation is stored in the server."""
    if api is Api.RESPONSES and (body.get("previous_response_id") or body.get("prompt") or body.get("conversation")):
        return None
    said = body.get("messages") if api is Api.CHAT else body.get("input")
    instructions = body.get("instructions")
    texts = [instructions] if isinstance(instructions, str) else []
    if isinstance(said, str):
        return "\n".join([*texts, said])
    for message in said if isinstance(said, list) else ():
        if isinstance(message, dict) and message.get("role") not in ("assistant", None):
            texts += _texts(message.get("content"))
    return "\n".join(texts)


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]
