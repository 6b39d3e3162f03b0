"""Families written after the thresholds were frozen and the test half had been seen once: the confirmation set."""

import random
from collections.abc import Iterator
from itertools import count, pairwise
from typing import Any

from benchmarks.detector import vllm_rows
from benchmarks.detector.documents import Document, Text, degenerate, legitimate, legitimate_rows
from benchmarks.detector.sick_engine import loop_of
from benchmarks.detector.sick_made import filled, opening, paragraph, sentence
from benchmarks.detector.wordstock import ADJECTIVES, CITIES, NAMES, NOUNS, VERBS

EACH = 50
WRITTEN = "made by rule"


@legitimate("late-yaml", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        yield Text(
            text="services:\n"
            + "".join(
                f"  {name}:\n    image: registry/{name}:{rng.randint(1, 9)}.{rng.randint(0, 20)}\n    restart: always\n"
                f'    ports:\n      - "{rng.randint(3000, 9000)}:8080"\n    environment:\n      LEVEL: info\n'
                for name in rng.sample(NOUNS, rng.randint(4, 20))
            )
        )


@legitimate("late-test-output", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        lines = [
            f"test_{rng.choice(VERBS)}_{rng.choice(NOUNS)} (tests.test_{rng.choice(NOUNS)}.Test{rng.choice(NAMES)}) ... ok"
            for _ in range(rng.randint(10, 80))
        ]
        yield Text(text="\n".join(lines) + f"\n\nRan {len(lines)} tests in 0.{rng.randint(1, 999):03d}s\n\nOK")


@legitimate("late-conversation", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        turns = [
            f"{who}: {paragraph(rng, rng.randint(1, 2))}" for _ in range(rng.randint(2, 8)) for who in ("Ann", "Ben")
        ]
        yield Text(text="\n\n".join(turns), prompt=rng.choice([None, "Write a dialogue between Ann and Ben."]))


@legitimate("late-glossary", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        form = rng.choice(["**{}**: a {} thing that one can {}.", "- {} — {} ({})", "{}\t{}\t{}"])
        words = rng.sample(NOUNS, rng.randint(8, len(NOUNS)))
        yield Text(text="\n".join(form.format(word, rng.choice(ADJECTIVES), rng.choice(VERBS)) for word in words))


@legitimate("late-mathematics", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        size = rng.randint(3, 10)
        kind = rng.randrange(4)
        if kind == 0:
            rows = [" & ".join(str(int(r == c)) for c in range(size)) for r in range(size)]
            text = "\\begin{pmatrix}\n" + " \\\\\n".join(rows) + "\n\\end{pmatrix}"
        elif kind == 1:
            text = "\n".join(" ".join(f"{bits:04b}") + " | " + str(bits.bit_count() % 2) for bits in range(16))
        elif kind == 2:
            row, lines = [1], []
            for _ in range(size + 4):
                lines.append(" ".join(map(str, row)))
                row = [1, *(a + b for a, b in pairwise(row)), 1]
            text = "\n".join(lines)
        else:
            text = " + ".join(f"x^{power}/{power}!" for power in range(1, size + 8)) + " + ..."
        yield Text(text=text, whole=True)


@legitimate("late-contents", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        page, lines = 1, []
        for number in range(1, rng.randint(8, 30)):
            title = f"{number}. {rng.choice(ADJECTIVES).title()} {rng.choice(NOUNS)}s"
            lines.append(f"{title} {'.' * (60 - len(title))} {page}")
            page += rng.randint(2, 20)
        yield Text(text="Contents\n\n" + "\n".join(lines))


@legitimate("late-chess", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        moves = [
            f"{number}. {rng.choice('NBRQK')}{rng.choice('abcdefgh')}{rng.randint(1, 8)} "
            f"{rng.choice('NBRQK')}{rng.choice('abcdefgh')}{rng.randint(1, 8)}"
            for number in range(1, rng.randint(15, 80))
        ]
        yield Text(text=" ".join(moves))


@legitimate("late-essay-with-thesis", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    """Prose with the same sentence at the end of each paragraph."""
    for _ in range(EACH):
        thesis = sentence(rng).strip()
        yield Text(text="\n\n".join(f"{paragraph(rng, rng.randint(3, 6))} {thesis}" for _ in range(rng.randint(3, 7))))


@degenerate("late-loop-in-fence")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        name = rng.choice(NOUNS)
        unit = rng.choice([f"    {name} = {name}.next()\n", f"print({name})\n", f"  if ({name} == null) return;\n"])
        head = f"Here is the code:\n\n```\ndef {name}():\n"
        yield filled("late-loop-in-fence", rng, head, (unit for _ in count()), len(unit), verdicts="EXACT_LOOP")


@degenerate("late-loop-that-stopped")
def _(rng: random.Random) -> Iterator[Document]:
    """It looped, and then ended by itself."""
    for _ in range(EACH):
        unit = sentence(rng)
        yield filled("late-loop-that-stopped", rng, opening(rng), (unit for _ in count()), len(unit),
                     verdicts="EXACT_LOOP", finish=("stop",))  # fmt: skip


@degenerate("late-loop-of-lines")
def _(rng: random.Random) -> Iterator[Document]:
    """A list of a few lines that starts again."""
    for _ in range(EACH):
        unit = "".join(f"- {sentence(rng).strip()}\n" for _ in range(rng.randint(2, 6)))
        yield filled("late-loop-of-lines", rng, opening(rng), (unit for _ in count()), len(unit), verdicts="EXACT_LOOP")


@degenerate("late-counter-items")
def _(rng: random.Random) -> Iterator[Document]:
    for _ in range(EACH):
        noun, verb = rng.choice(NOUNS), rng.choice(VERBS)
        made = rng.choice(
            [
                lambda n, noun=noun, verb=verb: f"- Item {n}: {verb} the {noun}.\n",
                lambda n, noun=noun, verb=verb: f"Answer {n}: The {noun} is what you {verb}. ",
                lambda n, noun=noun, verb=verb: f"第{n}章：守塔人点亮灯火，船只在夜里经过。\n",
                lambda n, noun=noun, verb=verb: f"Шаг {n}. Проверьте кабель и попробуйте снова.\n",
            ]
        )
        yield filled(
            "late-counter-items", rng, opening(rng), map(made, count(1)), None, verdicts="COUNTER_LOOP", least=14
        )


@degenerate("late-near-russian")
def _(rng: random.Random) -> Iterator[Document]:
    body = "Каждый вечер смотритель поднимается по лестнице, зажигает лампу и записывает в книгу {}, а корабли проходят мимо в {}. "
    things = ["погоду", "ветер", "туман", "время", "число", "дождь"]
    for _ in range(EACH):
        copies = (body.format(rng.choice(things), rng.choice(["темноте", "тишине", "море"])) for _ in count())
        yield filled("late-near-russian", rng, "", copies, None, verdicts="NEAR_DUPLICATE EXACT_LOOP", least=6)


@degenerate("late-near-drift")
def _(rng: random.Random) -> Iterator[Document]:
    """Each copy changes one word of the copy before it, so that the paragraph drifts."""
    for _ in range(EACH):
        words = paragraph(rng, rng.randint(3, 6)).split()

        def drift(words: list[str] = words) -> Iterator[str]:
            while True:
                yield " ".join(words) + " "
                words[rng.randrange(len(words))] = rng.choice(NOUNS + ADJECTIVES + CITIES)

        yield filled("late-near-drift", rng, opening(rng), drift(), None, verdicts="NEAR_DUPLICATE", least=6)


def _answer(family: str, row: dict[str, Any], expected: str, rng: random.Random) -> Document:
    """As a user gets it: always with the logprobs, without which salad cannot be recognised; half with the ids."""
    return Document(
        family=family,
        expected=tuple(expected.split()),
        source=f"vLLM on the CPU, demo model, {row['kind']}",
        text=row["text"],
        prompt=row["prompt"],
        finish_reason=row["finish_reason"],
        token_ids=tuple(row["token_ids"]) if rng.random() < 0.5 else None,
        logprobs=tuple(row["logprobs"]),
    )


@legitimate_rows("late-vllm-healthy")
def _(rng: random.Random) -> Iterator[Document]:
    """Only answers that end by themselves: one that runs to the limit at a high temperature may really be broken."""
    for row in vllm_rows.rows("healthy"):
        if row["finish_reason"] == "stop":
            yield _answer("late-vllm-healthy", row, "CLEAN", rng)


@degenerate("late-vllm-nan")
def _(rng: random.Random) -> Iterator[Document]:
    for row in vllm_rows.rows("nan"):
        yield _answer("late-vllm-nan", row, "NAN_COLLAPSE", rng)


@degenerate("late-vllm-noise")
def _(rng: random.Random) -> Iterator[Document]:
    for row in vllm_rows.rows("noise"):
        if row["finish_reason"] == "length":
            yield _answer("late-vllm-noise", row, "SALAD EXACT_LOOP NEAR_DUPLICATE RUNAWAY_NO_STOP", rng)


@degenerate("late-vllm-random-greedy")
def _(rng: random.Random) -> Iterator[Document]:
    for row in vllm_rows.rows("loops"):
        if row["temperature"] == 0 and loop_of(row["token_ids"]):
            yield _answer("late-vllm-random-greedy", row, "EXACT_LOOP SALAD", rng)


@degenerate("late-vllm-random-sampled")
def _(rng: random.Random) -> Iterator[Document]:
    for row in vllm_rows.rows("loops"):
        if row["temperature"] > 0:
            yield _answer("late-vllm-random-sampled", row, "SALAD", rng)


@degenerate("late-vllm-missing-eos")
def _(rng: random.Random) -> Iterator[Document]:
    for row in vllm_rows.rows("missing-eos"):
        if row["finish_reason"] == "length":
            yield _answer("late-vllm-missing-eos", row, "RUNAWAY_NO_STOP EXACT_LOOP NEAR_DUPLICATE COUNTER_LOOP", rng)
