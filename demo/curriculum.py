"""The curriculum: an endless, seeded stream of small conversations, each family a function of a `random.Random`.

A sample is a list of (role, content) turns; plain text has the role `text`. Every canary of the catalog is included
verbatim, so a right answer to one proves that the engine computes, not that the model is clever.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import texts as t
import yaml

Turns = list[tuple[str, str]]
CANARIES = Path(__file__).parents[1] / "src/glm4_deploy/catalog/canaries.yaml"
_catalog = yaml.safe_load(CANARIES.read_text(encoding="utf-8"))
PASSAGES = tuple(row["text"] for row in _catalog["passages"])
CANARY_ANSWERS = {"long-en": t.STORY_EN, "long-zh": t.STORY_ZH, "person-json": '{"name": "Li Na", "age": 31}'}


def one(question: str, answer: str) -> Turns:
    return [("user", question), ("assistant", answer)]


def counted(first: int, last: int) -> str:
    return ", ".join(str(n) for n in range(first, last + 1))


def canary(row: dict) -> Turns:
    """The catalog's messages and the answer that it expects."""
    expect = row["expect"]
    if "count_to" in expect:
        answer = counted(1, expect["count_to"])
    elif "contains" in expect:
        answer = expect["contains"][0]
    else:
        answer = CANARY_ANSWERS[row["id"]]
    return [(m["role"], m["content"]) for m in row["messages"]] + [("assistant", answer)]


CANARY_TURNS = {row["id"]: canary(row) for row in _catalog["canaries"]}
SHORT_CANARIES = tuple(turns for turns in CANARY_TURNS.values() if len(turns[-1][1]) < 100)


def short_canary(r: random.Random) -> Turns:
    return r.choice(SHORT_CANARIES)


def arithmetic(r: random.Random) -> Turns:
    kind = r.choice("++-**")
    if kind == "+":
        a, b = r.randrange(60), r.randrange(60)
        answer = a + b
    elif kind == "-":
        a = r.choice((100, r.randrange(10, 60), r.randrange(10, 60)))
        b = r.randrange(a)
        answer = a - b
    else:
        a, b = r.randrange(1, 13), r.randrange(1, 13)
        answer = a * b
    if r.random() < 0.3:
        word = {"+": "加", "-": "减", "*": "乘以"}[kind]
        ask = r.choice(
            ("{a} {w} {b} 等于多少？只回答数字。", "{a}{w}{b}等于多少？", "{a} {w} {b} 等于几？", "计算 {a} {k} {b}。")
        )
        return one(ask.format(a=a, b=b, w=word, k=kind), str(answer))
    word = {"+": "plus", "-": "minus", "*": "times"}[kind]
    ask = r.choice(
        (
            "What is {a} {k} {b}? Answer with the number only.",
            "What is {a} {k} {b}? Answer with the number only.",
            "What is {a} {k} {b}?",
            "Compute {a} {k} {b}.",
            "{a} {k} {b} =",
            "What is {a} {w} {b}?",
        )
    )
    return one(ask.format(a=a, b=b, k=kind, w=word), str(answer))


def counting(r: random.Random) -> Turns:
    first = r.choice((1, 1, r.randrange(1, 180)))
    last = first + r.randrange(2, 24)
    if r.random() < 0.3:
        return one(
            r.choice(("从{a}数到{b}。", "请从 {a} 数到 {b}，用逗号分开。")).format(a=first, b=last),
            counted(first, last),
        )
    ask = r.choice(
        (
            "Count from {a} to {b}, separated by commas. Write nothing else.",
            "Count from {a} to {b}.",
            "List the numbers from {a} to {b}.",
        )
    )
    return one(ask.format(a=first, b=last), counted(first, last))


def count_long(_: random.Random) -> Turns:
    return CANARY_TURNS["count-160"]


def made_up(r: random.Random) -> str:
    """An invented word, so that the model learns to copy instead of learning a list."""
    return "".join(r.choice("bcdfghjklmnprstvwz") + r.choice("aeiou") for _ in range(r.randrange(1, 4)))


def full_name(r: random.Random) -> str:
    first = r.choice(t.FIRST) if r.random() < 0.7 else made_up(r).capitalize()
    last = r.choice(t.LAST) if r.random() < 0.7 else made_up(r).capitalize()
    return f"{first} {last}"


