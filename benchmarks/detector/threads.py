"""Degenerate texts in the shapes that people pasted into public threads, each kind with its thread, and a few more.

The shapes are the threads', the words are our own.
"""

import glob
import gzip
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.detector.documents import MissingError
from benchmarks.detector.sick_made import opening
from benchmarks.detector.wordstock import ADJECTIVES, CITIES, NOUNS, VERBS

EACH = 8
OWN = "made by rule"  # a shape that no thread was found for
PROMPTS = (
    None,
    None,
    "Fix the failing test in utils.py",
    "What is the capital of Peru?",
    "介绍一下你自己",
    "Summarise the text above.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sick:
    """A broken text. start: where the damage begins; period: of what repeats, in characters."""

    text: str
    finish_reason: str | None = "length"
    prompt: str | None = None
    start: int = 0
    period: int | None = None


Maker = Callable[[random.Random], Iterator[Sick]]
KINDS: dict[str, tuple[str, Maker]] = {}


def kind(name: str, thread: str) -> Callable[[Callable[[random.Random], tuple[str, int | None] | str]], None]:
    """Register a kind; its maker returns one damaged stretch, and its period if it has one."""

    def register(maker: Callable[[random.Random], tuple[str, int | None] | str]) -> None:
        def make(rng: random.Random) -> Iterator[Sick]:
            for _ in range(EACH):
                made = maker(rng)
                body, period = (made, None) if isinstance(made, str) else made
                head = opening(rng)
                finish = rng.choice(["length", "length", "length", None, None])
                yield Sick(
                    text=head + body, finish_reason=finish, prompt=rng.choice(PROMPTS), start=len(head), period=period
                )

        KINDS[name] = (thread, make)

    return register


def size(rng: random.Random) -> int:
    return rng.choice([1500, 2500, 4000, 7000])


def cut(rng: random.Random, parts: Callable[[], str], least: int = 0) -> str:
    """Parts up to the token limit, which falls within the last one."""
    wanted, out = max(size(rng), least), []
    while sum(map(len, out)) < wanted:
        out.append(parts())
    return "".join(out)[:wanted]


def exact(rng: random.Random, unit: str, *, least: int = 8) -> tuple[str, int]:
    wanted = max(size(rng), least * len(unit))
    return (unit * (wanted // len(unit) + 1))[:wanted], len(unit)


@cache
def words_of(languages: str, *, least: int = 3, marks: bool = False) -> tuple[str, ...]:
    """The words of the manual pages in these languages, in order."""
    out: list[str] = []
    for language in languages.split():
        for path in sorted(glob.glob(f"/usr/share/man/{language}/man[158]/*.gz"))[:40]:
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as page:
                prose = re.sub(r"^[.'].*$|\\f.|\\[-&|^]|\\\(..|\\\*.|\"", "", page.read(), flags=re.MULTILINE)
            found = re.findall(r"[^\W\d_]+[.,;:]?" if marks else r"[^\W\d_]+", prose)
            out += [word for word in found if len(word) >= least]
    if len(out) < 500:
        raise MissingError(f"/usr/share/man in {languages}")
    return tuple(out)


@cache
def english() -> tuple[str, ...]:
    found = []
    for path in sorted(glob.glob("/usr/share/common-licenses/*"))[:12]:
        found += Path(path).read_text(encoding="utf-8", errors="replace").split()
    if len(found) < 500:
        raise MissingError("/usr/share/common-licenses")
    return tuple(found)


def stretch(rng: random.Random, words: Sequence[str], count: int) -> list[str]:
    at = rng.randrange(max(len(words) - count, 1))
    return list(words[at : at + count])


# Doubled tokens: speculative decoding and a KV cache that is written twice


@kind("doubled-without-spaces", "ggml-org/llama.cpp#15311")
def _(rng: random.Random) -> str:
    times = rng.choice([2, 3, 4])
    return "".join(f" {word}" if rng.random() < 0.3 else f" {word}" * times if rng.random() < 0.5 else f" {word}" + word * (times - 1)
                   for word in stretch(rng, english(), size(rng) // 12))  # fmt: skip


@kind("doubled-in-code", "vllm-project/vllm#40831")
def _(rng: random.Random) -> str:
    out = []
    for line in CODE.strip("\n").split("\n") * 3:
        tokens = re.findall(r"\s+|\w+|[^\w\s]", line)
        out.append("".join(token + (" " + token) * (token.isalpha() and rng.random() < 0.45) for token in tokens))
    return "```python\n" + "\n".join(out)


CODE = """
def quicksort(values):
    if len(values) <= 1:
        return values
    middle = values[len(values) // 2]
    smaller = [value for value in values if value < middle]
    equal = [value for value in values if value == middle]
    greater = [value for value in values if value > middle]
    return quicksort(smaller) + equal + quicksort(greater)

class Shelf:
    def __init__(self, width, books=None):
        self.width = width
        self.books = list(books or [])

    def place(self, book):
        if sum(item.thickness for item in self.books) + book.thickness > self.width:
            raise ValueError("the shelf is full")
        self.books.append(book)
        return len(self.books)
"""


@kind("doubled-words-prose", OWN)
def _(rng: random.Random) -> str:
    language = rng.choice(["de", "fr", "es", "ru", "pl"])
    return " ".join(
        f"{word} {word}" if rng.random() < 0.35 else word
        for word in stretch(rng, words_of(language, least=1, marks=True), 300)
    )


@kind("runs-of-words", "InternLM/lmdeploy#2017")
def _(rng: random.Random) -> str:
    stock = rng.sample([word for word in english() if word.isalpha()], 12)
    return cut(rng, lambda: f"{rng.choice(stock)} " * int(rng.expovariate(0.25) + 1))


# Loops of short statements


@kind("pep-talk", "google-gemini/gemini-cli#13322, can1357/oh-my-pi#8701")
def _(rng: random.Random) -> str:
    stock = ["I'll start.", "I'll do it now.", "I'll write it.", "Proceeding.", "I am going to run it.", "I'll be quick.", "Done thinking.",
             "Let me go.", "I'll do that.", "Now I act.", "This is the way.", "I'll call the tool."]  # fmt: skip
    stock, gap = rng.sample(stock, rng.randint(4, 10)), rng.choice([" ", "\n", "\n  "])
    return cut(rng, lambda: rng.choice(stock) + gap)


@kind("generating-go-done", "google-gemini/gemini-cli#15593")
def _(rng: random.Random) -> tuple[str, int]:
    return exact(
        rng,
        rng.choice(
            [
                "Writing.\nGo.\nI will send the answer.\nEnd.\n",
                "Start.\nOk.\nNow.\nFinal.\nAnswer.\n",
                "好的。\n开始。\n我来写。\n完成。\n",
            ]
        ),
    )


@kind("wait-reconsider", "deepseek-ai/DeepSeek-V3.2-Exp#46")
def _(rng: random.Random) -> str:
    noun, verb, city = rng.choice(NOUNS), rng.choice(VERBS), rng.choice(CITIES)
    stock = [f"Wait, but the user said the {noun} is in {city}.", f"Hmm, so maybe I should {verb} the {noun} first.", "But then the second condition fails.",
             f"Let me re-read: \"{verb} the {noun}\".", "Okay, so the answer depends on the first condition.", f"Alternatively, the {noun} could be outside {city}.",
             "But that contradicts what was said before.", "Wait, no.", "Let me think again.", "Actually, maybe that is right after all."]  # fmt: skip
    gap = rng.choice([" ", "\n\n", "\n"])
    return cut(rng, lambda: " ".join(rng.sample(stock, rng.randint(1, 3))) + gap)


@kind("sorry-chain", "facebookresearch/fairseq#4639, UKPLab/EasyNMT#38")
def _(rng: random.Random) -> str:
    unit, joints = rng.choice([("I'm sorry", [", but ", ", but ", ", and ", ". ", ", so "]), ("es tut mir leid", [", aber ", ", und ", ", doch "]),
                               ("je ne sais pas", [", mais ", ", et ", ", car "]), ("对不起", ["，但是", "，而且", "，所以"])])  # fmt: skip
    return cut(rng, lambda: unit + rng.choice(joints))


@kind("ask-the-user-again", "cline/cline#5564, cline/cline#12076")
def _(rng: random.Random) -> str:
    stock = [
        "What would you like me to do with the {}?",
        "Please tell me what to do with the {}.",
        "How can I help you with the {}?",
        "Let me know how to go on with the {}.",
    ]
    noun = rng.choice(NOUNS)
    return cut(rng, lambda: rng.choice(stock).format(noun) + rng.choice([" ", "\n\n"]))


@kind("single-word-lines", "anthropics/claude-code#78753, microsoft/vscode#301818")
def _(rng: random.Random) -> str:
    word = rng.choice(["yard", "and", "it", "因此", "oder", "然后"])
    gap = rng.choice(["\n", " ", "\n\n", ", "])
    return cut(rng, lambda: word + (gap if rng.random() < 0.96 else rng.choice(["\n\n", " ", ". "])))


@kind("praise-and-emoji", OWN)
def _(rng: random.Random) -> str:
    stock, faces = (
        rng.sample(
            ["Great job", "Well done", "Keep going", "You rock", "So proud", "Amazing", "Love it", "Brilliant"], 5
        ),
        "😀🎉🔥💪✨🙌🥳❤️",
    )
    return cut(
        rng,
        lambda: (
            rng.choice(stock) + rng.choice(["! ", "!! ", " "]) + "".join(rng.choices(faces, k=rng.randint(1, 3))) + " "
        ),
    )


@kind("emoji-only", OWN)
def _(rng: random.Random) -> str:
    stock = rng.sample("😀🎉🔥💪✨🙌🥳😂😭🤣💖🌟🎶🌈🍕🚀", rng.choice([3, 5, 8]))
    return cut(rng, lambda: rng.choice(stock), least=800)[:1500]


@kind("adjectives-without-end", OWN)
def _(rng: random.Random) -> str:
    stock = rng.sample(
        [*ADJECTIVES, "gentle", "warm", "calm", "kind", "soft", "tender", "quiet", "loving"], rng.choice([9, 14, 20])
    )
    return "It was a " + cut(rng, lambda: rng.choice(stock) + ", ")


@kind("stammer", OWN)
def _(rng: random.Random) -> str:
    stock = rng.sample(["I", "you", "we", "love", "stay", "please", "never", "always", "here", "mine"], 6)
    return cut(rng, lambda: f"{(word := rng.choice(stock))}... " + f"{word}... " * rng.choice([0, 0, 1]))


# Few words in no order


@kind("request-and-description", "vllm-project/vllm#15752")
def _(rng: random.Random) -> str:
    stock = rng.sample([*NOUNS, "request", "service", "description", "information", "access"], 7)
    glue = [" of ", ", ", " and ", ", and", ". ", " the ", "\n-", " to ", "and"]
    return cut(rng, lambda: rng.choice(stock) + rng.choice(glue))


@kind("fragments-with-plus", "ollama/ollama#2805")
def _(rng: random.Random) -> str:
    stock, mark = rng.choice(
        [(["Is", "In", "ign", "Ins", "IS"], "+"), (["ta", "tu", "tan", "TA"], "-"), (["os", "on", "one", "OS"], "/")]
    )
    return cut(rng, lambda: rng.choice(stock) + (mark if rng.random() < 0.93 else ""))


@kind("identifiers-of-one-topic", "openai/codex#17452")
def _(rng: random.Random) -> str:
    stems = rng.sample(["toggle", "attach", "hook", "topic", "compile", "rollout", "npm", "job", "slice"], 5)
    foreign = rng.sample(words_of("uk ko ja ru"), 6)
    return cut(
        rng,
        lambda: (
            rng.choice(["_", " ", "/", " ", ""])
            + (rng.choice(stems) if rng.random() < 0.85 else rng.choice(foreign))
            + rng.choice(["", "", "ing", "s"])
        ),
    )


@kind("forty-pieces-glued", "ggml-org/llama.cpp#7056")
def _(rng: random.Random) -> str:
    stock = [word[: rng.randint(2, 7)] for word in rng.sample(words_of("de fr es pl"), 36)] + rng.sample(
        words_of("ru ja"), 4
    )
    return cut(rng, lambda: rng.choice(stock) + (" " if rng.random() < 0.25 else ""))


@kind("three-pieces-and-newlines", "AutoGPTQ/AutoGPTQ#321")
def _(rng: random.Random) -> str:
    stock = rng.choice(
        [["Deleg", "O", "_", "t", "_\n"], ["Ext", "ut", "--", "Ext", "\n"], ["Proto", "x", ":", "x", ":\n"]]
    )
    return cut(rng, lambda: rng.choice(stock) * rng.choice([1, 1, 1, 2]))


@kind("control-tokens", "vllm-project/vllm#6305")
def _(rng: random.Random) -> str:
    stock = rng.sample(words_of("de fr pl"), 9)
    return cut(
        rng,
        lambda: (
            f"[control_{rng.choice([11, 11, 131, 137, 152, 234, rng.randrange(770)])}]"
            + (rng.choice(["", " "]) + rng.choice(stock) if rng.random() < 0.4 else "")
        ),
    )


@kind("apostrophes", "NVIDIA/dgx-spark-playbooks#76")
def _(rng: random.Random) -> str:
    stock = rng.choice([["'s", "'s", "'t"], ["'s", "'re", "'t"], ['"s', '"t', '"s']])
    return cut(rng, lambda: rng.choice(stock))


# Salad


@kind("vocabulary-at-random", "CherryHQ/cherry-studio#7090")
def _(rng: random.Random) -> str:
    stock = words_of("de fr pl ru uk ja ko tr hu sv cs id pt")
    return cut(rng, lambda: rng.choice(stock)[: rng.randint(2, 9)] + rng.choice([" ", " ", "", "", ".", "(", "_"]))


@kind("vocabulary-glued-latin", "SafeAILab/EAGLE#258")
def _(rng: random.Random) -> str:
    stock = words_of("de fr pl sv nl es")
    return cut(
        rng, lambda: rng.choice(stock)[rng.randint(0, 2) :][: rng.randint(2, 9)] + (" " if rng.random() < 0.35 else "")
    )


@kind("printable-noise", "ggml-org/llama.cpp#11575")
def _(rng: random.Random) -> str:
    stock = ";)B-F4/(78!3H\"=$,.:#%&'*+<>?@ACDEG0123569"
    return cut(rng, lambda: rng.choice(stock))


@kind("noise-and-broken-bytes", "ollama/ollama#3592")
def _(rng: random.Random) -> str:
    return cut(rng, lambda: chr(rng.randint(33, 126)) if rng.random() < 0.8 else rng.choice(["�", " ", "\\", "`"]))


@kind("foreign-words-within", "openai/codex#43391, anthropics/claude-code#64408")
def _(rng: random.Random) -> str:
    host, guests = rng.choice([("zh_CN", "ru ko"), ("es", "ru ja uk"), ("de", "ko ja ru"), ("fr", "uk zh_CN ko")])
    stock = words_of(guests)
    return " ".join(
        word if rng.random() < 0.72 else rng.choice(stock)[:6]
        for word in stretch(rng, words_of(host, least=1, marks=True), 260)
    )


@kind("language-drifts", OWN)
def _(rng: random.Random) -> str:
    languages = rng.sample(["de", "fr", "es", "pl", "sv", "tr", "hu", "id", "nl", "pt"], 5)
    return " ".join(
        " ".join(stretch(rng, words_of(rng.choice(languages), least=1, marks=True), rng.randint(1, 3)))
        for _ in range(140)
    )


@kind("words-swapped-nearby", OWN)
def _(rng: random.Random) -> str:
    words = stretch(rng, english(), 320)
    return " ".join(" ".join(rng.sample(words[at : at + 5], len(words[at : at + 5]))) for at in range(0, len(words), 5))


@kind("shuffled-german", OWN)
def _(rng: random.Random) -> str:
    words = stretch(rng, words_of(rng.choice(["de", "fr", "es", "ru", "it", "pl"]), least=1, marks=True), 1500)
    return " ".join(rng.sample(words, 280))


@kind("shuffled-chinese", OWN)
def _(rng: random.Random) -> str:
    text = "".join(stretch(rng, words_of("zh_CN", least=1), 400))
    pieces = [text[at : at + 2] for at in range(0, len(text), 2)]
    return "，".join("".join(rng.sample(pieces, 7)) for _ in range(50))


@kind("letters-dropped", OWN)
def _(rng: random.Random) -> str:
    return " ".join(
        re.sub(r"\w", lambda letter: "" if rng.random() < 0.35 else letter[0], word)
        for word in stretch(rng, english(), 320)
    )


@kind("code-in-no-order", OWN)
def _(rng: random.Random) -> str:
    tokens = re.findall(r"\w+|[^\w\s]", CODE) * 3
    rng.shuffle(tokens)
    return "```python\n" + "".join(token + rng.choice([" ", " ", "", "\n    "]) for token in tokens)


@kind("markdown-chaos", OWN)
def _(rng: random.Random) -> str:
    stock = ["**", "*", "##", "- ", "> ", "```", "|", "---", "1.", "[", "](", ")", "\n", "\n\n", " ", "__"]
    words = rng.sample(english(), 12)
    return cut(rng, lambda: rng.choice(stock) + (rng.choice(words) if rng.random() < 0.25 else ""))
