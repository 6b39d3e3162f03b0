"""Few lines over and over, rows by their length, quotations that recover, and salad without log probabilities."""

import random
from itertools import product

import pytest

from glm4_deploy.detect import Stream, scan
from glm4_deploy.detect.finding import LoopVerdict
from glm4_deploy.detect.order import no_order

METHOD = "    public String getName() {\n        return this.name;\n    }\n\n"
CALL = (
    'Let me look again.\n<tool_call>\n{"id": "call_%08x", "name": "read_file", "path": "src/main.py"}\n</tool_call>\n'
)
SENTENCES = [
    "The harbour is closed in winter.",
    "Nobody has seen the keeper since.",
    "The lamp was lit again on Sunday.",
    "Ask at the second house on the left.",
]
AFTER = (
    "The copies follow each other because greedy decoding prefers what it has just written. Check the scales of the "
    "cache first. Then compare the log probabilities with those of the reference. Keep the log of the failing run."
)
COMMON = "the of and to in is that for it was on are as with by at this from they be".split()  # noqa: SIM905
PLAIN = (
    "harbour lamp winter keeper stone ladder copper window garden bottle silver market carpet orange pillow button "
    "castle thunder basket mirror candle feather kitchen planet ribbon saddle turtle velvet walnut yellow anchor "
    "barrel cactus dragon engine falcon guitar hammer island jacket kettle lizard magnet needle oyster pepper"
)
WORDS = PLAIN.split()


@pytest.mark.parametrize("text", [METHOD * 9, "SELECT id FROM users;\nSELECT name FROM users;\n" * 12 + "SELECT id"])
def test_code_that_repeats_until_the_limit_is_a_loop(text: str) -> None:
    assert scan(text, finish_reason="length").degenerate


def test_a_long_unit_is_never_a_row() -> None:
    rows = "".join(f"    {word} = compute(left, {word[::-1]});\n" for word in WORDS[:9])
    assert scan(rows * 4, finish_reason="stop").verdict is LoopVerdict.EXACT_LOOP


def test_identifiers_and_times_do_not_make_a_line_new() -> None:
    dice = random.Random(1)
    calls = "".join(CALL % dice.randrange(16**8) for _ in range(20))
    subtitles = "".join(
        f"{n}\n00:0{n // 9}:1{n % 9},250 --> 00:0{n // 9}:2{n % 9},000\nThanks for watching.\n\n" for n in range(40)
    )
    assert scan(calls, finish_reason="length").verdict is LoopVerdict.NEAR_DUPLICATE
    assert scan(subtitles, finish_reason="length").degenerate


def test_sentences_in_any_order_are_few_lines() -> None:
    text = " ".join(random.Random(1).choices(SENTENCES, k=60))
    found = scan(text)
    assert found.degenerate
    assert found.start is not None


def test_records_of_data_are_not_few_lines() -> None:
    dice = random.Random(1)
    records = "".join(f"np.float32,0x{dice.getrandbits(32):08x},0x{dice.getrandbits(32):08x},2\n" for _ in range(80))
    assert not scan(records, finish_reason="length").degenerate


def test_lines_that_go_ever_deeper() -> None:
    assert scan("".join("  " * n + "- item\n" for n in range(60))).degenerate
    assert not scan("".join("  " * (n % 9) + "- item number\n" for n in range(20))).degenerate


@pytest.mark.parametrize("quote", ["```\n{}\n```", "> {}", '"{}"'])
@pytest.mark.parametrize("unit", ["the the ", "Wait, let me check. ", "!"])
def test_a_text_about_a_loop_that_quotes_it_recovers(quote: str, unit: str) -> None:
    text = "The output looks like this:\n\n" + quote.format(unit * 90) + "\n\n" + AFTER
    stream = Stream()
    alarms = [stream.feed(text[at : at + 8]) is not None for at in range(0, len(text), 8)]
    assert any(alarms)
    assert not alarms[-1]
    assert stream.close("stop") == scan(text, finish_reason="stop")
    assert not scan(text, finish_reason="stop").degenerate


def test_a_quoted_loop_that_never_ends_is_a_loop() -> None:
    assert scan("It looks like this:\n\n```\n" + "Wait, let me check. " * 80, finish_reason="length").degenerate