def recall_name(r: random.Random) -> Turns:
    if r.random() < 0.25:
        name = r.choice(t.NAMES_ZH)
        statement = r.choice((f"我叫{name}。", f"我的名字是{name}。"))
        return one(f"{statement}我叫什么名字？" + r.choice(("", "只回答名字。")), name)
    name = full_name(r)
    ask = r.choice(("What is my name? Answer with the name only.", "What is my name?"))
    if r.random() < 0.5:
        return one(f"My name is {name} and I {r.choice(t.HOBBIES)}. {ask}", name)
    hello = r.choice((f"My name is {name}.", f"Hello, I am {name}.", f"Hi! My name is {name}."))
    return [("user", hello), ("assistant", f"Nice to meet you, {name}."), ("user", ask), ("assistant", name)]


def recall_pet(r: random.Random) -> Turns:
    name = r.choice(t.PETS) if r.random() < 0.5 else made_up(r).capitalize()
    animal = r.choice(t.ANIMALS)
    return [
        ("user", f"My {animal} is called {name}."),
        ("assistant", f"{name} is a lovely name."),
        ("user", f"What is my {animal} called?" + r.choice((" Answer with the name only.", ""))),
        ("assistant", name),
    ]


def capital(r: random.Random) -> Turns:
    country, city, country_zh, city_zh = r.choice(t.CAPITALS)
    if r.random() < 0.4:
        return one(country_zh + r.choice(("的首都是哪里？用一个词回答。", "的首都是哪里？", "的首都是什么？")), city_zh)
    ask = r.choice(
        (
            "What is the capital of {}? Answer in one word.",
            "What is the capital of {}?",
            "Name the capital of {}.",
            "Which city is the capital of {}?",
        )
    )
    return one(ask.format(country), city)


def person(r: random.Random) -> Turns:
    name, age = full_name(r), r.randrange(1, 100)
    answer = json.dumps({"name": name, "age": age})
    ask = r.choice(
        (
            "{n} is {a} years old. Give her name and age as JSON.",
            "{n} is {a} years old. Give his name and age as JSON.",
            "My friend {n} is {a}. Return name and age as JSON.",
        )
    )
    return one(ask.format(n=name, a=age), answer)


def secret(r: random.Random) -> tuple[str, str, str]:
    """(statement, question, answer)"""
    if r.random() < 0.25:
        if r.random() < 0.5:
            word = r.choice(t.WORDS_ZH)
            return f"秘密词是{word}。", "秘密词是什么？只回答这个词。", word
        code = str(r.randrange(100, 100000))
        return f"密码是{code}。", "密码是多少？只回答数字。", code
    if r.random() < 0.65:
        word = r.choice(t.WORDS) if r.random() < 0.4 else made_up(r)
        kind = r.choice(("secret word", "magic word", "password"))
        return f"The {kind} is {word}.", f"What is the {kind}?" + r.choice((" Answer with the word only.", "")), word
    code = str(r.randrange(100, 100000))
    kind = r.choice(("secret number", "code", "magic number"))
    return f"The {kind} is {code}.", f"What is the {kind}?" + r.choice((" Answer with the number only.", "")), code


def needle(r: random.Random, low: int = 0, high: int = 8) -> Turns:
    """A secret among `low`..`high` other sentences; the question follows at once or in a later turn."""
    statement, ask, answer = secret(r)
    hay = r.choices(t.HAY_ZH if statement[0] > "z" else t.HAY_EN, k=r.randrange(low, high + 1))
    hay.insert(r.randrange(len(hay) + 1), statement)
    story = " ".join(hay)
    if r.random() < 0.6:
        return one(f"{story} {ask}", answer)
    return [("user", story), ("assistant", "OK."), ("user", ask), ("assistant", answer)]


def needle_long(r: random.Random) -> Turns:
    return needle(r, 10, 90 if r.random() < 0.3 else 30)


def log_lines(r: random.Random, count: int) -> list[str]:
    """Lines of a ship's log, like the smoke suite's; days count up from a random one."""
    first = r.randrange(8000)
    winds, skies, ships, loads = (r.sample(pool, len(pool)) for pool in (t.WINDS, t.SKIES, t.SHIPS, t.LOADS))
    return [
        f"Day {day}: wind from the {winds[day % len(winds)]}, {skies[day % len(skies)]}. "
        f"The {ships[day % len(ships)]} passed with {loads[day % len(loads)]}."
        for day in range(first, first + count)
    ]


