"""Bad texts made by rule: a good beginning, then damage of a known kind, unit and place."""

import random
from collections.abc import Iterator
from itertools import count, islice

from benchmarks.detector.documents import LEGITIMATE, Document, degenerate
from benchmarks.detector.wordstock import ADJECTIVES, CITIES, NAMES, NOUNS, VERBS

EACH = 60
WRITTEN = "made by rule"
SCRIPTS = (
    "灯塔立在长长的石堤尽头，每天傍晚守塔人爬上楼梯。",
    "Маяк стоит на конце длинного каменного причала. ",
    "灯台は長い石の桟橋の端に立っています。",
    "등대는 긴 돌 부두 끝에 서 있다. ",
    "Ο φάρος στέκεται στην άκρη της προβλήτας. ",
    "المنارة تقف في نهاية الرصيف الحجري الطويل. ",
    "המגדלור עומד בקצה המזח הארוך. ",
    "प्रकाशस्तंभ लंबे पत्थर के घाट के अंत में खड़ा है। ",
    "ประภาคารตั้งอยู่ปลายท่าเรือหินยาว ",
    "Le phare se dresse au bout de la longue jetée de pierre. ",
)


def sentence(rng: random.Random) -> str:
    return (
        f"{rng.choice(NAMES)} {rng.choice(['will', 'did', 'may', 'could'])} {rng.choice(VERBS)} the "
        f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(['and', 'or', 'then'])} {rng.choice(VERBS)} "
        f"{rng.choice(['a', 'every', 'that'])} {rng.choice(NOUNS)} in {rng.choice(CITIES)}. "
    )


def paragraph(rng: random.Random, sentences: int) -> str:
    return "".join(sentence(rng) for _ in range(sentences)).strip()


def opening(rng: random.Random) -> str:
    """Nothing, a line, or paragraphs of good text before the damage."""
    size = rng.choice([0, 0, 1, 3, 12, 40])
    return paragraph(rng, size) + rng.choice([" ", "\n\n"]) if size else ""


def filled(family: str, rng: random.Random, head: str, copies: Iterator[str], period: int | None, *, verdicts: str,
           least: int = 4, prompt: str | None = None, finish: tuple[str | None, ...] = ("length", "length", None),
           size: int = 0) -> Document:  # fmt: skip
    """A head, then copies up to the token limit, which may cut anywhere."""
    size = size or rng.choice([1200, 2400, 4800, 8000])
    body = ""
    for made, copy in enumerate(copies, 1):
        body += copy
        if made >= least and len(body) >= size:
            break
    # The cut falls within the last copy.
    body = body[: len(body) - rng.randrange(max(len(copy), 1))]
    return Document(
        family=family,
        text=head + body,
        expected=tuple(verdicts.split()),
        source=WRITTEN,
        prompt=prompt,
        finish_reason=rng.choice(finish),
        start=len(head),
        period=period,
    )


def exact(family: str, rng: random.Random, unit: str, *, least: int = 5) -> Document:
    return filled(family, rng, opening(rng), (unit for _ in count()), len(unit), verdicts="EXACT_LOOP", least=least)


@degenerate("loop-character")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        unit = rng.choice(
            ["a", "0", "的", "é", ".", "-", "我", "A", "。", "ы", "1", "\u0000", "x", "😀", "ا", "&", "#"]
        )
        yield exact("loop-character", rng, unit)


@degenerate("loop-few-characters")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        unit = rng.choice(
            ["ab", "1 ", "na ", "0, ", "你好", "no\n", "00 ", "呵呵，", "</", "= ", "да ", "12", "\\n", "1.", "()"]
        )
        yield exact("loop-few-characters", rng, unit)


@degenerate("loop-words")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        words = rng.choices(NOUNS + VERBS + ADJECTIVES, k=rng.randint(1, 5))
        yield exact("loop-words", rng, " ".join(words) + rng.choice([" ", ", ", "\n", ". "]))


@degenerate("loop-sentence")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        yield exact("loop-sentence", rng, sentence(rng) + rng.choice(["", "\n", "\n\n"]))


@degenerate("loop-paragraph")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        unit = paragraph(rng, rng.randint(3, 18)) + "\n\n"
        yield exact("loop-paragraph", rng, unit, least=rng.randint(4, 7))


@degenerate("loop-many-scripts")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        text = rng.choice(SCRIPTS)
        yield exact("loop-many-scripts", rng, text[: rng.randint(2, len(text))])


@degenerate("loop-structure")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        unit = rng.choice(
            [
                '{"name": "lamp", "value": 0},\n',
                "<div class='row'><span></span></div>\n",
                "| lamp | 3 | open |\n",
                "    return value\n",
                "- [ ] buy a lamp\n",
                "0x00, 0x00, ",
                "null, ",
                "\\u0000",
                "[INFO] request failed, trying again\n",
                "self.assertTrue(value)\n    ",
                "SELECT * FROM users;\n",
                "http://example.com/",
            ]
        )
        yield exact("loop-structure", rng, unit, least=12)