@pytest.mark.parametrize(
    ("prompt", "unit", "copies"),
    [("사랑해를 100번 써줘", "사랑해 ", 100), ("Bana 45 kere 'merhaba' yaz", "merhaba\n", 45)],
)
def test_what_repeats_stands_in_the_prompt_beside_a_number(prompt: str, unit: str, copies: int) -> None:
    assert not scan(unit * copies, prompt=prompt, finish_reason="stop").degenerate
    assert scan(unit * copies * 3, prompt=prompt, finish_reason="length").degenerate


def _salad(words: list[str], count: int, join: str = " ") -> str:
    return join.join(random.Random(1).choices(words, k=count))


@pytest.mark.parametrize(
    "text",
    [
        _salad(WORDS, 200),
        _salad([*WORDS[:9], "harbourlamp", "winterkeeper"], 300, ", "),
        _salad([f"{word}, the" for word in COMMON], 200),
        " ".join(f"{word} {word}" for word in SENTENCES[0].split() + SENTENCES[1].split() + SENTENCES[2].split()),
        "Well then: " + "".join("\ufffd" if n % 5 == 0 else char for n, char in enumerate(AFTER * 2)),
        _salad(["слово ", "wort ", "单词", "단어 ", "word ", "คำ "], 200, ""),
        _salad(["{ a", "b ]", "( c", "d }", "[ e", "f )"], 120, " "),
        "G" * 30 + " " + "G" * 40,
        "".join(chr(random.Random(n).randrange(0x4E00, 0x9FA6)) for n in range(200)),
        "".join(chr(random.Random(n).randrange(0xAC00, 0xD7A4)) for n in range(200)),
        _salad([*".,-():'/_*12", "the", "and", "of", "to", " ", "\n"], 600, ""),
        _salad(["if", "foo", "return", "self", "import", "in", "def", *"(){}[]=.;:"], 400),
        ", ".join(f"the b{one}{two} {one}{two}a {two}o{one}" for one, two in product("bcdfghjk", "nrstvw")),
        _salad([*map(chr, range(0xA1, 0x240)), " "], 400, ""),
    ],
)
def test_salad_is_found_without_log_probabilities(text: str) -> None:
    assert scan(text).degenerate


@pytest.mark.parametrize(
    "text",
    [
        ", ".join(WORDS),
        "\n".join(WORDS),
        AFTER,
        "（一）总则。（二）分则。" * 2,
        "關關雎鳩在河之洲窈窕淑女君子好逑參差荇菜左右流之求之不得寤寐思服悠哉輾轉反側琴瑟友鐘鼓樂" * 2,
        _salad(list("0123456789,;"), 400),
        " ".join(map(chr, range(0xA1, 0x240))),
        "\n".join("".join(letters) for letters in product("bcdfghjk", "aeiou", "nrst")),
        _salad(["true,", "false,", "null,", "1,", "2,", "[", "],"], 400),
    ],
)
def test_lists_of_words_and_prose_are_no_salad(text: str) -> None:
    assert not scan(text, finish_reason="stop").degenerate


PROSE = {
    "English": (
        "The harbour was built when the old town had grown too small for its ships. Most of the stone came from a "
        "quarry behind the hill, and it took the workers nine years to carry it down. When the last wall was finished, "
        "the council found that the water had fallen and that no large ship could reach it. For some time nobody knew "
        "what to do with it, until a widow from the north asked for permission to breed oysters there. She was allowed "
        "to use the western half, as long as she paid a tenth of what she earned. In a few years she had become the "
        "richest woman on the coast, and the council wished that it had asked for more."
    ),
    "German": (
        "Der Hafen wurde gebaut, als die alte Stadt für ihre Schiffe zu klein geworden war. Die meisten Steine kamen "
        "aus einem Bruch hinter dem Hügel, und die Arbeiter brauchten neun Jahre, um sie hinunter zu tragen. Als die "
        "letzte Mauer fertig war, stellte der Rat fest, dass das Wasser gefallen war und kein großes Schiff mehr "
        "anlegen konnte. Eine Zeit lang wusste niemand, was man damit tun sollte, bis eine Witwe aus dem Norden um die "
        "Erlaubnis bat, dort Austern zu züchten. Sie durfte die westliche Hälfte nutzen, solange sie den zehnten Teil "
        "von dem zahlte, was sie verdiente. Nach wenigen Jahren war sie die reichste Frau an der Küste."
    ),
    "Chinese": (
        "这个港口是在旧城已经容不下船只的时候修建的。大部分石头来自山后面的采石场，工人们用了九年的时间才把它们运下来。"
        "最后一面墙完工的时候，人们发现水位已经下降，大船再也不能靠岸了。有一段时间，谁也不知道应该怎么办，直到一位从北方来的"
        "寡妇请求在那里养殖牡蛎。她可以使用西边的一半，只要交出收入的十分之一。几年以后，她成了海边最富有的女人，而我们都希望当初能要得更多。"
    ),
}