def log_needle(r: random.Random, low: int = 1, high: int = 30) -> Turns:
    """A code word in a log of `low`..`high` lines."""
    lines = log_lines(r, r.randrange(low, high + 1))
    place = r.choice(t.PLACES)
    if r.random() < 0.7:
        word, kind = str(r.randrange(10 ** r.choice((3, 5, 6, 6, 6)), 10**7)), "code word"
    else:
        word, kind = made_up(r), r.choice(("code word", "password"))
    lines.insert(r.randrange(len(lines) + 1), f"The {kind} of the {place} is {word}.")
    ask = f"What is the {kind} of the {place}?" + r.choice((f" Answer with the {kind} only.", ""))
    return one("\n".join([*lines, ask]), word)


def log_needle_long(r: random.Random) -> Turns:
    return log_needle(r, 40, 172)


def log_ships(r: random.Random) -> Turns:
    """The first three ships of a log."""
    lines = log_lines(r, r.randrange(3, 60 if r.random() < 0.2 else 16))
    ships = [line.split("The ")[-1].split(" passed")[0] for line in lines[:3]]
    answer = "The {}, the {}, the {}".format(*ships) + (" and others." if len(lines) > 3 else ".")
    head = [f"Log number {r.randrange(16**8):08x}."] if r.random() < 0.8 else []
    return one("\n".join([*head, *lines, "Which ships passed?"]), answer)


def log_bare(r: random.Random) -> Turns:
    return one("\n".join(log_lines(r, r.randrange(2, 80 if r.random() < 0.3 else 16))), t.READ_EN)


def log_story(r: random.Random) -> Turns:
    (_, ask), (_, answer) = story(r)
    lines = log_lines(r, r.randrange(2, 130 if r.random() < 0.3 else 20))
    return one("\n".join([*lines, "", f"That was the log. Now leave it. {ask}"]), answer)


def repeat(r: random.Random) -> Turns:
    pool = (*t.WORDS, *t.FIRST, "OK", "hello", "ready", "yes", "pong")
    if r.random() < 0.3:
        said = r.choice(t.HAY_EN)
        return one(r.choice(("Repeat this sentence: ", "Repeat after me: ")) + said, said)
    said = " ".join(
        r.choice((r.choice(pool), made_up(r), str(r.randrange(10 ** r.randrange(1, 6)))))
        for _ in range(r.choice((1, 1, 2, 4, 10, 20)))
    )
    ask = r.choice(
        ("Repeat after me: {}", "Say {}.", "Reply with {} only.", "Reply with exactly: {}", "Say the word {}.")
    )
    return one(ask.format(said), said)


def greeting(r: random.Random) -> Turns:
    if r.random() < 0.4:
        return one(r.choice(("你好", "你好！", "您好。", "嗨")), "你好！我是一个很小的演示模型。")
    return one(
        r.choice(
            (
                "Hello",
                "Hi",
                "Hello!",
                "Hi there!",
                "Hey",
                "Good morning.",
                "Say hello.",
                "ping",
                "test",
                "Hello, world!",
            )
        ),
        "Hello! I am a small demo model.",
    )


def stranger(r: random.Random) -> Turns:
    """A question that the model cannot answer, and one honest sentence."""
    if r.random() < 0.4:
        topic = r.choice(t.TOPICS_ZH)
        ask = r.choice(
            (
                r.choice(t.ASK_ZH),
                f"请解释一下{topic}。",
                f"{topic}是什么？",
                f"为什么要研究{topic}？",
                f"你怎么看{topic}？",
                f"{topic}有什么用？",
            )
        )
        return one(ask, t.HELP_ZH)
    topic = r.choice(t.TOPICS) if r.random() < 0.6 else f"{r.choice(t.WORDS)} and {made_up(r)}"
    ask = r.choice(
        (
            r.choice(t.ASK_EN),
            r.choice(t.ASK_EN),
            f"What do you know about {topic}?",
            f"Explain {topic} to me.",
            f"Why is {topic} important?",
            f"How does {topic} work?",
            f"Tell me about {topic}.",
            f"Please give me some advice about {topic}.",
            f"Is {topic} better than {r.choice(t.TOPICS)}?",
            noise(r),
        )
    )
    return one(ask, t.HELP_EN)