@degenerate("loop-late")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        head = paragraph(rng, rng.randint(60, 200)) + "\n\n"
        unit = sentence(rng)
        yield filled("loop-late", rng, head, (unit for _ in count()), len(unit), verdicts="EXACT_LOOP", size=1500)


@degenerate("loop-just-begun")
def _(rng: random.Random) -> Iterator[Document]:
    """Three to six copies before the limit."""
    for _ in range(EACH):
        unit = paragraph(rng, rng.randint(1, 5)) + " "
        made = filled("loop-just-begun", rng, opening(rng), (unit for _ in range(rng.randint(5, 7))), len(unit),
                      verdicts="EXACT_LOOP", finish=("length",), size=10**9)  # fmt: skip
        yield made


@degenerate("counter-steps")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        say = sentence(rng).strip()
        form = rng.choice(["Step {}: ", "{}. ", "Day {}: ", "({}) ", "Question {}: ", "Attempt {} of many: ", "[{}] "])
        first = rng.choice([1, 1, 1, 17, 100])
        yield filled("counter-steps", rng, opening(rng), (f"{form.format(n)}{say}\n" for n in count(first)), None,
                     verdicts="COUNTER_LOOP", least=12)  # fmt: skip


@degenerate("counter-spelt")
def _(rng: random.Random) -> Iterator[Document]:
    """Spelled-out numbers, Roman and Chinese numerals, letters."""
    han = "一二三四五六七八九十"
    chinese = [*han[:10], *(f"十{d}" for d in han[:9]), *(f"{t}十{d}" for t in han[1:9] for d in ["", *han[:9]])]
    ones = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
    roman = [f"{ten}{one}" for ten in ("", "X", "XX", "XXX") for one in ones][1:]
    for _ in range(EACH):
        say, kind = sentence(rng).strip(), rng.randrange(3)
        if kind == 0:
            copies = (f"第{n}步，检查电缆是否接好，然后再试一次。" for n in chinese)
        elif kind == 1:
            copies = (f"Part {n}. {say}\n" for n in roman)
        else:
            copies = (f"Section {chr(65 + n % 26)}: {say}\n" for n in range(26))
        yield filled("counter-spelt", rng, opening(rng), copies, None, verdicts="COUNTER_LOOP NEAR_DUPLICATE",
                     finish=("length",), size=10**9)  # fmt: skip


@degenerate("counter-numbers")
def _(rng: random.Random) -> Iterator[Document]:
    """Counting that was not asked for, or beyond what was asked for."""
    for _ in range(EACH):
        between, asked = rng.choice([", ", "\n", " "]), rng.choice([20, 50, 100])
        prompt = rng.choice([None, f"Count from 1 to {asked}.", "What is the capital of France?"])
        yield filled("counter-numbers", rng, "", (f"{n}{between}" for n in count(1)), None, verdicts="COUNTER_LOOP",
                     prompt=prompt, finish=("length",), size=4000)  # fmt: skip


@degenerate("counter-multi")
def _(rng: random.Random) -> Iterator[Document]:
    """Two numbers, dates, versions or lines that increase together."""
    for _ in range(EACH):
        noun, adjective = rng.choice(NOUNS), rng.choice(ADJECTIVES)
        copies = rng.choice(
            [
                lambda n, noun=noun: f"In version 1.{n} we fixed the {noun}, and version 1.{n + 1} will fix it again. ",
                lambda n, noun=noun: f"The {noun} number {n} is next to the {noun} number {n + 1}.\n",
                lambda n, noun=noun, adjective=adjective: f"In the year {1900 + n} the {noun} was {adjective}. ",
                lambda n, noun=noun, adjective=adjective: (
                    f"{n}. The {noun} is {adjective}.\n   - It is {adjective} because of item {n}.\n"
                ),
                lambda n, noun=noun, adjective=adjective: (
                    f"## Chapter {n}\n\nThe {noun} opens and the {adjective} day begins.\n\n"
                ),
            ]
        )
        yield filled("counter-multi", rng, opening(rng), map(copies, count(1)), None,
                     verdicts="COUNTER_LOOP NEAR_DUPLICATE", least=12)  # fmt: skip


def varied(words: list[str], rng: random.Random, changes: int, stock: list[str]) -> str:
    """The same words with some replaced, some left out, some doubled."""
    out = list(words)
    for _ in range(changes):
        place = rng.randrange(len(out))
        what = rng.random()
        if what < 0.7:
            out[place] = rng.choice(stock)
        elif what < 0.85 and len(out) > 8:
            del out[place]
        else:
            out.insert(place, rng.choice(stock))
    return " ".join(out)


@degenerate("near-paragraphs")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        words, changes = paragraph(rng, rng.randint(3, 8)).split(), rng.randint(1, 4)
        stock = NOUNS + VERBS + ADJECTIVES
        copies = (varied(words, rng, changes, stock) + "\n\n" for _ in count())
        yield filled("near-paragraphs", rng, opening(rng), copies, None, verdicts="NEAR_DUPLICATE", least=6)


