# SPDX-License-Identifier: Apache-2.0
"""Tool calls of GLM-4-9B-chat (and -hf), as a tool-parser plugin for vLLM 0.11 and newer.

vllm serve … --enable-auto-tool-choice --tool-parser-plugin glm4_tool_parser.py --tool-call-parser glm4

The format is that of the model's own chat template (THUDM/glm-4-9b-chat, tokenizer_config.json): what follows
`<|assistant|>` up to the end of the line is the turn's metadata. It is empty for text, and the function's name for a
call, whose arguments are a JSON object:

    get_weather
    {"city": "Paris"}

Several segments (text then a call, several calls) are separated by `<|assistant|>`; the turn ends with
`<|observation|>`. vLLM's glm45 and glm47 parsers read the later XML form, which this model never produces.

`Glm4OutputParser` does the parsing and needs only the standard library; `Glm4ToolParser` connects it to vLLM.
"""

import importlib
import importlib.util
import json
import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

ASSISTANT = "<|assistant|>"
END_OF_TURN = ("<|observation|>", "<|user|>", "<|system|>", "<|endoftext|>")
# Never part of an answer. vLLM removes them itself unless a parser asks for them, as this one must to see ASSISTANT.
SPECIAL_TOKENS = (ASSISTANT, *END_OF_TURN, "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")

# A name that the request does not list counts only where the model's format puts a name: directly after <|assistant|>.
_ANY_NAME = re.compile(r"[A-Za-z_][\w.-]{0,63}")
_SPACE = re.compile(r"\s*")
_LINE_BREAK = re.compile(r"\n\s*")
_INTERESTING = re.compile(r"[\n<\[]")
_OUTSIDE_STRING = re.compile(r'["{}\[\]]')
_INSIDE_STRING = re.compile(r'["\\\x00-\x1f]')
# Characters that are held back at most because they may belong to a call.
_MAX_HELD = 256


class Kind(Enum):
    TEXT = auto()  # text of the answer
    NAME = auto()  # a call begins: its function's name
    ARGUMENTS = auto()  # the next piece of its arguments
    CALL = auto()  # the call is complete: all of its arguments, a JSON object
    BROKEN = auto()  # the call ends, but its arguments are not JSON: all of them
    CUT = auto()  # the output ends inside the call: its arguments so far


@dataclass(frozen=True)
class Event:
    kind: Kind
    text: str


class _State(Enum):
    TEXT = auto()
    ARGUMENTS = auto()
    ENDED = auto()  # another role's turn: only text from here on