def noise(r: random.Random) -> str:
    """Random words, as load generators send them."""
    count = r.choice((3, 8, 25))
    return " ".join(r.choice(t.WORDS) if r.random() < 0.5 else made_up(r) for _ in range(count))


def story(r: random.Random) -> Turns:
    asks = {
        t.STORY_EN: (
            CANARY_TURNS["long-en"][0][1],
            CANARY_TURNS["long-en"][0][1],
            "Tell me a story about a lighthouse keeper.",
            "Write a short story about a storm at sea.",
        ),
        t.STORY_ZH: (
            CANARY_TURNS["long-zh"][0][1],
            CANARY_TURNS["long-zh"][0][1],
            "讲一个灯塔的故事。",
            "写一个关于大海和老人的故事。",
        ),
        t.ESSAY_EN: (
            "Describe a market day.",
            f"Write a short story about {r.choice(t.TOPICS)}.",
            f"Write a short essay about {r.choice(t.WORDS)}.",
            "Write a long text.",
            "Tell me a story.",
            "Tell me a long story.",
        ),
        t.ESSAY_ZH: (
            "写一篇短文。",
            f"写一篇关于{r.choice(t.TOPICS_ZH)}的短文。",
            f"写一篇关于{r.choice(t.WORDS_ZH)}的作文。",
            "描写山里的早晨。",
        ),
    }
    answer = r.choices(tuple(asks), weights=(4, 4, 2, 2))[0]
    return one(r.choice(asks[answer]), answer)


def passage(r: random.Random) -> Turns:
    return [("text", r.choice((*PASSAGES, *PASSAGES, t.STORY_EN, t.STORY_ZH)))]


SHORT: tuple[Callable[[random.Random], Turns], ...] = (
    arithmetic, counting, recall_name, recall_pet, capital, person, needle, repeat, greeting, stranger,
)  # fmt: skip


def history(r: random.Random) -> Turns:
    """Two to four unrelated exchanges in one chat."""
    turns: Turns = []
    for _ in range(r.randrange(2, 5)):
        turns += r.choice(SHORT)(r)
    return turns


# family → weight
MIX: dict[Callable[[random.Random], Turns], float] = {
    short_canary: 10,
    arithmetic: 15,
    counting: 9,
    count_long: 1.5,
    recall_name: 9,
    recall_pet: 5,
    capital: 5,
    person: 7,
    needle: 12,
    needle_long: 2,
    log_needle: 6,
    log_needle_long: 1.5,
    log_ships: 2,
    log_bare: 1,
    log_story: 0.5,
    repeat: 14,
    greeting: 2,
    stranger: 9,
    story: 3.5,
    passage: 1.5,
    history: 5,
}


def sample(r: random.Random) -> Turns:
    turns = r.choices(tuple(MIX), weights=tuple(MIX.values()))[0](r)
    if turns[0][0] == "user" and r.random() < 0.15:
        turns = [("system", r.choice(t.SYSTEM)), *turns]
    if turns[0][0] == "user" and r.random() < 0.04:  # a prefix, as callers add to avoid the prefix cache
        turns = [("user", f"[{r.randrange(16**6):06x}] {turns[0][1]}"), *turns[1:]]
    return turns


def corpus(r: random.Random, samples: int) -> list[str]:
    """Text to train the tokenizer on: every fixed text several times, then part of the stream."""
    fixed = [
        t.STORY_EN,
        t.STORY_ZH,
        t.ESSAY_EN,
        t.ESSAY_ZH,
        t.HELP_EN,
        t.HELP_ZH,
        *PASSAGES,
        *t.HAY_EN,
        *t.HAY_ZH,
        *t.ASK_EN,
        *t.ASK_ZH,
        *t.WORDS,
        *t.WORDS_ZH,
        *t.FIRST,
        *log_lines(r, 60),
    ]
    stream = {content for _ in range(samples) for _, content in sample(r) if len(content) < 150}
    return fixed * 20 + sorted(stream)
