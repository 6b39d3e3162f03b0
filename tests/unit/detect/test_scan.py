"""The detector's verdicts on complete documents."""

import random

import pytest

from glm4_deploy.detect import scan
from glm4_deploy.detect.finding import LoopVerdict

PROSE = (
    "The lighthouse stood at the end of the long stone pier. Every evening the keeper climbed the stairs, lit the lamp "
    "and wrote the weather in his book. Ships passed in the dark, and none of them knew his name. "
)
LITANY = "\n".join(f"Saint {name}, pray for us." for name in ("Peter", "Paul", "Andrew", "James", "John", "Thomas"))
MULTIPLICATION = "\n".join(f"7 x {times} = {7 * times}" for times in range(1, 13))
JSON = "[" + ", ".join(f'{{"id": {n}, "email": "user{n}@example.com"}}' for n in range(1, 60)) + "]"
BOTTLES = "\n".join(f"{n} green bottles hanging on the wall,\nAnd if one should fall," for n in range(10, 0, -1))
BASE64 = "f0VMRgIBAQ" + "A" * 900 + "MACHgAAQ=="
COUNT = ", ".join(map(str, range(1, 501)))
STEPS = "\n".join(f"Step {n}: Check the cable and try again." for n in range(1, 40))


HOSTS = "\n".join(f"192.168.1.{n}    node{n}.local    node{n}" for n in range(1, 97))
ENUM = "enum Level {\n" + "".join(f"    LEVEL_{n} = {n},\n" for n in range(30))
SHEEP = "\n".join(f"{n} sheep jumped over the fence." for n in range(1, 41))
KNITTING = "\n".join(f"Row {n}: {'Knit' if n % 2 else 'Purl'} across." for n in range(1, 25))
OUTRO = "Hey now, hey now\nDon't let the sun go\n\n" + "Na na na na na na na, na na na na, hey now\n" * 8
FA_LA = "\n".join(["fa la la la la, la la la la, fa la la la la, la la la la"] * 4)
BOX = "+" + "-" * 60 + "+\n" + ("|" + " " * 60 + "|\n") * 9
CLAUSES = "\n\n".join(
    f"{n}. {what}. The {one} shall not be liable to the {two} for any loss or damage arising out of or in connection "
    f"with {what.lower()} under this Agreement, except where such loss is caused by the gross negligence of the {one}."
    for n, (what, one, two) in enumerate(
        [
            ("Payment", "Supplier", "Customer"),
            ("Delivery", "Customer", "Supplier"),
            ("Warranty", "Supplier", "Licensee"),
            ("Assignment", "Licensor", "Customer"),
        ],
        start=1,
    )
)
DIALOGUE = "\n".join(f"User: Question {n * n}?\nAssistant: Answer {n * 7}." for n in range(6))
EMPTY_ROWS = "<table>\n" + "<tr><td></td><td></td></tr>\n" * 30 + "</table>"
SKELETON = "| Day | Task | Done |\n|---|---|---|\n" + "|   |   |   |\n" * 31
ZEROS = "a,b,c,d,e,f,g,h\n" + "0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n" * 40
NULLS = '{"values": [' + ", ".join(["null"] * 120) + "]}"
HEX_ZEROS = ("00 " * 16 + "\n") * 32
UNROLLED = "void f() {\n" + "    sum += *p++;\n" * 32 + "}\n"
CARDS = '<div class="card">\n  <h3>Card title</h3>\n  <p>Some quick example text to build on.</p>\n</div>\n' * 9
DRUMS = "HH|" + "x-x-x-x-" * 16 + "|\nBD|" + "o-------" * 16 + "|"
CHORDS = "C  G  Am  F\n" * 16
RESULTS = ", ".join(random.Random(1).choices(["yes", "no"], k=300))


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (PROSE, {}),
        (HOSTS, {}),
        (ENUM, {"finish_reason": "length"}),
        (SHEEP, {"prompt": "Help me fall asleep by counting sheep."}),
        (KNITTING, {"finish_reason": "stop"}),
        (OUTRO, {"finish_reason": "stop"}),
        (FA_LA, {"finish_reason": "stop"}),
        (BOX, {"finish_reason": "length"}),
        (CLAUSES, {"finish_reason": "stop"}),
        (DIALOGUE, {"finish_reason": "length"}),
        (RESULTS, {}),
        (EMPTY_ROWS, {}),
        (EMPTY_ROWS, {"finish_reason": "stop"}),
        (EMPTY_ROWS.removesuffix("</table>"), {}),
        ("<tr><td></td></tr>\n" * 100, {"prompt": "Create an HTML table with 100 empty rows"}),
        (SKELETON, {"finish_reason": "stop"}),
        (ZEROS, {}),
        (NULLS, {"finish_reason": "stop"}),
        (HEX_ZEROS, {"finish_reason": "stop"}),
        (UNROLLED, {"finish_reason": "stop"}),
        (CARDS, {"finish_reason": "stop"}),
        (DRUMS, {}),
        (CHORDS, {"finish_reason": "stop"}),
        ("こんにちは means hello; مرحبا, привет and שלום do too. GLM-4は使いやすいPythonライブラリ。" * 2, {}),
        (PROSE, {"finish_reason": "length"}),
        (LITANY, {"finish_reason": "stop"}),
        (MULTIPLICATION, {}),
        (JSON, {}),
        (BOTTLES, {"finish_reason": "stop"}),
        (BASE64, {"finish_reason": "stop"}),
        (COUNT, {}),
        (COUNT, {"prompt": "Count from 1 to 500.", "finish_reason": "length"}),
        ("hello " * 50, {"prompt": "Repeat hello 50 times."}),
        ("好" * 100, {"prompt": "请把“好”重复100遍"}),
        ("-" * 80, {}),
        ("Hahahahahahaha! " + "=" * 60, {"finish_reason": "stop"}),
        ("Paris.", {"logprobs": [None, -0.1, -0.2], "token_ids": [5, 0, 9]}),
        (PROSE, {"logprobs": [-0.6] * 60}),
        ("The template writes <|user|> and then <|assistant|>.", {"finish_reason": "stop"}),
    ],
)
def test_good_texts_are_clean(text: str, fields: dict[str, object]) -> None:
    found = scan(text, **fields)  # type: ignore[arg-type]
    assert (found.verdict, found.start, found.period, found.repeats) == (LoopVerdict.CLEAN, None, None, None), found.why


