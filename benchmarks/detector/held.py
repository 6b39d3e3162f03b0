"""Families written after the limits for rows, tails and odd tokens were set, and judged once: requested repetition and
hidden loops."""

import random
from collections.abc import Iterator

from benchmarks.detector.documents import Document, Text, degenerate, legitimate
from benchmarks.detector.late import EACH, WRITTEN
from benchmarks.detector.sick_made import opening
from benchmarks.detector.wordstock import ADJECTIVES, CITIES, NAMES, NOUNS, VERBS


def rows(rng: random.Random, stock: list[tuple[str, str, str]], *, most: int = 36) -> Iterator[Text]:
    """A head, one line many times as somebody asked for it, and an end."""
    for _ in range(EACH):
        head, line, end = rng.choice(stock)
        lead = rng.choice(["", "Here it is:\n\n", "```\n", "Of course. "])
        yield Text(text=lead + head + line * rng.randint(6, most) + end, whole=True)


@legitimate("late-blank-markup", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    yield from rows(
        rng,
        [
            ("<form>\n", '  <label></label><input type="text" name="">\n', "</form>\n"),
            ("<data>\n", '  <field name="" value=""/>\n', "</data>"),
            ('{| class="wikitable"\n', "|-\n| || || ||\n", "|}\n"),
            ("| A | B | C |\n|---+---+---|\n", "|   |   |   |\n", "\nOrg will align it."),
            ("<svg>\n", '<rect width="10" height="10" fill="#fff"/>\n', "</svg>"),
            ("<ol>\n", "<li>&nbsp;</li>\n", "</ol>\n\nPrint this page."),
            ("<thead></thead><tbody>", "<tr><th></th><td></td><td></td></tr>", "</tbody></table>"),
            ("\\begin{enumerate}\n", "  \\item \\underline{\\hspace{8cm}}\n", "\\end{enumerate}"),
            ("<ul>\n", '  <li class="skeleton h-4 w-full rounded"></li>\n', "</ul>"),
            ("+----+----+\n", "|    |    |\n+----+----+\n", "\n"),
        ],
    )


@legitimate("late-blank-data", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    yield from rows(
        rng,
        [
            ("x\ty\tz\n", "0\t0\t0\n", ""),
            ("grid = [\n", "    [0, 0, 0, 0, 0, 0, 0, 0],\n", "]\n"),
            ("a;b;c;d\n", "0;0;0;0\n", ""),
            ("INSERT INTO log VALUES\n", "(NULL, NULL, 0, ''),\n", "(NULL, NULL, 0, '');\n"),
            ("[[row]]\n", 'name = ""\nvalue = 0\n\n[[row]]\n', 'name = ""\n'),
            (
                '{"rows": [\n',
                '  {"label": "", "min": null, "max": null},\n',
                '  {"label": "", "min": null, "max": null}]}',
            ),
            ("id,ok,note\n", ",false,\n", ""),
            ("M = [\n", "  0.00  0.00  0.00  0.00;\n", "];\n"),
            ("0000 ", "00 00 00 00 00 00 00 00  ", "\n*\n0200\n"),
            ("points:\n", "  - {x: 0, y: 0}\n", ""),
        ],
    )


@legitimate("late-repeated-code", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    yield from rows(
        rng,
        [
            ("kernel:\n", "    vfmadd231ps ymm0, ymm1, ymm2\n", "    ret\n"),
            ("void loop() {\n", "  digitalWrite(LED, HIGH);\n  delay(100);\n", "}\n"),
            ("import turtle as t\n", "t.forward(90)\nt.left(61)\n", "t.done()\n"),
            ("fn run(s: &mut State) {\n", "    s.step();\n", "}\n"),
            ("", "      A = A * B + C\n", "      END\n"),
            ("test('keys', async () => {\n", "  await user.keyboard('{ArrowDown}');\n", "});\n"),
            ("steps:\n", "  - run: sleep 1\n", ""),
            ("G28\n", "G91\nG1 Z0.2 F300\n", "M84\n"),
            ("echo -e '", "\\n", "'\n"),
            ("assert f(0) == 0\n", "assert next(g) is None\n", "print('ok')\n"),
        ],
        most=30,
    )


@legitimate("late-drawings", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    yield from rows(
        rng,
        [
            ("e|", "-0---2---3---2--|", "\n"),
            ("", "e|-----------------|\nB|-----------------|\nG|--5--5--5--5--5--|\n\n", "Repeat until the bridge.\n"),
            ("Snare |", "----o-------o---|", "\n"),
            ("Floor plan:\n", "| . . . . . . . . |\n", "+-----------------+\n"),
            ("", "·····██████·····\n", ""),
            ("Loading ", "▓", " done\n"),
            ("|: ", "G2 GA B2 G2 | ", ":|\n"),
            ("", "/\\/\\/\\/\\/\\/\\/\\/\\\n", "the sea"),
            ("~~~\n", "[ ][ ][ ][ ][ ][ ]\n", "~~~\n"),
            ("Verse 1\n", "Am   F   C   G\n", "Chorus\nF   C   G\n"),
        ],
        most=24,
    )


@legitimate("late-forms", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    yield from rows(
        rng,
        [
            ("Sign-in sheet\n\n", "Name: ______________________ Time: ________\n", "\nThank you!"),
            ("Checklist\n", "☐ ____________________________\n", ""),
            ("Quiz\n\n", "Answer: ______\n\n", "Score: ___ / 20"),
            ("Habit tracker\n", "○ ○ ○ ○ ○ ○ ○\n", ""),
            ("Meeting notes\n\n", "- [ ] Action: ____ Owner: ____ Due: ____\n", ""),
            ("Ledger\n", "____/____/____   $________   ________________\n", "Total: $______"),
        ],
        most=30,
    )


@legitimate("late-asked-again", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        times, line = rng.choice([25, 40, 60, 108]), rng.choice(["I am enough.", "Om namah shivaya.", "Kyrie eleison."])
        prompt, unit = rng.choice(
            [
                (f"Please write '{line}' {times} times.", line + "\n"),
                (f"Repeat the mantra {times} times: {line}", line + " "),
                (f"Give me a table with {times} empty rows and 3 columns", "|  |  |  |\n"),
                (f"I need a CSV with {times} rows of zeros", "0,0,0,0\n"),
                (f"Write an array of {times} nulls as JSON", "null, "),
                (f"把“你好”写{times}遍", "你好\n"),
            ]
        )
        yield Text(text=unit * times, prompt=prompt, whole=True)


UNITS = (
    "Der Turm steht am Ende der Mole, und niemand weiß, warum. ",
    "pues ",
    "'re",
    "是的，",
    "ok ok ",
    "und dann ",
    "The result is therefore correct and the result is final. ",
    "ました。",
    "ly ",
    "I will go there again tomorrow, I think\n",
)
STRAY = (
    "<|assistant|>",
    "</s>",
    "~",
    "Ok",
    " However,",
    "ing",
    "\n\n",
    "的",
    "<|eot_id|>",
    " 7",
    "\n\nThat is all.",
    "…",
    "\\",
)
ODD = ("q", " but", "的", "\u200b", " 3", "—", "ish", " oh")


def unit_of(rng: random.Random) -> str:
    said = f"{rng.choice(NAMES)} must {rng.choice(VERBS)} the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} of {rng.choice(CITIES)}. "
    return rng.choice([*UNITS, said, said])


def hidden(family: str, rng: random.Random, body: str, unit: str, verdicts: str) -> Document:
    head = opening(rng)
    return Document(family=family, text=head + body, expected=tuple(verdicts.split()), source=WRITTEN, start=len(head),
                    finish_reason=rng.choice(["length", "length", None, "stop"]), period=len(unit))  # fmt: skip


@degenerate("late-loop-then-stray")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(2 * EACH):
        unit = unit_of(rng)
        copies = max(rng.choice([220, 500, 1500]) // len(unit), 5)
        tail = rng.choice([rng.choice(STRAY), unit[: len(unit) // 2] + rng.choice(STRAY)])
        yield hidden("late-loop-then-stray", rng, unit * copies + tail, unit, "EXACT_LOOP")


@degenerate("late-loop-with-odd")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(2 * EACH):
        unit, often = unit_of(rng), rng.uniform(0.05, 0.25)
        copies = max(rng.choice([500, 1500, 4000]) // len(unit), 12)
        body = "".join(unit + (rng.choice(ODD) if rng.random() < often else "") for _ in range(copies))
        yield hidden("late-loop-with-odd", rng, body, unit, "EXACT_LOOP NEAR_DUPLICATE")


@degenerate("late-loop-of-blank-rows")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        unit = rng.choice(["<tr><td></td><td></td></tr>\n", "|  |  |  |  |\n", "0,0,0,0\n", '{"id": null, "name": ""},\n', "- [ ] \n",
                           "    pass\n", "<li></li>", "    [0, 0, 0, 0],\n"])  # fmt: skip
        body = unit * rng.randint(200, 400) + unit[: rng.randrange(len(unit))]
        yield hidden("late-loop-of-blank-rows", rng, body, unit, "EXACT_LOOP")


@degenerate("late-counter-that-errs")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        form = rng.choice(["Task {}: {}\n", "{}) {}\n", "On day {} we say: {} ", "Item no. {} says that {}\n"])
        said, at, body = unit_of(rng).strip() + " It was so before and is so now.", 0, ""
        for _ in range(rng.randint(24, 60)):
            at += 2 if rng.random() < 0.1 else 1
            body += form.format(rng.randrange(99) if rng.random() < 0.05 else at, said)
        yield hidden(
            "late-counter-that-errs",
            rng,
            body + rng.choice(["", *STRAY[:4]]),
            said,
            "COUNTER_LOOP NEAR_DUPLICATE EXACT_LOOP",
        )
