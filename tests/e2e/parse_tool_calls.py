"""Load a tool-parser plugin with this Python's own vLLM, as its server does, and parse outputs with it.

Arguments: the plugin's path. Standard input: JSON with the names of the functions and the outputs. Output, on the last
line: for each output [whole, letter by letter, letter by letter with tool_choice none], each as [content, calls]. Runs
in a CPU engine's Python, without this tree.
"""

import importlib
import json
import sys
from types import SimpleNamespace
from typing import Any


class Tokenizer:
    """All that the parser asks of one."""

    def get_vocab(self) -> dict[str, int]:
        return {"<|endoftext|>": 0, "<|user|>": 1, "<|observation|>": 2}


def manager() -> Any:
    for name in ("vllm.tool_parsers", "vllm.entrypoints.openai.tool_parsers"):  # moved in 0.13
        try:
            return importlib.import_module(name).ToolParserManager
        except ImportError:
            continue
    raise ImportError("no ToolParserManager")


def whole(parser: Any, output: str, request: Any) -> list[Any]:
    found = parser.extract_tool_calls(output, request)
    assert found.tools_called == bool(found.tool_calls)
    calls = [[call.function.name, call.function.arguments] for call in found.tool_calls]
    return [found.content or "", calls]


def streamed(parser: Any, output: str, request: Any) -> list[Any]:
    """As a client puts it together: calls whose arguments are not JSON are left out, like their text."""
    content, rows = "", dict[int, list[str]]()
    for place in range(len(output) + 1):
        ids = [2] if place == len(output) else [9]
        delta = parser.extract_tool_calls_streaming(
            output[:place], output[: place + 1], output[place : place + 1], [], [], ids, request
        )
        sent = json.loads(delta.model_dump_json(exclude_unset=True)) if delta else {}
        content += sent.get("content") or ""
        for call in sent.get("tool_calls") or ():
            row = rows.setdefault(call["index"], ["", ""])
            row[0] += call["function"].get("name") or ""
            row[1] += call["function"].get("arguments") or ""
    return [content, [row for _, row in sorted(rows.items()) if is_json(row[1])]]


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=lambda constant: constant.lower()[None])
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def main(plugin: str) -> None:
    given = json.load(sys.stdin)
    parsers = manager()
    parsers.import_tool_parser(plugin)
    parser_class = parsers.get_tool_parser("glm4")
    tools = [SimpleNamespace(function=SimpleNamespace(name=name)) for name in given["names"]]
    request, refused = (
        SimpleNamespace(tools=tools, tool_choice=choice, max_tokens=None, max_completion_tokens=None)
        for choice in ("auto", "none")
    )
    made = [
        [
            whole(parser_class(Tokenizer()), output, request),
            streamed(parser_class(Tokenizer()), output, request),
            streamed(parser_class(Tokenizer()), output, refused),
        ]
        for output in given["outputs"]
    ]
    print("\n" + json.dumps(made))


if __name__ == "__main__":
    main(sys.argv[1])
