"""Degenerate texts in the shapes of public threads: structure that does not end, counters, paragraphs that drift."""

import random

from benchmarks.detector.sick_made import paragraph
from benchmarks.detector.threads import OWN, cut, exact, kind, size
from benchmarks.detector.wordstock import ADJECTIVES, CITIES, NAMES, NOUNS, VERBS

# Structure that does not end


@kind("endless-number-literal", "google-gemini/cookbook#1288")
def _(rng: random.Random) -> str:
    digits = rng.choice(["0", "9", "3", "142857", "8571428", "235294117647058"])
    return f'{{"items": [{{"name": "{rng.choice(NOUNS)}", "width": {rng.randrange(9)}.' + (digits * 4000)[: size(rng)]


@kind("array-then-two-items", "vllm-project/vllm-ascend#13646")
def _(rng: random.Random) -> str:
    items = [f'"{rng.choice(ADJECTIVES)} {noun}"' for noun in rng.sample(NOUNS, 25)]
    two = f'"{rng.choice(ADJECTIVES)}", "{rng.choice(NOUNS)}", '
    return '{"name": "Ana", "tags": [' + ", ".join(items) + ", " + two * rng.choice([40, 90, 200])


@kind("closing-tags", "vllm-project/vllm#40831")
def _(rng: random.Random) -> str:
    outer, inner = rng.choice(
        [
            ("</parameter>\n", "</function>\n"),
            ("</div>\n", "</section>\n"),
            ("    }\n", "  ]\n"),
            ("</li></ul>\n", "</div>\n"),
        ]
    )
    return cut(rng, lambda: outer * rng.choice([1, 1, 2]) + inner)


@kind("tool-call-again", OWN)
def _(rng: random.Random) -> str:
    path = f"src/{rng.choice(NOUNS)}.py"
    calls = [
        f'<tool_call>\n{{"name": "{name}", "arguments": {{"path": "{path}"}}}}\n</tool_call>\n'
        for name in ("read_file", "list_dir", "grep")
    ]
    said = [
        "I need to read the file first.\n",
        f"Let me look at {path}.\n",
        "The content was not shown. I try again.\n",
        "Reading it now.\n",
    ]
    return cut(rng, lambda: rng.choice(said) + rng.choice(calls[: rng.choice([1, 3])]), least=2500)


@kind("edit-block-again", OWN)
def _(rng: random.Random) -> tuple[str, int]:
    noun = rng.choice(NOUNS)
    unit = f"app/{noun}.py\n<<<<<<< SEARCH\n    {noun} = load()\n    return {noun}\n=======\n    {noun} = load(strict=True)\n    return {noun}\n>>>>>>> REPLACE\n\n"
    return exact(rng, unit)


@kind("test-cases-numbered", OWN)
def _(rng: random.Random) -> str:
    noun, at = rng.choice(NOUNS), iter(range(1, 999))
    return cut(
        rng,
        lambda: (
            f"    def test_{noun}_{next(at)}(self):\n        result = self.client.get('/{noun}')\n        self.assertEqual(result.status_code, 200)\n\n"
        ),
        least=5000,
    )


@kind("records-same-but-id", OWN)
def _(rng: random.Random) -> str:
    noun, at = rng.choice(NOUNS), iter(range(1, 999))
    return "[\n" + cut(
        rng,
        lambda: (
            f'  {{"id": {next(at)}, "title": "The {noun}", "text": "There is nothing to say about the {noun} in this place.", "ok": true}},\n'
        ),
        least=5000,
    )


@kind("html-comment-rows", "Blaizzy/mlx-vlm#1021")
def _(rng: random.Random) -> tuple[str, int]:
    return exact(
        rng,
        f'<!-- {rng.choice(NOUNS)} --tr style="-text-align: center;">{rng.choice(NOUNS)}</td><tr class="row"><strong>No.</h4></br>',
    )


@kind("tables-without-key", "Blaizzy/mlx-vlm#1214")
def _(rng: random.Random) -> str:
    rows = [
        f"| {rng.choice(ADJECTIVES)} {noun} | {rng.choice(CITIES)} | {rng.choice(['Yes', 'No'])} | approved by {rng.choice(NAMES)} |\n"
        for noun in rng.sample(NOUNS, 9)
    ]
    return cut(rng, lambda: rng.choice(rows) if rng.random() < 0.5 else "".join(rows[3:6]), least=5000)