class Glm4OutputParser:
    """Parses one answer, in pieces of any size; the events do not depend on where the pieces are split.

    Args:
        names: the functions that the request offers.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = frozenset(names)
        self._buffer = ""
        self._state = _State.TEXT
        self._segment_start = True  # directly after <|assistant|>
        self._line_start = True  # where a call may begin
        self._after_call = False  # no text since the last call
        self._arguments: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> list[Event]:
        """The events that this piece of output completes."""
        self._buffer += text
        return list(self._events(final=False))

    def finish(self) -> list[Event]:
        """The events of what was held back, at the end of the output."""
        events = list(self._events(final=True))
        if self._state is _State.ARGUMENTS:
            events.append(Event(Kind.CUT, "".join(self._arguments)))
            self._state = _State.ENDED
        return events

    def _events(self, *, final: bool) -> Iterator[Event]:
        while self._buffer:
            before = len(self._buffer)
            if self._state is _State.ARGUMENTS:
                yield from self._read_arguments()
            else:
                yield from self._read_text(final=final)
            if len(self._buffer) == before:
                return  # more output is needed to decide

    # Text.

    def _read_text(self, *, final: bool) -> Iterator[Event]:
        """Reads one piece of text, one special token or the head of a call; nothing if it cannot be decided yet."""
        if self._after_call and self._buffer.isspace() and len(self._buffer) <= _MAX_HELD:
            if final:
                self._buffer = ""
            return
        if self._line_start:
            head = self._head(0, any_name=self._segment_start)
            if head is None and not final:
                return
            if head:
                yield self._begin(*head)
                return
        match = _INTERESTING.search(self._buffer)
        if match is None:
            yield self._take(len(self._buffer))
        elif match.start() > 0:
            yield self._take(match.start())
        elif match.group() == "\n":
            yield from self._read_line_break(final=final)
        else:
            yield from self._read_token(final=final)

    def _take(self, length: int) -> Event:
        """The next `length` characters are text."""
        text, self._buffer = self._buffer[:length], self._buffer[length:]
        self._segment_start = self._line_start = self._after_call = False
        return Event(Kind.TEXT, text)

    def _read_line_break(self, *, final: bool) -> Iterator[Event]:
        """White space from a line break on is dropped before a call and after the last one, and text otherwise."""
        end = _LINE_BREAK.match(self._buffer).end()  # type: ignore[union-attr]
        if self._state is _State.ENDED:
            yield self._take(end)
        elif end > _MAX_HELD:
            yield self._take(_MAX_HELD)
            self._line_start = True
        elif end < len(self._buffer):
            head = self._head(end, any_name=False)
            if head:
                yield self._begin(*head)
            elif head == () or final:
                yield self._take(end)
        elif final:
            yield self._take(end)

    def _read_token(self, *, final: bool) -> Iterator[Event]:
        """Drops a special token, and keeps what only looks like one."""
        for token in SPECIAL_TOKENS:
            if self._buffer.startswith(token):
                self._buffer = self._buffer[len(token) :]
                if token == ASSISTANT and self._state is _State.TEXT:
                    self._segment_start = self._line_start = True
                elif token in END_OF_TURN:
                    self._state, self._line_start, self._after_call = _State.ENDED, False, False
                return
        if final or not any(token.startswith(self._buffer) for token in SPECIAL_TOKENS):
            yield self._take(1)

    # Calls.

    def _head(self, at: int, *, any_name: bool) -> tuple[str, int] | tuple[()] | None:
        """The call whose name is on the line that begins at `at`: its name, and where its arguments begin.

        () if the line begins no call, None if that depends on what follows.
        """
        buffer = self._buffer
        end = buffer.find("\n", at, at + _MAX_HELD)
        name = buffer[at : at + _MAX_HELD if end < 0 else end].strip(" \t\r")
        allowed = any_name and _ANY_NAME.fullmatch(name)
        if end < 0:
            possible = allowed or any(known.startswith(name) for known in self._names)
            return None if possible and len(buffer) - at < _MAX_HELD else ()
        if not allowed and name not in self._names:
            return ()
        start, first = self._after_space(end)
        if first != "{":
            return None if first is None else ()
        _, second = self._after_space(start)
        if second is None:
            return None
        return (name, start) if second in ('"', "}") else ()

    def _after_space(self, at: int) -> tuple[int, str | None]:
        """The first character after `at` that is no white space: where, and which. None if there is none yet."""
        end = _SPACE.match(self._buffer, at + 1, at + 1 + _MAX_HELD).end()  # type: ignore[union-attr]
        return end, self._buffer[end] if end < len(self._buffer) else None

    def _begin(self, name: str, start: int) -> Event:
        """The call begins; its arguments begin at `start`."""
        self._buffer = self._buffer[start:]
        self._state, self._arguments = _State.ARGUMENTS, []
        self._depth, self._in_string, self._escaped = 0, False, False
        return Event(Kind.NAME, name)

    def _read_arguments(self) -> Iterator[Event]:
        """Reads up to the brace that closes the arguments. A raw control character in a string is escaped, for JSON."""
        buffer, at, done, pieces = self._buffer, 0, 0, []
        complete = False
        while at < len(buffer) and not complete:
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            match = (_INSIDE_STRING if self._in_string else _OUTSIDE_STRING).search(buffer, at)
            if match is None:
                at = len(buffer)
                break
            at, mark = match.end(), match.group()
            if mark == '"':
                self._in_string = not self._in_string
            elif mark == "\\":
                self._escaped = True
            elif self._in_string:
                pieces += [buffer[done : match.start()], json.dumps(mark)[1:-1]]
                done = at
            else:
                self._depth += 1 if mark in "{[" else -1
                complete = self._depth == 0
        piece = "".join([*pieces, buffer[done:at]])
        self._buffer = buffer[at:]
        self._arguments.append(piece)
        yield Event(Kind.ARGUMENTS, piece)
        if complete:
            arguments = "".join(self._arguments)
            yield Event(Kind.CALL if _is_json(arguments) else Kind.BROKEN, arguments)
            self._state, self._line_start, self._after_call = _State.TEXT, True, True
            self._segment_start = False


def _is_json(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


# The rest connects the parser to vLLM; without vLLM (in tests of the above) it does not exist.


def _import(name: str, *modules: str) -> Any:
    """A class of vLLM, from the first of the modules that has it: they moved between releases."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"this vLLM has no {name} in any of {', '.join(modules)}")


