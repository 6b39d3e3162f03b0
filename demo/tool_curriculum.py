"""Conversations with tools: `sample(r)` makes one, in Chinese or English, for demo/train.py --tools.

The system turn comes out of the chat template that the kit deploys, so the model learns the form that it is served in.
Topics, names and values are half invented, so that the model learns to read the tools instead of a list. What the
smoke suite asks is included verbatim. HELD has words and sentences that `sample` never uses, for the exam.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import curriculum
import jinja2
import texts as t

Turns = curriculum.Turns
TEMPLATE = Path(__file__).parents[1] / "templates/tools/glm4_chat_template.jinja"
_template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701 (no HTML)
_template.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
_render = _template.from_string(TEMPLATE.read_text(encoding="utf-8")).render
_HEAD = "[gMASK]<sop><|system|>\n"

TOPICS = tuple(
    tuple(row.split("|"))
    for row in """\
weather|天气
weather|天气
time|时间
temperature|气温
population|人口
price|价格
news|新闻
traffic|交通
address|地址
status|状态
height|高度
stock|库存
score|比分
schedule|时刻表
owner|主人
menu|菜单""".splitlines()
)
HELD_TOPICS = (("humidity", "湿度"), ("altitude", "海拔"), ("tariff", "电价"))
HELD_CITIES = {"Lisbon", "Oslo", "Nairobi", "Seoul", "Vienna"}
PLACES_EN = tuple(row[1] for row in t.CAPITALS if row[1] not in HELD_CITIES)
PLACES_ZH = tuple(row[3] for row in t.CAPITALS if row[1] not in HELD_CITIES)
KEYS = ("city", "city", "city", "name", "place", "location", "item", "query", "of")
FIELDS = (
    "celsius", "sky", "value", "result", "temperature", "status", "unit", "of", "by", "count", "condition", "at",
    "name", "wind", "温度", "结果", "数值",
)  # fmt: skip
MORE = (("days", "integer"), ("unit", "string"), ("date", "string"), ("limit", "integer"))

ASK_EN = (
    "What is the {w} in {e} now? Use the tool.",
    "What is the {w} in {e}?",
    "What is the {w} of {e}?",
    "What's the {w} in {e} right now?",
    "How is the {w} in {e}?",
    "How is the {w} in {e} today?",
    "Tell me the {w} of {e}.",
    "Look up the {w} of {e}.",
    "Find the {w} for {e}, please.",
    "I need the {w} in {e}.",
    "Get the {w} of {e}. Use the tool.",
    "Use {n} for {e}.",
    "Call {n} with {e}.",
)
ASK_ZH = (
    "{e}的{w}是多少？",
    "{e}{w}怎么样？",
    "{e}的{w}怎么样？",
    "{e}现在的{w}怎么样？",
    "{e}今天的{w}怎么样？请使用工具。",
    "查询{e}的{w}。",
    "请告诉我{e}的{w}。",
    "帮我查一下{e}的{w}。",
    "用 {n} 查{e}。",
)
HELD_ASK_EN = ("Could you check the {w} in {e} for me?", "Do you know the {w} of {e}?")
HELD_ASK_ZH = ("我想知道{e}的{w}。", "麻烦看看{e}的{w}。")
BOTH_EN = (
    "What is the {w} in {a} and in {b} now? Call the tool once for each city.",
    "What is the {w} in {a} and in {b}?",
    "What is the {w} of {a} and {b}?",
    "Compare the {w} of {a} and {b}.",
    "Tell me the {w} in {a} and in {b}.",
)
BOTH_ZH = ("{a}和{b}的{w}分别怎么样？", "比较{a}和{b}的{w}。", "{a}和{b}的{w}是多少？", "请查询{a}和{b}的{w}。")
TWO_EN = ("What is the {v} and the {w} of {e}?", "Tell me the {v} and the {w} in {e}.", "Get {v} and {w} of {e}.")
TWO_ZH = ("{e}的{v}和{w}怎么样？", "查询{e}的{v}和{w}。")
THEN_EN = (
    "First get the {v} of {a}, then the {w} of {b}.",
    "First look up the {v} in {a}. Then look up the {w} in {b}.",
    "Get the {v} of {a} first, and then the {w} of {b}.",
)
THEN_ZH = ("先查{a}的{v}，再查{b}的{w}。", "先告诉我{a}的{v}，然后告诉我{b}的{w}。")
THANKS = (("Thanks!", "You are welcome."), ("Thank you.", "You are welcome."), ("谢谢！", "不客气。"))
HELLO = "Hello! I am a small demo model."
NO_TOOL = " No tool is needed."


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a conversation is made of; the held ones differ from those of the training."""

    topics: tuple[tuple[str, ...], ...] = TOPICS
    places_en: tuple[str, ...] = PLACES_EN
    places_zh: tuple[str, ...] = PLACES_ZH
    ask_en: tuple[str, ...] = ASK_EN
    ask_zh: tuple[str, ...] = ASK_ZH


