"""Shapes of what real models wrote when they broke: cut off with nothing new, one character, turns within a line."""

import random

import pytest

from glm4_deploy.detect import scan
from glm4_deploy.detect.finding import LoopVerdict
from glm4_deploy.detect.prompt import request_of

CODE = "def substrcount(text, part):\n    return text.count(part)\n\n"
PART = "_or_underload_or_full_or_overflow"


def growing(copies: int) -> str:
    """Each name is longer than the one before it: no two lines are equal, and nothing in them is new."""
    return CODE + "".join(
        f"    def print_stack{PART * n}(stack):\n        return [stack[0], stack[1]]\n\n" for n in range(copies)
    )


def counting(rows: int) -> str:
    return CODE + "".join(f"{n}. console.log(factorial({5 * n}));\n" for n in range(8, 8 + rows))


@pytest.mark.parametrize("text", [growing(16), counting(60)])
def test_a_text_that_was_cut_off_with_nothing_new_is_a_loop(text: str) -> None:
    found = scan(text, finish_reason="length")
    assert found.degenerate
    assert "until the token limit" in found.why
    assert found.start is not None
    assert not scan(text, finish_reason="stop").degenerate, "it may have been asked for"


def test_a_request_to_count_excuses_a_count_but_not_for_a_program() -> None:
    text = counting(60)
    assert not scan(
        text, prompt="List the factorials of 40, 45, 50 and so on up to 335.", finish_reason="length"
    ).degenerate
    assert scan(text, prompt="Write a function that counts to a number.", finish_reason="length").degenerate


def test_what_a_program_does_is_no_request() -> None:
    asked = request_of("Write a python function that returns counts the number of times `part` occurs in `text`")
    assert not asked.count
    assert not asked.repeat
    calls = CODE + 'print(substrcount("hello world", "ll")) # should return 1\n' * 50
    assert scan(
        calls, prompt="Write a function that counts the number of times a part occurs", finish_reason="length"
    ).degenerate


def test_numbers_of_data_are_no_count() -> None:
    dice = random.Random(1)
    rows = "".join(f"{n}, {dice.random() * 100:.2f}, {dice.random() * 100:.2f}\n" for n in range(200))
    assert not scan(rows, finish_reason="length").degenerate


def test_a_numbered_list_of_one_item_is_a_loop() -> None:
    names = "Echo Rain Snow Light Stone River Cloud Ember Frost".split()  # noqa: SIM905
    head = "".join(f"{n}. **{name}**: A {name.lower()} nobody has seen.\n" for n, name in enumerate(names, start=1))
    copies = "".join(f"{n}. **Snowball**: Winter's gentle throw.\n" for n in range(10, 25))
    prompt = "Write 24 short stories under ten words"
    assert scan(head + copies, prompt=prompt, finish_reason="stop").verdict is LoopVerdict.EXACT_LOOP
    sheet = "".join(f"{n}. Name: ____________ Phone: __________ Time: ______\n" for n in range(1, 25))
    assert not scan(sheet, prompt="Make a sheet", finish_reason="stop").degenerate


@pytest.mark.parametrize("text", ["They were preparing for a trip, or" + "3" * 80, "Here it is.\n" + "`" * 190])
def test_one_character_until_the_limit(text: str) -> None:
    assert scan(text, finish_reason="length").verdict is LoopVerdict.EXACT_LOOP


def test_a_fraction_may_have_one_digit() -> None:
    assert not scan("One third is 0." + "3" * 80, finish_reason="length").degenerate


def test_turns_in_the_middle_of_a_line() -> None:
    text = "Try the theatre next!### Human: Thanks, I will.### Assistant: You are welcome.### Human: What about films?"
    assert scan(text + "### Assistant: Many.", prompt="Name famous actors.").verdict is LoopVerdict.RUNAWAY_NO_STOP


def test_two_scripts_within_a_word() -> None:
    korean = "이 두 색상을 완전히 섞으면 그 색상은 {}지색입니다. 물감에서 섞으면 {}지색 물감이 만들어집니다."
    assert scan(korean.format("오ран", "오ран")).verdict is LoopVerdict.SALAD
    assert not scan(korean.format("오렌", "오렌")).degenerate
    assert not scan("東京タワーへ行きました。Токио, 도쿄, 東京: 國家의 이름." * 2).degenerate


def test_capitals_in_no_order() -> None:
    dice = random.Random(3)
    kinds = ["JSON", "OS", "dC", "idade", "XML", "CSV", ":", ";", "/", ",", "?", "-", ".", "|"]
    assert scan(" ".join(dice.choices(kinds, k=400)), finish_reason="length").degenerate