@kind("subtitles-stuck", "SubtitleEdit/subtitleedit#13081, jhj0517/Whisper-WebUI#152")
def _(rng: random.Random) -> str:
    said = rng.choice(
        [
            "Thank you for watching.",
            f"We go back to {rng.choice(CITIES)} tonight.",
            "90",
            "ご視聴ありがとうございました",
            "请不吝点赞订阅",
        ]
    )
    at = iter(range(100, 9999))
    stamp = rng.choice(
        [
            "{n}\n00:{m:02}:{s:02},660 --> 00:{m:02}:{s:02},990\n{t}\n\n",
            "[00:{m:02}:{s:02}.000 --> 00:{m:02}:{s:02}.980]   {t}\n",
        ]
    )
    return cut(rng, lambda: stamp.format(n=(n := next(at)), m=n // 60 % 60, s=n % 60, t=said), least=4000)


@kind("headings-shuffled", "Helsinki-NLP/Opus-MT#49")
def _(rng: random.Random) -> str:
    stock = [f"{rng.choice(ADJECTIVES)} {noun}".upper() for noun in rng.sample(NOUNS, 8)]
    return cut(rng, lambda: rng.choice(stock) + rng.choice(["\n", "\n", " "]), least=2500)


@kind("url-grows", OWN)
def _(rng: random.Random) -> str:
    stock = [f"{rng.choice(NOUNS)}={rng.choice(NOUNS)}" for _ in range(rng.choice([2, 4]))]
    return f"https://example.org/{rng.choice(NOUNS)}?" + cut(rng, lambda: rng.choice(stock) + "&")


@kind("checklist-again", OWN)
def _(rng: random.Random) -> str:
    at = iter(range(1, 999))
    tasks = [f"{verb.capitalize()} the {rng.choice(NOUNS)}" for verb in rng.sample(VERBS, 4)]
    return cut(
        rng,
        lambda: (
            "".join(f"- [{rng.choice(' x')}] {task}\n" for task in tasks)
            + f"\nI update the list (step {next(at)}).\n\n"
        ),
        least=3500,
    )


# Counters


@kind("days-of-nothing", OWN)
def _(rng: random.Random) -> str:
    noun, at = rng.choice(NOUNS), iter(range(1, 9999))
    form = rng.choice(["2024-{m:02}-{d:02}: no news of the {t}. ", "On the {n}th day the {t} was still there, and nobody came. ", "Tag {n}: Der Hafen ist leer und das Schiff ist fort. ",
                       "第{n}天，他又来到了海边，看着远处的船。"])  # fmt: skip
    return cut(rng, lambda: form.format(n=(n := next(at)), m=n // 28 % 12 + 1, d=n % 28 + 1, t=noun))


@kind("numbered-same-advice", OWN)
def _(rng: random.Random) -> str:
    at = iter(range(1, 9999))
    advice = rng.choice(
        [
            f"Always {rng.choice(VERBS)} the {rng.choice(NOUNS)} before you {rng.choice(VERBS)} it.",
            "保持良好的心态，多喝水，早睡早起。",
            "Mantenga la calma y beba agua todos los días.",
        ]
    )
    return cut(rng, lambda: f"{next(at)}. {advice}\n", least=3000)


@kind("spelt-out-in-french", OWN)
def _(rng: random.Random) -> str:
    ones = ["", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"]
    tens = ["vingt", "trente", "quarante", "cinquante", "soixante"]
    numbers = iter([f"{ten}-{one}".strip("-") for ten in tens for one in ones] * 9)
    return cut(rng, lambda: f"Étape {next(numbers)} : ouvrez la porte et fermez la fenêtre du bureau.\n", least=2500)


@kind("model-turn-counts", "ggml-org/llama.cpp#19585")
def _(rng: random.Random) -> str:
    at, asked = iter(range(1, 9999)), rng.choice(["你是谁？", "tell me a story", f"Where is the {rng.choice(NOUNS)}?"])
    return cut(rng, lambda: f"<|im_start|>assistant{next(at)}\n{asked}<|im_end|>\n")


@kind("chapter-headings", OWN)
def _(rng: random.Random) -> str:
    at, title = iter(range(1, 9999)), rng.choice(["The Return", "Conclusion", "结论与展望", "Vorwort"])
    return cut(rng, lambda: f"{rng.choice(['## ', '### '])}{next(at)}. {title}\n\n", least=2500)


# Near duplicates of paragraphs


@kind("interests-and-reasons", "huggingface/candle#2068")
def _(rng: random.Random) -> str:
    two = rng.sample(NOUNS, 2)

    def unit() -> str:
        return "".join(f"I'm interested in the {noun} because I think that the {noun} is {rng.choice(['the most beautiful', 'the most powerful', 'the best'])} thing we have, "
                       f"and I want to {rng.choice(['understand', 'know'])} it better. " for noun in rng.sample(two, rng.choice([1, 2])))  # fmt: skip

    return cut(rng, unit)


@kind("japanese-near", OWN)
def _(rng: random.Random) -> str:
    ends = ["と思います。", "と考えています。", "でしょう。", "のです。"]
    middle = ["とても", "本当に", "やはり", "少し"]
    return cut(rng, lambda: f"この町の港は{rng.choice(middle)}静かで、夜になると灯台の光が海を照らす{rng.choice(ends)}")


@kind("summary-of-summary", OWN)
def _(rng: random.Random) -> str:
    lines = paragraph(rng, 6).split(". ")
    heads = ["In summary,", "To conclude,", "Overall,", "In short,", "To sum up,", "All in all,"]
    return cut(rng, lambda: f"{rng.choice(heads)} {'. '.join(lines[: rng.randint(5, 7)])}.\n\n", least=4000)


@kind("whole-turns-again", "vllm-project/vllm#13952")
def _(rng: random.Random) -> tuple[str, int]:
    said = paragraph(rng, 3)
    return exact(
        rng,
        f"{said}\n<|system|>\nYou are a helpful guide to {rng.choice(CITIES)}.\n<|user|>\nWhere should I go?\n<|assistant|>\n",
    )


@kind("right-to-left", OWN)
def _(rng: random.Random) -> tuple[str, int]:
    return exact(
        rng,
        rng.choice(
            [
                "والميناء هادئ في الليل، ",
                "הנמל שקט בלילה ואין איש ברחוב. ",
                "बंदरगाह रात में शांत रहता है और कोई नहीं आता। ",
                "ท่าเรือเงียบสงบในตอนกลางคืน ",
            ]
        ),
    )