@pytest.mark.parametrize(
    ("text", "fields", "verdict", "start"),
    [
        ("", {}, LoopVerdict.EMPTY, 0),
        (" \n\t\u3000", {}, LoopVerdict.WHITESPACE, 0),
        ('{"a": 1' + "\n" * 300, {}, LoopVerdict.WHITESPACE, 7),
        ("Sure" + "!" * 64, {}, LoopVerdict.NAN_COLLAPSE, 4),
        ("", {"logprobs": [None]}, LoopVerdict.NAN_COLLAPSE, 0),
        ("", {"logprobs": [float("nan")] * 3}, LoopVerdict.NAN_COLLAPSE, 0),
        ("'s" * 60 + "t", {"finish_reason": "length"}, LoopVerdict.EXACT_LOOP, 0),
        ("'s" * 60 + "t", {}, LoopVerdict.EXACT_LOOP, 0),
        ("It" + "'s" * 60 + "t", {"finish_reason": "stop"}, LoopVerdict.EXACT_LOOP, 2),
        ("na " * 40 + "\n\nSorry, I seem to repeat myself.", {"finish_reason": "length"}, LoopVerdict.EXACT_LOOP, 0),
        ("0" * 400 + "<|endoftext|>", {}, LoopVerdict.EXACT_LOOP, 0),
        ("! no" + "!" * 60 + " the", {"finish_reason": "length"}, LoopVerdict.NAN_COLLAPSE, 4),
        (STEPS + "\n<|user|>", {}, LoopVerdict.COUNTER_LOOP, 0),
        (STEPS + " the", {"finish_reason": "length"}, LoopVerdict.COUNTER_LOOP, 0),
        ("<tr><td></td><td></td></tr>\n" * 200, {"finish_reason": "stop"}, LoopVerdict.EXACT_LOOP, 0),
        ("<tr><td></td><td></td></tr>\n" * 30 + "<tr><t", {"finish_reason": "length"}, LoopVerdict.EXACT_LOOP, 0),
        ("<unk>" * 30, {"token_ids": [0] * 30}, LoopVerdict.NAN_COLLAPSE, 0),
        (PROSE + "\n" + "again and " * 40, {}, LoopVerdict.EXACT_LOOP, len(PROSE) + 1),
        (PROSE * 4, {"finish_reason": "length"}, LoopVerdict.EXACT_LOOP, 0),
        ("灯塔立在海边。" * 40, {}, LoopVerdict.EXACT_LOOP, 0),
        (" is" * 10, {"finish_reason": "length"}, LoopVerdict.EXACT_LOOP, 0),
        ("hello " * 500, {"prompt": "Repeat hello 50 times."}, LoopVerdict.EXACT_LOOP, 0),
        ("no " * 200, {"prompt": "Do not repeat yourself."}, LoopVerdict.EXACT_LOOP, 0),
        (STEPS, {}, LoopVerdict.COUNTER_LOOP, 0),
        (STEPS, {"prompt": "List the steps to fix my router."}, LoopVerdict.COUNTER_LOOP, 0),
        (", ".join(map(str, range(1, 1400))), {"finish_reason": "length"}, LoopVerdict.COUNTER_LOOP, 0),
        (", ".join(map(str, range(1, 900))), {"prompt": "Count from 1 to 100."}, LoopVerdict.COUNTER_LOOP, 0),
        ("\n".join(f"第{n}步：检查电缆，然后重试。" for n in range(1, 30)), {}, LoopVerdict.COUNTER_LOOP, 0),
        ("The answer is 7" + "!" * 20, {"finish_reason": "length"}, LoopVerdict.NAN_COLLAPSE, 15),
        ("\u200b\ufeff" * 9, {"finish_reason": "stop"}, LoopVerdict.WHITESPACE, 0),
        (
            "e-mail the plan today; email the plan today; E-Mail The Plan Today; " * 9 + "e-mail",
            {},
            LoopVerdict.EXACT_LOOP,
            0,
        ),
        ("Blue.\nuser\nAnd?\nassistant\nRed.\nuser\nSo?", {"finish_reason": "length"}, LoopVerdict.RUNAWAY_NO_STOP, 6),
        ("xq zv lamp on of tree gorp it was then blue sky of " * 2, {"logprobs": [-7.5] * 30}, LoopVerdict.SALAD, 0),
        ("Blue.<|user|>\nAnd now?<|assistant|>\nGreen.", {"finish_reason": "length"}, LoopVerdict.RUNAWAY_NO_STOP, 5),
        (PROSE + "Then", {"finish_reason": "length", "token_ids": [5, 151336, 7]}, LoopVerdict.RUNAWAY_NO_STOP, None),
        (PROSE * 2, {"finish_reason": "length", "prompt": "Answer in one word."}, LoopVerdict.RUNAWAY_NO_STOP, 0),
    ],
)
def test_bad_texts_are_named(text: str, fields: dict[str, object], verdict: LoopVerdict, start: int | None) -> None:
    found = scan(text, **fields)  # type: ignore[arg-type]
    assert (found.verdict, found.start) == (verdict, start), found.why
    assert found.degenerate
    assert 0 < found.confidence <= 1
    assert found.why


