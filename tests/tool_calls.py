"""Outputs of GLM-4 with tools, and what each means: `corpus()` makes every kind with every sort of content.

The kinds are those of the model's format (docs/how-to/tools.md) and what models do to it: cut, malformed, with
prose around, with template tokens in the text.
"""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PLUGIN = Path(__file__).parents[1] / "templates/tools/glm4_tool_parser.py"
NAMES = ("get_weather", "get_time", "search.web", "g", "get_weather_forecast", "查询天气")


def plugin() -> ModuleType:
    """The plugin as a module; without vLLM, only its parser."""
    spec = importlib.util.spec_from_file_location(PLUGIN.stem, PLUGIN)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the model wrote.

    Attributes:
        calls: (name, arguments' JSON text) of the calls in it.
        content: the rest. A call that is cut or malformed belongs to it, as `name`, a line break and its arguments.
    """

    kind: str
    text: str
    calls: tuple[tuple[str, str], ...] = ()
    content: str = ""


# Arguments as the model writes them: compact, spread over lines, empty, nested, in several scripts, with every escape.
OBJECTS: tuple[Any, ...] = (
    {},
    {"city": "Paris"},
    {"city": "北京", "unit": "摄氏度"},
    {"query": 'say "hi" \\ and /'},
    {"code": "for i in {1..3}; do\n\techo \"}\" '{'\ndone"},
    {"a": {"b": {"c": [1, 2.5, -3e-7, True, False, None, {"d": []}]}}},
    {"emoji": "👩‍🚀🇫🇷", "combining": "é", "zero": "\u0000"},
    {"list": [[], [{}], [[["]"]]]], "key }{": "][" * 5},
    {"token": "<|assistant|>get_time\n{}", "end": "<|observation|>"},
    {"n": 10**30, "x": 0.1, "": ""},
    {"text": "Wörter, кириллица, عربى, हिन्दी, ภาษาไทย"},
    {"long": "a" * 700},
)
PROSE = (
    "\nLet me look that up.",
    "\n我来查一下。",
    '\n1. first\n2. second\n\n```json\n{"a": 1}\n```\nDone <b>now</b> [1] <| not a token',
    "\nget_weather is the tool I would use",
    "\nget_weather\nis a name, and { a brace",
    "\ng",
    '\nUse get_weather {"city": 1} inline',
    "\n  indented\n\n\n    more\n",
)
# Not JSON, although the braces balance.
MALFORMED = (
    '{"city": Paris}',
    "{\"city\": 'Paris'}",
    '{"city": "Paris",}',
    '{"a": 1 "b": 2}',
    '{"a": NaN}',
    '{"a": [1, 2}]}',
    '{"a": 01}',
    '{"a": "\\x"}',
    '{"a": tru}',
    '{"a"}',
)


def corpus() -> tuple[Output, ...]:
    return tuple(_outputs())


def _outputs() -> Iterator[Output]:
    texts = [form for value in OBJECTS for form in _forms(value)]
    for text in texts:
        for name in ("get_weather", "查询天气"):
            yield Output(kind="one call", text=f"{name}\n{text}", calls=((name, text),))
    for text in texts[::2]:
        yield Output(kind="space around", text=f" get_time \r\n  {text}\n \n", calls=(("get_time", text),))
        two = (("get_weather", text), ("get_time", "{}"))
        yield Output(kind="several calls", text=f"get_weather\n{text}<|assistant|>get_time\n{{}}", calls=two)
        yield Output(kind="several calls on lines", text=f"get_weather\n{text}\nget_time\n{{}}", calls=two)
        unknown = (("other.tool-2", text),)
        yield Output(kind="unknown name", text=f"other.tool-2\n{text}", calls=unknown)
        if "<|" not in text:
            as_text = f"\nother\n{text}"
            yield Output(kind="unknown name in a line of text", text=as_text, content=as_text)
    for prose in PROSE:
        yield Output(kind="prose", text=prose, content=prose)
        yield Output(kind="prose, no line break", text=prose.strip(), content=prose.strip())
        for text in texts[:6]:
            call = (("get_weather_forecast", text),)
            yield Output(
                kind="prose, call", text=f"{prose}<|assistant|>get_weather_forecast\n{text}", calls=call, content=prose
            )
            yield Output(
                kind="prose, call on a line",
                text=f"{prose.rstrip()}\n\nget_weather_forecast\n{text}",
                calls=call,
                content=prose.rstrip(),
            )
            after = f"get_weather_forecast\n{text}{prose.rstrip()}"
            yield Output(kind="call, prose", text=after, calls=call, content=prose.rstrip())
            after = f"get_weather_forecast\n{text}<|observation|>{prose}"
            yield Output(kind="call, another role's turn", text=after, calls=call, content=prose)
    for text in MALFORMED:
        as_is = f"get_weather\n{text}"
        yield Output(kind="malformed", text=as_is, content=as_is)
        yield Output(
            kind="malformed, call",
            text=f"get_time\n{{}}<|assistant|>get_weather\n{text}",
            calls=(("get_time", "{}"),),
            content=as_is,
        )
    whole = 'get_weather\n{"city": "Paris", "days": [1, {"a": "\\"}"}]}'
    for end in range(len(whole)):
        yield Output(kind="cut", text=whole[:end], content=whole[:end])
    for end in range(len('get_weather\n{"'), len(whole), 5):
        cut = whole[:end]
        yield Output(kind="call, cut", text=f"g\n{{}}<|assistant|>{cut}", calls=(("g", "{}"),), content=cut)
    yield from _by_hand()


def _forms(value: Any) -> Iterator[str]:
    yield json.dumps(value, ensure_ascii=False)
    if value:
        yield json.dumps(value, separators=(",", ":"))
        yield json.dumps(value, ensure_ascii=False, indent=4)


def _by_hand() -> Iterator[Output]:
    call = (("get_weather", "{}"),)
    for token in ("[gMASK]<sop>", "<|assistant|>", "<sop>", "<|assistant|><|assistant|>"):
        yield Output(kind="token before", text=f"{token}get_weather\n{{}}", calls=call)
    for token in ("<|observation|>", "<|user|>", "<|endoftext|>", "<eop>", "<|assistant|>", "[MASK]"):
        yield Output(kind="token after", text=f"get_weather\n{{}}{token}", calls=call)
        yield Output(kind="token in text", text=f"\nHello{token} there", content="\nHello there")
    yield Output(
        kind="the model goes on as others",
        text="get_weather\n{}<|observation|>\n22 C<|assistant|>get_time\n{}",
        calls=call,
        content="\n22 Cget_time\n{}",
    )
    yield Output(kind="text segments", text="\nA<|assistant|>\nB", content="\nA\nB")
    yield Output(kind="line break in a string", text='g\n{"a": "x\ny\tz"}', calls=(("g", '{"a": "x\\ny\\tz"}'),))
    yield Output(kind="no JSON", text="get_weather\nParis", content="get_weather\nParis")
    yield Output(kind="a list", text='get_weather\n["Paris"]', content='get_weather\n["Paris"]')
    yield Output(kind="a set", text="get_weather\n{1}", content="get_weather\n{1}")
    yield Output(kind="code", text="python\nprint({'a': 1})", content="python\nprint({'a': 1})")
    yield Output(kind="a dict of Python", text="g\n{'a': 1}", content="g\n{'a': 1}")
    yield Output(kind="on one line", text='get_weather {"city": "Paris"}', content='get_weather {"city": "Paris"}')
    yield Output(kind="two words", text="get weather\n{}", content="get weather\n{}")
    yield Output(kind="empty", text="")
    yield Output(kind="blank", text="\n", content="\n")
    yield Output(kind="line breaks", text="\n" * 600, content="\n" * 600)
    yield Output(kind="far apart", text="get_weather" + "\n" * 300 + "{}", content="get_weather" + "\n" * 300 + "{}")
    yield Output(kind="deep", text='g\n{"a": ' + "[" * 3000, content='g\n{"a": ' + "[" * 3000)
    deep = '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}"
    yield Output(kind="too deep", text=f"g\n{deep}", content=f"g\n{deep}")
    yield Output(kind="long name", text="x" * 400 + "\n{}", content="x" * 400 + "\n{}")