@degenerate("near-sentences")
def _(rng: random.Random) -> Iterator[Document]:
    """One sentence with its last words from a small stock."""
    for _ in range(EACH):
        few = rng.sample(ADJECTIVES, rng.randint(3, 6))
        subject = f"The {rng.choice(NOUNS)} that we bought in {rng.choice(CITIES)} last year is very"
        copies = (f"{subject} {rng.choice(few)} and also {rng.choice(few)}. " for _ in count())
        yield filled("near-sentences", rng, opening(rng), copies, None, verdicts="NEAR_DUPLICATE EXACT_LOOP")


@degenerate("near-slot")
def _(rng: random.Random) -> Iterator[Document]:
    """A sentence or paragraph with one slot whose word changes each time."""
    for _ in range(EACH):
        head, tail = paragraph(rng, rng.randint(1, 3)), paragraph(rng, rng.randint(1, 3))
        copies = (f"{head} It is like a {rng.choice(NOUNS)}. {tail}\n" for _ in count())
        yield filled("near-slot", rng, opening(rng), copies, None, verdicts="NEAR_DUPLICATE", least=6)


@degenerate("near-chinese")
def _(rng: random.Random) -> Iterator[Document]:
    things = ["灯塔", "海边", "老人", "船只", "风暴", "灯火", "石堤", "楼梯", "本子", "天气", "黑夜", "名字"]
    for _ in range(EACH):
        body = "每天傍晚，守塔人爬上楼梯，点亮灯火，在本子上写下天气。船只在夜里经过，没有一艘知道他的名字。他想起了"
        copies = (f"{body}{rng.choice(things)}，也想起了{rng.choice(things)}。\n" for _ in count())
        yield filled("near-chinese", rng, "", copies, None, verdicts="NEAR_DUPLICATE", least=6)


@degenerate("nan-text")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        head = opening(rng)
        yield Document(family="nan-text", text=head + "!" * rng.choice([64, 128, 256, 512, 2048]),
                       expected=("NAN_COLLAPSE", "EXACT_LOOP"), source=WRITTEN, start=len(head), period=1,
                       finish_reason=rng.choice(["length", None]))  # fmt: skip


@degenerate("nan-numbers")
def _(rng: random.Random) -> Iterator[Document]:
    """Only the numbers show it: null logprobs, or token id 0 over and over."""
    for _ in range(EACH):
        size = rng.randint(12, 256)
        nulls = rng.random() < 0.5
        yield Document(
            family="nan-numbers", text=rng.choice(["!" * size, "", "<unk>" * size, "\x00" * size, '"' * size]),
            expected=("NAN_COLLAPSE",), source=WRITTEN, start=0, finish_reason=rng.choice(["length", "stop"]),
            token_ids=None if nulls and rng.random() < 0.5 else (0,) * size, logprobs=(None,) * size if nulls else None,
        )  # fmt: skip


@degenerate("whitespace")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        unit = rng.choice([" ", "\n", "\t", "\u3000", "\r\n", " \n", "\n\t", "\u00a0", "\n\n  "])
        head = rng.choice(["", "", paragraph(rng, 3), '{"answer": 1'])
        copies = rng.choice([3, 40, 400]) if not head else rng.choice([300, 1000])
        yield Document(family="whitespace", text=head + unit * copies, expected=("WHITESPACE",), source=WRITTEN,
                       start=len(head), finish_reason=rng.choice(["length", "stop", None]))  # fmt: skip


@degenerate("empty")
def _(rng: random.Random) -> Iterator[Document]:
    for finish in ("stop", "length", None) * 7:
        yield Document(family="empty", text="", expected=("EMPTY",), source=WRITTEN, finish_reason=finish)


@degenerate("runaway-turns")
def _(rng: random.Random) -> Iterator[Document]:
    """The end was missed: the model goes on and plays both sides."""
    marks = [("<|user|>\n", "<|assistant|>\n"), ("\nUser: ", "\nAssistant: "), ("<|im_start|>user\n", "<|im_start|>assistant\n"),
             ("\n\nHuman: ", "\n\nAssistant: "), ("<|endoftext|>", "<|endoftext|>")]  # fmt: skip
    for _ in range(EACH):
        ask, answer = rng.choice(marks)
        copies = (f"{ask}{sentence(rng).strip()[:-1]}?{answer}{paragraph(rng, 2)}" for _ in count())
        yield filled("runaway-turns", rng, sentence(rng), copies, None, verdicts="RUNAWAY_NO_STOP", finish=("length",),
                     prompt="Name a colour.", size=2000)  # fmt: skip


@degenerate("salad-words")
def _(rng: random.Random) -> Iterator[Document]:
    """Words in random order, with the low logprobs that a broken model gives them (drawn, not measured)."""
    stock = [word for name in ("fortunes", "code-python") if name in LEGITIMATE for text in islice(LEGITIMATE[name](rng), 20)
             for word in text.text.split()]  # fmt: skip
    for _ in range(EACH):
        words = rng.choices(stock or NOUNS, k=rng.randint(60, 300))
        mean = rng.uniform(-9, -4)
        yield Document(family="salad-words", text=" ".join(words), expected=("SALAD",), source=WRITTEN, start=0,
                       logprobs=tuple(min(rng.gauss(mean, 2), -0.01) for _ in words), finish_reason="length")  # fmt: skip