def test_near_duplicates() -> None:
    rng = random.Random(1)
    words = PROSE.split()
    copies = []
    for _ in range(8):
        copy = list(words)
        copy[rng.randrange(len(copy))] = rng.choice(["river", "stone", "window"])
        copies.append(" ".join(copy))
    found = scan("\n\n".join(copies))
    assert found.verdict is LoopVerdict.NEAR_DUPLICATE
    assert found.period == pytest.approx(len(PROSE), rel=0.2)
    assert found.start == 0


LONG = (
    PROSE
    + "In the morning he counted the gulls on the wall and swept the floor before anybody else in town was awake. "
)


def drifting(copies: int) -> str:
    """A long paragraph over and over, with two words changed at random places in each copy."""
    dice, out = random.Random(3), []
    for _ in range(copies):
        words = LONG.split()
        for place in dice.sample(range(len(words)), 2):
            words[place] = dice.choice(["river", "stone", "window", "often", "cold"])
        out.append(" ".join(words))
    return "\n\n".join(out)


def test_a_long_paragraph_that_drifts_is_reported_within_four_copies() -> None:
    text = drifting(4)
    assert scan(text).verdict is LoopVerdict.NEAR_DUPLICATE
    assert not scan(text, prompt="Give me four versions of this paragraph.").degenerate
    assert scan(drifting(20), prompt="Give me four versions of this paragraph.").degenerate