@pytest.mark.parametrize("language", PROSE)
def test_words_in_no_order(language: str) -> None:
    text = PROSE[language]
    space = "" if language == "Chinese" else " "
    words = [char for char in text if char not in "，。"] if language == "Chinese" else text.split()
    random.Random(3).shuffle(words)
    assert no_order(space.join(words)) is not None
    assert no_order(text) is None


def test_placeholder_text_and_lists_are_in_no_order_and_fine() -> None:
    words = PROSE["English"].lower().replace(",", "").replace(".", "").split()
    random.Random(1).shuffle(words)
    assert no_order(" ".join(["lorem", "ipsum", *words])) is None
    assert no_order("\n".join(word for word in words if len(word) > 4) * 2) is None


def test_rows_without_a_key_until_the_cut() -> None:
    columns = ["Peru", "Chad", "Fiji"], ["Lima", "Suva"], ["one million", "two million"], ["from the statistics office"]
    rows = [f"| {' | '.join(cells)} |\n" for cells in product(*columns)]
    table, prompt = _salad(rows, 90, ""), "Compare Peru and Chad in a table."
    assert scan(table, prompt=prompt, finish_reason="length").degenerate
    assert not scan(table, prompt=prompt, finish_reason="stop").degenerate
    keyed = "".join(f"| item {n} of Peru {row}" for n, row in enumerate(table.splitlines(keepends=True)))
    assert not scan(keyed, prompt=prompt, finish_reason="length").degenerate


def _methods(names: list[str]) -> str:
    body = "(data):\n    result = []\n    for item in data:\n        if item is not None:\n            "
    return "".join(f"def get_{name}{body}result.append(item.{name})\n    return result\n\n\n" for name in names)


@pytest.mark.parametrize(("count", "is_loop"), [(30, True), (12, False)])
def test_methods_that_differ_by_a_name_until_the_cut(count: int, is_loop: bool) -> None:
    code = _methods([f"{one}{other}" for one, other in product("abcdef", "uvwxyz")][:count])
    prompt = "Write a function that removes None from a list."
    assert scan(code, prompt=prompt, finish_reason="length").degenerate is is_loop
    assert not scan(code, prompt=prompt, finish_reason="stop").degenerate


def test_a_list_that_was_requested_does_not_say_the_same_again() -> None:
    items = [f"- {how} {what}\n" for how, what in product(["Improved", "Better"], ["speed", "safety", "wording"])]
    listed, prompt = _salad(items, 90, ""), "List the items of the new version."
    assert scan(listed, prompt=prompt, finish_reason="length").degenerate
    assert not scan("".join(items), prompt=prompt, finish_reason="length").degenerate


@pytest.mark.parametrize("text", ["<think>\n\n</think>\n", "```\n```", "<|assistant|>\n", "[gMASK]<sop>"])
def test_an_answer_of_marks_alone_is_empty(text: str) -> None:
    assert scan(text, finish_reason="stop").verdict is LoopVerdict.EMPTY


def test_fields_of_a_query_in_any_order_are_a_loop_and_entities_are_none() -> None:
    fields = ["garden=ladder&", "violin=copper&", "island=anchor&"]
    assert scan("https://example.org/?" + _salad(fields, 120, ""), finish_reason="length").degenerate
    assert not scan("R&D of A&B Ltd. and C&A &amp; D. " + PROSE["English"], finish_reason="length").degenerate


def test_names_written_together_from_a_few_words() -> None:
    words = ["toggle", "attach", "hook", "topic", "job"]
    names = ["_" + one for one in words] + [f"/{one}{other}" for one, other in product(words, words)]
    assert scan(_salad(names, 300, ""), finish_reason="length").verdict is LoopVerdict.SALAD


