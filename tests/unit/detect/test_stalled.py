"""Shapes of what real models wrote when they broke: cut off with nothing new, one character, turns within a line."""

import random
from collections.abc import Iterator

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


def test_a_text_that_was_cut_off_with_nothing_new_is_a_loop() -> None:
    found = scan(growing(16), finish_reason="length")
    assert found.verdict is LoopVerdict.NEAR_DUPLICATE
    assert "until the token limit" in found.why
    assert found.start is not None
    assert not scan(growing(16), finish_reason="stop").degenerate, "it may have been asked for"
    assert not scan(growing(16), prompt="Give me a list of names", finish_reason="length").degenerate


def hanoi(disks: int, start: str, over: str, end: str) -> Iterator[str]:
    if disks:
        yield from hanoi(disks - 1, start, end, over)
        yield f"Move disk {disks} from {start} to {end}.\n"
        yield from hanoi(disks - 1, over, start, end)


DICE = random.Random(11)
HANDS = ("rock", "paper", "scissors")
SAYS_LITTLE = {
    "moves": "".join(hanoi(7, "A", "B", "C")),
    "truth table": "".join("|" + "|".join("TF"[(row >> bit) & 1] for bit in range(6)) + "|\n" for row in range(64)),
    "matrix": "".join("  [" + ", ".join(DICE.choices("01", k=30)) + "],\n" for _ in range(30)),
    "tablature": "".join(f"{DICE.choice('eBGDAE')}|{'-'.join(DICE.choices('---023', k=16))}|\n" for _ in range(60)),
    "rounds": "".join(
        f"Round {n}: Ann plays {DICE.choice(HANDS)}, Bob plays {DICE.choice(HANDS)}.\n" for n in range(60)
    ),
    "calendar": "".join(f'    <td class="day">{day % 31 + 1}</td>\n' for day in range(56)),
    "points": "".join(f'  {{"x": {DICE.randrange(99)}, "y": {DICE.randrange(99)}}},\n' for _ in range(60)),
    "keyframes": "".join(f"  {n}% {{ transform: translateX({3 * n}px); }}\n" for n in range(60)),
}


@pytest.mark.parametrize("kind", SAYS_LITTLE)
def test_short_lines_may_say_little(kind: str) -> None:
    assert not scan(SAYS_LITTLE[kind], prompt="Show it, please.", finish_reason="length").degenerate


def test_what_a_program_does_is_no_request() -> None:
    asked = request_of("Write a python function that returns counts the number of times `part` occurs in `text`")
    assert not asked.count
    assert not asked.repeat
    calls = CODE + 'print(substrcount("hello world", "ll")) # should return 1\n' * 50
    assert scan(
        calls, prompt="Write a function that counts the number of times a part occurs", finish_reason="length"
    ).degenerate


@pytest.mark.parametrize(
    "prompt",
    ["Write a movie script in which the robot repeats one line", "Say the word code over and over", "A table of codes"],
)
def test_programs_elsewhere_in_a_prompt_take_no_excuse_away(prompt: str) -> None:
    asked = request_of(prompt)
    assert asked.repeat or asked.count


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
    labels = "".join(f"{n}. The sentiment is {('positive', 'negative')[n < 4]}.\n" for n in range(1, 19))
    assert not scan(labels, prompt="Classify these reviews", finish_reason="stop").degenerate
    sheet = "".join(f"{n}. Name: ____________ Phone: __________ Time: ______\n" for n in range(1, 25))
    assert not scan(sheet, prompt="Make a sheet", finish_reason="stop").degenerate


@pytest.mark.parametrize("text", ["They were preparing for a trip, or" + "3" * 80, "Here it is.\n" + "`" * 190])
def test_one_character_until_the_limit(text: str) -> None:
    assert scan(text, finish_reason="length").verdict is LoopVerdict.EXACT_LOOP


@pytest.mark.parametrize(
    "text", ["One third is 0." + "3" * 80, "It is $0{,}" + "3" * 80, "Compute 10^60 - 1: " + "9" * 60]
)
def test_a_number_may_have_one_digit(text: str) -> None:
    assert not scan(text, finish_reason="length").degenerate


def test_a_prompt_format_may_be_quoted() -> None:
    text = "It uses two marks: `### Human:` begins a turn of yours, and `### Assistant:` one of the model's. " * 2
    assert not scan(text, prompt="Which marks does Vicuna use?", finish_reason="stop").degenerate
    assert not scan(text, prompt="Which marks are used?", finish_reason="stop").degenerate


def test_turns_in_the_middle_of_a_line() -> None:
    text = "Try the theatre next!### Human: Thanks, I will.### Assistant: You are welcome.### Human: What about films?"
    assert scan(text + "### Assistant: Many.", prompt="Name famous actors.").verdict is LoopVerdict.RUNAWAY_NO_STOP


SPOKEN_OF = [
    "俄语中最常用的是привет，它的意思是你好；单词спасибо的意思是谢谢，而告别时说пока。",
    "러시아어로 안녕은 привет이고 감사합니다는 спасибо입니다. 친한 사이에서는 привет을 씁니다.",
    "일본어로 감사합니다는 ありがとう이고, 안녕하세요는 こんにちは입니다. 친구에게는 どうも라고 합니다.",
    "ロシア語のспасибоはありがとう、приветはやあという意味です。韓国語の안녕하세요はこんにちは。",
    "泰语的你好是สวัสดี，谢谢是ขอบคุณ。阿拉伯语里مرحبا表示你好，شكرا表示谢谢。",
]


@pytest.mark.parametrize("text", SPOKEN_OF)
def test_words_of_another_language_are_spoken_of(text: str) -> None:
    assert not scan(text).degenerate


def test_two_scripts_within_a_word() -> None:
    korean = "이 두 색상을 완전히 섞으면 그 색상은 {}지색입니다. 물감에서 섞으면 {}지색 물감이 만들어집니다."
    assert scan(korean.format("오ран", "오ран")).verdict is LoopVerdict.SALAD
    assert not scan(korean.format("오렌", "오렌")).degenerate
    assert not scan("東京タワーへ行きました。Токио, 도쿄, 東京: 國家의 이름." * 2).degenerate


def test_capitals_in_no_order() -> None:
    dice = random.Random(3)
    kinds = ["JSON", "OS", "dC", "idade", "XML", "CSV", ":", ";", "/", ",", "?", "-", ".", "|"]
    assert scan(" ".join(dice.choices(kinds, k=400)), finish_reason="length").degenerate