def test_a_template_that_is_filled_in_is_not_reported_that_early() -> None:
    letters = [f"Dear {name}, {LONG}We shall see you in {city} on the day. " for name, city in
               [("Ann", "Oslo"), ("Ben", "Rome"), ("Eva", "Bonn")]]  # fmt: skip
    assert not scan("\n\n".join(letters) + "\n\nShall I go on?").degenerate


def test_copies_that_are_written_differently() -> None:
    rng = random.Random(1)
    forms = ["e-mail the long-term plan; ", "email the long term plan; ", "E-MAIL THE LONG-TERM PLAN; "]
    found = scan("".join(rng.choices(forms, k=40)), finish_reason="length")
    assert (found.verdict, found.start) == (LoopVerdict.NEAR_DUPLICATE, 0)


@pytest.mark.parametrize("unit", ["'s", "the lamp ", PROSE, "灯塔立在海边。"])
def test_odd_tokens_do_not_hide_a_loop(unit: str) -> None:
    dice = random.Random(1)
    odd = "".join(unit + dice.choice(["", "", "", "t", " xy", "的"]) for _ in range(max(1200 // len(unit), 8)))
    assert scan(odd).degenerate


def test_a_count_that_skips_and_errs_is_a_counter_loop() -> None:
    dice = random.Random(1)
    numbers = [n + 2 * (n > 9) if dice.random() < 0.9 else dice.randrange(99) for n in range(40)]
    text = "\n".join(f"Step {n}: Check the cable and try again." for n in numbers)
    assert scan(text).verdict is LoopVerdict.COUNTER_LOOP


@pytest.mark.parametrize("words", [["'s", "'t"], ["的", "了"], [" the", " of", " a"]])
def test_a_few_words_in_no_order(words: list[str]) -> None:
    text = "".join(random.Random(1).choices(words, k=600))
    assert scan(text).verdict is LoopVerdict.NEAR_DUPLICATE


def test_scripts_that_change_within_words_are_salad_without_logprobs() -> None:
    pieces = ["ение", " der", "の", "的", " qué", "ார", " אל", "ção", "();", " foo", "ค", " ılı", "ﻙ", " Ž"]
    found = scan("".join(random.Random(1).choices(pieces, k=200)))
    assert found.verdict is LoopVerdict.SALAD


def test_an_exact_loop_is_reported_with_its_unit_and_its_number_of_copies() -> None:
    found = scan("Well. " + "the lamp is lit, " * 30)
    assert found.period == len("the lamp is lit, ")
    assert sorted(found.unit) == sorted("the lamp is lit, ")
    assert found.repeats == pytest.approx(30, abs=0.5)
    assert "30" in found.why


def test_ten_million_letters_and_a_hostile_text_are_judged() -> None:
    found = scan("a" * 10_000_000)
    assert found.verdict is LoopVerdict.EXACT_LOOP
    assert found.why.endswith("; 10000000 in all")
    assert scan("\0" * 100_000).degenerate
    # Every suffix of a Fibonacci word recurs: the worst case for a search for periods.
    one, two = "a", "ab"
    while len(two) < 60_000:
        one, two = two, two + one
    scan(two)