if importlib.util.find_spec("vllm") is not None:
    _PROTOCOL = (
        "vllm.entrypoints.generate.base.protocol",  # vLLM 0.31
        "vllm.entrypoints.openai.engine.protocol",  # vLLM 0.15
        "vllm.entrypoints.openai.protocol",
    )
    _PARSERS = ("vllm.tool_parsers.abstract_tool_parser", "vllm.entrypoints.openai.tool_parsers.abstract_tool_parser")
    DeltaFunctionCall = _import("DeltaFunctionCall", *_PROTOCOL)
    DeltaMessage = _import("DeltaMessage", *_PROTOCOL)
    DeltaToolCall = _import("DeltaToolCall", *_PROTOCOL)
    ExtractedToolCallInformation = _import("ExtractedToolCallInformation", *_PROTOCOL)
    FunctionCall = _import("FunctionCall", *_PROTOCOL)
    ToolCall = _import("ToolCall", *_PROTOCOL)
    ToolParser = _import("ToolParser", *_PARSERS)
    ToolParserManager = _import("ToolParserManager", *_PARSERS)

    class Glm4ToolParser(ToolParser):  # type: ignore[misc, valid-type]
        """Tool calls of GLM-4-9B-chat. One instance parses one answer."""

        def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(tokenizer, *args, **kwargs)
            self._parser: Glm4OutputParser | None = None
            self._stop_ids = frozenset(self.vocab[token] for token in END_OF_TURN if token in self.vocab)

        def adjust_request(self, request: Any) -> Any:
            request = super().adjust_request(request)
            if request.tools and request.tool_choice in ("auto", None):
                # <|assistant|> separates the segments, and must not be removed from the text.
                request.skip_special_tokens = False
            return request

        def extract_tool_calls(self, model_output: str, request: Any) -> Any:
            """A call that is cut, or whose arguments are not JSON, is content: no client should execute it."""
            parser = Glm4OutputParser(_names(request))
            calls, content, name = [], [], ""
            for event in [*parser.feed(model_output), *parser.finish()]:
                if event.kind is Kind.TEXT:
                    content.append(event.text)
                elif event.kind is Kind.NAME:
                    name = event.text
                elif event.kind is Kind.CALL:
                    function = FunctionCall(name=name, arguments=event.text)
                    calls.append(ToolCall(type="function", function=function))
                elif event.kind in (Kind.BROKEN, Kind.CUT):
                    content.append(f"{name}\n{event.text}")
            text = "".join(content)
            return ExtractedToolCallInformation(
                tools_called=bool(calls), tool_calls=calls, content=text if text.strip() or not calls else None
            )

        def extract_tool_calls_streaming(
            self,
            previous_text: str,
            current_text: str,
            delta_text: str,
            previous_token_ids: Sequence[int],
            current_token_ids: Sequence[int],
            delta_token_ids: Sequence[int],
            request: Any,
        ) -> Any:
            """The call's name comes first, then its arguments as they are generated.

            What was sent cannot be taken back: a call that is cut, or whose arguments are not JSON, is recognized by
            its arguments, which no JSON parser accepts.
            """
            if request.tool_choice == "none":  # 0.22 calls the parser all the same
                return DeltaMessage(content=delta_text) if delta_text else None
            if self._parser is None:
                self._parser = Glm4OutputParser(_names(request))
            events = self._parser.feed(delta_text)
            if self._is_last(current_token_ids, delta_token_ids, request):
                events += self._parser.finish()
            content, calls = "", list[Any]()
            for event in events:
                if event.kind is Kind.TEXT:
                    content += event.text
                elif event.kind is Kind.NAME:
                    self.current_tool_id += 1
                    self.current_tool_name_sent = True
                    calls.append(self._delta(name=event.text))
                elif event.kind is Kind.ARGUMENTS:
                    calls.append(self._delta(arguments=event.text))
                elif event.kind is Kind.CALL:
                    # vLLM compares both at the end, to send what is missing.
                    self.prev_tool_call_arr.append({"arguments": event.text})
                    self.streamed_args_for_tool.append(event.text)
            if calls and calls[0].function.arguments is not None and not _RESENDS_LAST:
                # Before 0.24 vLLM takes a last delta that begins with arguments for incomplete, and adds to it what
                # it finds in prev_tool_call_arr, quoted once more, or fails if that is empty.
                calls.insert(0, self._delta())
            fields: dict[str, Any] = {"content": content} if content else {}
            if calls:
                fields["tool_calls"] = calls
            return DeltaMessage(**fields) if fields else None

        def _delta(self, **function: str) -> Any:
            named = {"id": f"chatcmpl-tool-{uuid.uuid4().hex}", "type": "function"} if "name" in function else {}
            return DeltaToolCall(index=self.current_tool_id, function=DeltaFunctionCall(**function), **named)

        def _is_last(self, current_ids: Sequence[int], delta_ids: Sequence[int], request: Any) -> bool:
            """vLLM does not say which delta is the last: it has a stop token, or reaches the limit."""
            if not self._stop_ids.isdisjoint(delta_ids):
                return True
            limits = [getattr(request, name, None) for name in ("max_completion_tokens", "max_tokens")]
            limit = next((limit for limit in limits if limit is not None), None)
            return limit is not None and len(current_ids) >= limit

    _RESENDS_LAST = hasattr(ToolParser, "get_remaining_unstreamed_args")

    def _names(request: Any) -> list[str]:
        """Names of the functions that a request to /v1/chat/completions or /v1/responses offers."""
        functions = (getattr(tool, "function", tool) for tool in request.tools or ())
        return [function.name for function in functions if getattr(function, "name", None)]

    ToolParserManager.register_module("glm4", module=Glm4ToolParser)