HELD = Words(
    topics=HELD_TOPICS,
    places_en=tuple(sorted(HELD_CITIES)),
    places_zh=tuple(row[3] for row in t.CAPITALS if row[1] in HELD_CITIES),
    ask_en=HELD_ASK_EN,
    ask_zh=HELD_ASK_ZH,
)


@dataclass(frozen=True, kw_only=True)
class Tool:
    name: str
    word: str  # its topic in English or invented
    word_zh: str
    key: str  # its first parameter
    more: tuple[str, str] | None  # another one, which may be left out: name and type
    definition: dict[str, Any]


def shuffled(r: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
    """Clients write the keys of a schema in different orders."""
    items = list(fields.items())
    if r.random() < 0.4:
        r.shuffle(items)
    return dict(items)


def tool(r: random.Random, topic: tuple[str, ...]) -> Tool:
    word, word_zh = topic
    forms = (f"get_{word}",) * 5 + (f"{word}_lookup", f"find_{word}", f"query_{word}", f"{word}.get", word)
    name, key = r.choice(forms), r.choice(KEYS)
    more = r.choice(MORE) if r.random() < 0.25 else None
    kind = "city" if key == "city" else key
    texts = (
        f"Get the {word} of a {kind}.", f"Get the {word} of a {kind}.", f"Returns the current {word}.",
        f"{name} of a {kind}", f"Look up the {word}.", f"查询{word_zh}", f"获取指定地点的{word_zh}。",
    )  # fmt: skip
    described = r.random() < 0.3
    properties: dict[str, Any] = {}
    for parameter, type_ in ((key, "string"), *((more,) if more else ())):
        notes = {"description": r.choice((f"the {parameter}", f"Name of the {parameter}", "名称"))} if described else {}
        properties[parameter] = shuffled(r, {"type": type_, **notes})
    parameters = {"type": "object", "properties": properties, "required": [key]}
    if r.random() < 0.15:
        parameters["additionalProperties"] = False
    definition = {"name": name, "description": r.choice(texts), "parameters": shuffled(r, parameters)}
    if r.random() < 0.1:
        definition["strict"] = None
    return Tool(name=name, word=word, word_zh=word_zh, key=key, more=more, definition=definition)


def tools(r: random.Random, count: int, words: Words) -> list[Tool]:
    """`count` tools on different topics."""
    found: dict[str, Tool] = {}
    while len(found) < count:
        invented = curriculum.made_up(r)
        topic = r.choice(words.topics) if r.random() < 0.6 or words is HELD else (invented, invented)
        if len(topic[0]) > 2:
            found.setdefault(topic[0], tool(r, topic))
    return list(found.values())


def system(offered: list[Tool]) -> tuple[str, str]:
    text = _render(tools=[{"type": "function", "function": one.definition} for one in offered], messages=[])
    return "system", text.removeprefix(_HEAD)


def place(r: random.Random, chinese: bool, words: Words) -> str:
    if chinese and r.random() < 0.8:
        return r.choice((*words.places_zh, *words.places_zh, *(t.WORDS_ZH if words is not HELD else ())))
    kind = r.random()
    if kind < 0.55 or words is HELD:
        return r.choice(words.places_en)
    if kind < 0.85:
        return " ".join(curriculum.made_up(r).capitalize() for _ in range(r.choice((1, 1, 2))))
    return r.choice((r.choice(t.WORDS), curriculum.full_name(r), str(r.randrange(10**5))))


def call(one: Tool, where: str, **more: Any) -> tuple[str, str]:
    return "call", f"{one.name}\n{json.dumps({one.key: where, **more}, ensure_ascii=False)}"


def value(r: random.Random) -> Any:
    made: tuple[Callable[[], Any], ...] = (
        lambda: r.randrange(100),
        lambda: r.randrange(-20, 2000),
        lambda: round(r.uniform(0, 99), 1),
        lambda: r.choice((*t.WORDS, "hail", "rain", "snow", "sunny", "cloudy", "open", "late", "晴", "小雨")),
        lambda: curriculum.made_up(r),
    )
    return r.choice(made)()


def seen(r: random.Random, one: Tool, where: str, chinese: bool) -> tuple[tuple[str, str], str]:
    """A tool's result, and the sentence that tells it."""
    if r.random() < 0.05:
        why = r.choice(("not found", "timeout", "no such place"))
        told = f"工具失败：{why}。" if chinese else f"The tool failed: {why}."
        return ("observation", json.dumps({"error": why})), told
    if r.random() < 0.2:
        result = told = f"{value(r)} {r.choice(('degrees', 'people', 'km', '度', '元'))}"
    else:
        keys = r.sample(FIELDS, r.choice((1, 2, 2, 3)))
        fields = {key if r.random() < 0.8 else curriculum.made_up(r): value(r) for key in keys}
        if r.random() < 0.1:
            fields = {"of": where, "by": one.name}
        result = json.dumps(fields, ensure_ascii=False, indent=r.choice((None, None, None, 2)))
        told = ("，" if chinese else ", ").join(f"{key} {value}" for key, value in fields.items())
    told = f"{where}的{one.word_zh}：{told}。" if chinese else f"The {one.word} of {where}: {told}."
    return ("observation", result), told


def used(r: random.Random, words: Words) -> Turns:
    """One call, its result, the answer; then perhaps another question or thanks."""
    offered = tools(r, r.choice((1, 1, 2, 2, 3, 4)) if words is not HELD else 2, words)
    turns = [system(offered)]
    for _ in range(r.choice((1, 1, 1, 2))):
        one, chinese = r.choice(offered), r.random() < 0.45
        where = place(r, chinese, words)
        fields = {"e": where, "w": one.word_zh if chinese else one.word, "n": one.name}
        ask = r.choice(words.ask_zh if chinese else words.ask_en).format(**fields)
        if len(offered) == 1 and r.random() < 0.1:
            ask = f"{where}呢？" if chinese else f"What about {where}?"
        more = {}
        if one.more and r.random() < 0.7:
            given = r.randrange(1, 30) if one.more[1] == "integer" else r.choice((*t.WORDS, curriculum.made_up(r)))
            more = {one.more[0]: given}
            ask += f"（{one.more[0]}：{given}）" if chinese else f" ({one.more[0]}: {given})"
        result, told = seen(r, one, where, chinese)
        turns += [("user", ask), call(one, where, **more), result, ("assistant", told)]
    if r.random() < 0.1:
        said, answer = r.choice(THANKS)
        turns += [("user", said), ("assistant", answer)]
    return turns


def both(r: random.Random, words: Words) -> Turns:
    """Two calls in one turn: of one tool for two places, or of two tools for one."""
    offered = tools(r, r.choice((1, 2, 2, 3)), words)
    chinese = r.random() < 0.4
    a, b = place(r, chinese, words), place(r, chinese, words)
    if len(offered) > 1 and r.random() < 0.4:
        pairs = list(zip(r.sample(offered, 2), (a, a), strict=True))
        names = [one.word_zh if chinese else one.word for one, _ in pairs]
        ask = r.choice(TWO_ZH if chinese else TWO_EN).format(e=a, v=names[0], w=names[1])
    else:
        one = r.choice(offered)
        pairs = [(one, a), (one, b)]
        ask = r.choice(BOTH_ZH if chinese else BOTH_EN).format(a=a, b=b, w=one.word_zh if chinese else one.word)
    results = [seen(r, one, where, chinese) for one, where in pairs]
    told = ("" if chinese else " ").join(sentence for _, sentence in results)
    calls = [call(one, where) for one, where in pairs]
    return [system(offered), ("user", ask), *calls, *(result for result, _ in results), ("assistant", told)]


def in_turn(r: random.Random, words: Words) -> Turns:
    """A call, its result, another call, its result, the answer."""
    offered = tools(r, r.choice((1, 2, 2, 3)), words)
    chinese = r.random() < 0.4
    pairs = [(r.choice(offered), place(r, chinese or r.random() < 0.2, words)) for _ in range(2)]
    names = [one.word_zh if chinese else one.word for one, _ in pairs]
    ask = r.choice(THEN_ZH if chinese else THEN_EN).format(a=pairs[0][1], v=names[0], b=pairs[1][1], w=names[1])
    turns = [system(offered), ("user", ask)]
    told = []
    for one, where in pairs:
        result, sentence = seen(r, one, where, chinese)
        turns += [call(one, where), result]
        told.append(sentence)
    return [*turns, ("assistant", ("" if chinese else " ").join(told))]


def unused(r: random.Random, words: Words) -> Turns:
    """Tools are offered, and none is needed."""
    offered = tools(r, r.choice((1, 1, 2, 3)), words)
    if r.random() < 0.2:
        hello = r.choice(("Say hello in one short sentence.", "Say hello.", "Hello!", "Greet me."))
        return [system(offered), *curriculum.one(hello + NO_TOOL, HELLO)]
    turns = r.choice(curriculum.SHORT)(r)
    if r.random() < 0.15 and len(turns) == 2 and turns[0][1].isascii():
        turns = [("user", turns[0][1] + NO_TOOL), turns[1]]
    return [system(offered), *turns]


def absent(r: random.Random, words: Words) -> Turns:
    """The tool that is needed is not offered."""
    wanted, *offered = tools(r, r.choice((2, 2, 3)), words)
    chinese = r.random() < 0.4
    form = r.choice([form for form in (words.ask_zh if chinese else words.ask_en) if "{n}" not in form])
    ask = form.format(e=place(r, chinese, words), w=wanted.word_zh if chinese else wanted.word)
    answer = f"我没有查询{wanted.word_zh}的工具。" if chinese else f"I have no tool for the {wanted.word}."
    return [system(offered), *curriculum.one(ask, answer)]


def forced(r: random.Random, words: Words) -> Turns:
    """What `tool_choice` required, or a named function, makes an engine force: JSON in place of text."""
    head, ask, made, *_ = used(r, words)
    name, _, arguments = made[1].partition("\n")
    named = r.random() < 0.5
    text = arguments if named else f'[{{"name": "{name}", "parameters": {arguments}}}]'
    return [head, ask, ("forced", text)]


SMOKE = {
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def smoke(r: random.Random, words: Words) -> Turns:
    """What the smoke suite asks, verbatim but for the values of the result."""
    one = Tool(name="get_weather", word="weather", word_zh="天气", key="city", more=None, definition=SMOKE)
    head, paris, berlin = system([one]), call(one, "Paris"), call(one, "Berlin")
    kind = r.randrange(3)
    if kind == 0:
        return [head, *curriculum.one("Say hello in one short sentence." + NO_TOOL, HELLO)]
    if kind == 1:
        first, second = seen(r, one, "Paris", False), seen(r, one, "Berlin", False)
        ask = BOTH_EN[0].format(w="weather", a="Paris", b="Berlin")
        told = f"{first[1]} {second[1]}"
        return [head, ("user", ask), paris, berlin, first[0], second[0], ("assistant", told)]
    result, told = seen(r, one, "Paris", False)
    ask = ASK_EN[0].format(w="weather", e="Paris")
    return [head, ("user", ask), paris, result, ("assistant", told)]


MIX: dict[Callable[[random.Random, Words], Turns], float] = {
    used: 12, both: 5, in_turn: 4, unused: 4, absent: 2, forced: 2, smoke: 1.5,
}  # fmt: skip


def sample(r: random.Random, words: Words | None = None) -> Turns:
    turns = r.choices(tuple(MIX), weights=tuple(MIX.values()))[0](r, words or Words())
    if r.random() < 0.12:
        turns.insert(1, ("system", r.choice(t.SYSTEM)))
    return turns


def mixed(r: random.Random) -> Turns:
    """The whole curriculum of the model with tools."""
    return sample(r) if r.random() < 0.6 else curriculum.sample(r)


def corpus(r: random.Random, samples: int) -> list[str]:
    """As `curriculum.corpus`, with tools."""
    stream = [content for _ in range(samples) for _, content in sample(r)]
    return curriculum.corpus(r, samples) + stream