def test_a_few_capitals_and_words_written_together() -> None:
    pieces = ["Item", "O", "_", "t", "_\n"]
    assert scan(_salad(pieces, 600, ""), finish_reason="length").degenerate
    assert not scan(_salad(["A", "C", "G", "T"], 1200, ""), finish_reason="length").degenerate


@pytest.mark.parametrize(("count", "is_loop"), [(400, True), (120, False)])
def test_a_page_of_a_few_emoji(count: int, is_loop: bool) -> None:
    assert scan(_salad(list("😀🎉🔥💪✨🙌"), count, "")).degenerate is is_loop


ACIDS = "Ala Arg Asn Asp Cys Gln Glu Gly His Ile Leu Lys Met Phe Pro Ser Thr Trp Tyr Val".split()  # noqa: SIM905


@pytest.mark.parametrize("kinds", [12, 14, 16, 20])
def test_a_peptide_in_three_letter_code_is_no_salad(kinds: int) -> None:
    for peptide in (_salad(ACIDS[:kinds], 200, ""), f"H{_salad(ACIDS[:kinds], 200, '')}OH"):
        for text in (peptide, f"The sequence is:\n\n{peptide}"):
            assert not scan(text, finish_reason="stop").degenerate
            assert not scan(text, finish_reason="length").degenerate


@pytest.mark.parametrize(
    ("prompt", "is_loop"),
    [
        ("Send me 300 heart emojis in mixed colours, please.", False),
        ("Fill this line with three hundred hearts.", False),
        ("Answer with emojis only, as many as you can.", False),
        ("Réponds avec des émoticônes.", False),
        ("Ответь только смайликами", False),
        ("请只用表情符号回答。", False),
        ("絵文字だけで答えて", False),
        ("이모지로만 대답해줘", False),
        ("Answer with 20 emojis.", True),
        ("How are you?", True),
    ],
)
def test_a_page_of_emoji_was_requested(prompt: str, is_loop: bool) -> None:
    assert scan(_salad(list("💙💚💛💜🧡🖤"), 300, ""), prompt=prompt, finish_reason="stop").degenerate is is_loop


MARKS = {
    "operators": (
        "The assignment operators in C are (=, +=, -=, *=, /=, %=, &=, |=, ^=). The comparison operators are "
        "(==, !=, <, >, <=, >=). Compound ones are [=, +=], {=, -=} and (=, *=)."
    ),
    "special characters": (
        "In YAML the following characters are special: {, }, [, ], ,, &, *, #, ?, |, -, <, >, =, !, %, @, and a key "
        "ends with :, so a value that holds {, [, or : must be quoted."
    ),
    "the shell": (
        "Quote these in bash: (, ), {, }, [, ], =, :, and in vim: {, }, (, ), [, ], =, ,. A test is [ = ] or (=)."
    ),
    "Haskell": (
        "pair = (,) <$> a <*> b\ntriple = (,,) <$> a <*> b <*> c\nback = (=<<)\nsame = [(==), (/=)]\n"
        "both = liftA2 (,) [1] [2]\nmore = zipWith3 (,,) as bs cs\n"
    ),
    "shorthand": (
        "Call `f(a=, b=)`, `g(c=, d=)` or `h(e=, i=)`. In Ruby it is `User.new(name:, age:, email:)` and "
        "`Post.new(title:, body:, author:)`.\n"
    ),
}


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("ended", ["stop", "length", None])
def test_lists_of_operators_and_marks_are_no_salad(kind: str, ended: str | None) -> None:
    for text in (MARKS[kind], f"```\n{MARKS[kind]}```\n", MARKS[kind] + "".join(MARKS.values())):
        assert not scan(text, finish_reason=ended).degenerate


def test_glyphs_of_troff_are_no_brackets() -> None:
    assert not scan("".join(f".tr \\[char{n}]\\[S{n}]\n" for n in range(160, 260)), finish_reason="stop").degenerate


def test_random_words_and_a_repetition_in_russian_were_requested() -> None:
    pairs = [f"{one} {other}" for one, other in product(WORDS[:9], WORDS[:9])]
    assert not scan(_salad(pairs, 90, ", "), prompt="Give me random word pairs as passphrases").degenerate
    assert not scan("Я больше не буду. " * 60, prompt="Напиши 60 раз: Я больше не буду").degenerate
    assert scan("Я больше не буду. " * 60, prompt="Напиши 60 слов о море").degenerate
