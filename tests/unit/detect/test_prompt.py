"""What a prompt allows: numbers in digits and words, in several languages."""

import pytest

from glm4_deploy.detect import scan
from glm4_deploy.detect.prompt import request_of


@pytest.mark.parametrize(
    ("prompt", "limit"),
    [
        ("Write 'I will not talk in class.' fifty times.", 50),
        ("Write the word yes twenty times:", 20),
        ("Give me one hundred lines of 'all work and no play'.", 100),
        ("Print OK 20x", 20),
        ("I need 20 copies of this sentence.", 20),
        ("Say hello two hundred times.", 200),
        ("Écris bonjour vingt fois.", 20),
        ("Schreib Hallo fünfzig mal.", 50),
        ("把“你好”写三十遍", 30),
        ("重复二十五次", 25),
    ],
)
def test_a_request_to_repeat_is_read_with_its_number(prompt: str, limit: int) -> None:
    request = request_of(prompt)
    assert (request.repeat, request.limit) == (True, limit)


@pytest.mark.parametrize("prompt", ["30 day plan please", "给我一个三十天的训练计划", "a schedule for twelve weeks"])
def test_a_plan_may_count_as_far_as_the_prompt_says(prompt: str) -> None:
    request = request_of(prompt)
    assert request.count
    assert request.limit in (12, 30)


def test_a_plan_without_a_number_excuses_no_counter() -> None:
    assert not request_of("What is a good plan for the days ahead?").count


def test_what_the_prompt_asked_for_is_clean_and_more_of_it_is_not() -> None:
    line = "I will not talk in class.\n"
    prompt = "Write 'I will not talk in class.' fifty times."
    assert not scan(line * 50, prompt=prompt, finish_reason="stop").degenerate
    assert scan(line * 120, prompt=prompt, finish_reason="length").degenerate
    assert scan(line * 50, prompt="What are the rules in class?", finish_reason="stop").degenerate
