"""The detector on a stream: any chunks, prompt reports, bounded memory."""

import random
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glm4_deploy.detect import scan
from glm4_deploy.detect.finding import LoopVerdict
from glm4_deploy.detect.stream import Stream
from glm4_deploy.detect.thresholds import LINES, TOKENS, WINDOW

ANYTHING = st.text(st.characters(codec=None), max_size=400)
FINISH = st.sampled_from(["stop", "length", None])


@settings(max_examples=60, deadline=None)
@given(ANYTHING, ANYTHING, st.integers(0, 60), st.lists(st.integers(1, 300), max_size=20), FINISH)
def test_chunks_never_change_the_verdict(
    head: str, unit: str, copies: int, cuts: list[int], finish: str | None
) -> None:
    text = head + unit * copies
    stream, rest = Stream(), text
    for size in cuts:
        stream.feed(rest[:size])
        rest = rest[size:]
    stream.feed(rest)
    assert stream.close(finish) == scan(text, finish_reason=finish)


@settings(max_examples=60, deadline=None)
@example("FALSE", "stop")  # not a number word, and its rotations are words
@given(st.text(st.characters(codec=None), min_size=1, max_size=200), FINISH)
def test_a_planted_loop_is_found(unit: str, finish: str | None) -> None:
    found = scan("It began well. " + unit * (8200 // len(unit)), finish_reason=finish)
    assert found.degenerate
    assert found.start is not None
    # The loop may reach back into what came before it by a coincidence of characters.
    assert found.start <= len("It began well. ") + len(unit)


def test_a_loop_is_reported_at_once_and_on_every_later_call() -> None:
    stream = Stream()
    assert stream.feed("A good beginning. ") is None
    fed = 0
    while stream.feed("the same again, ") is None:
        fed += 1
        assert fed < 24
    assert stream.feed("anything") is not None
    assert stream.close("stop").verdict is LoopVerdict.EXACT_LOOP


def reported_at(stream: Stream, text: str) -> int | None:
    """Characters fed, four at a time, until the stream first reports a finding."""
    return next((at + 4 for at in range(0, len(text), 4) if stream.feed(text[at : at + 4]) is not None), None)


HEAD = "It is not so simple as that, and few of those who were there have said it in the same words since then. "
RANDOM = random.Random(1)
ESSAY = " ".join("".join(RANDOM.choices("abdeghiklmnoprstu", k=RANDOM.randint(2, 9))) for _ in range(900))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(HEAD)), st.integers(20, 4000))
def test_a_loop_is_reported_within_four_periods_or_64_tokens(head: int, period: int) -> None:
    text = HEAD[:head] + ESSAY[:period] * (5 + 300 // period)
    at = reported_at(Stream(), text)
    assert at is not None
    assert at - head <= max(256, 4 * period) + 4


def test_chinese_is_reported_within_64_tokens() -> None:
    at = reported_at(Stream(), "灯塔立在长长的石堤尽头，" * 20)
    assert at is not None
    assert at <= 64 * 1.5


@pytest.mark.parametrize("period", [60, 150, 300, 700])
def test_three_copies_and_something_else_are_not_a_loop(period: int) -> None:
    unit = ESSAY[:period]
    for head in range(0, 64, 7):
        assert reported_at(Stream(), HEAD[:head] + unit * 3 + HEAD * 3) is None


@pytest.mark.parametrize(
    ("prompt", "end", "copies"),
    [
        ("Why is the sky blue?", " ", 9),
        (None, " ", 9),
        ("Why is the sky blue?", "\n", 9),
        ("List the reasons why the sky is blue.", " ", None),
    ],
)
def test_a_sentence_that_counts_is_reported_early_unless_a_list_was_requested(
    prompt: str | None, end: str, copies: int | None
) -> None:
    unit = "Attempt {} went wrong, so the light is scattered once more." + end
    text = "".join(map(unit.format, range(1, 20)))
    at = reported_at(Stream(prompt=prompt), text)
    assert at is None if copies is None else at is not None and at <= copies * len(unit)


def test_a_count_is_reported_provisionally_until_the_text_goes_on() -> None:
    stream = Stream()
    counted = "".join(f"On day {n} the harbour was empty and no ship came in.\n" for n in range(1, 12))
    assert reported_at(stream, counted) is not None
    assert stream.final is None
    words = ESSAY.split()
    sentences = (" ".join(words[at : at + 9]) for at in range(0, 300, 9))
    assert stream.feed(". ".join(sentences)) is None


def test_short_lines_of_chinese_are_judged_by_their_columns() -> None:
    ends = ["风暴，也想起了老人", "灯塔，也想起了海边", "名字，也想起了黑夜", "天气，也想起了石堤"]
    line = "每天傍晚，守塔人爬上楼梯，点亮灯火，在本子上写下天气。船只在夜里经过，没有一艘知道他的名字。他想起了{}。\n"
    text = "".join(line.format(ends[n % 4]) + "\n" * (n % 7 == 6) for n in range(14))
    at = reported_at(Stream(), text)
    assert at is not None and at < 8 * len(line)


def test_nan_is_reported_from_the_numbers_alone() -> None:
    stream = Stream()
    assert stream.feed("", token_ids=[0] * 8) is None
    found = stream.feed("", token_ids=[0] * 8)
    assert found is not None
    assert found.verdict is LoopVerdict.NAN_COLLAPSE


def test_a_requested_repetition_is_clean() -> None:
    stream = Stream(prompt='Write "I will not talk in class." 100 times.')
    for _ in range(100):
        assert stream.feed("I will not talk in class.\n") is None
    assert not stream.close("stop").degenerate


def test_memory_is_bounded() -> None:
    stream = Stream()
    for number in range(20_000):  # everything that is bounded is full after 5,000
        stream.feed(f"{number * number % 7919} birds flew over {number * 31 % 1009} hills. ")
    kept = sum(map(len, stream._reversed_blocks))
    assert kept <= WINDOW
    assert len(stream._tokens.kept) <= 2 * TOKENS
    assert len(stream._shingles._last) <= 2 * TOKENS + 1000
    assert sys.getsizeof(stream._pending) < 1000


def test_memory_is_bounded_in_a_list_of_words() -> None:
    stream = Stream()
    for number in range(5_000):
        stream.feed("".join(chr(97 + number // 19**place % 19) for place in range(5)) + "\n")
    assert len(stream._lines._known) <= LINES.memory + 1


def _alarm_after(text: str, start: int, prompt: str | None = None) -> int:
    """Characters from `start` to the first alarm."""
    stream = Stream(prompt=prompt)
    return next(end - start for end in range(1, len(text) + 1) if stream.feed(text[end - 1 : end]) is not None)


@pytest.mark.parametrize("before", [0, 16, 33, 51])
def test_a_loop_of_ideographs_is_reported_within_64_tokens(before: int) -> None:
    text = "春江潮水连海平海上明月共潮生滟滟随波千万里何处春江无月明江流宛转绕芳甸月照花林皆似霰空里流霜不觉飞汀上"[
        :before
    ]
    assert _alarm_after(text + "这个问题的答案取决于具体情况，需要进一步分析。" * 9, before) <= 64 * 1.5


@pytest.mark.parametrize("before", [0, 70, 140, 210])
def test_prose_that_counts_is_reported_within_eight_copies(before: int) -> None:
    head = (
        "Mend the old roof before winter; the rain came through twice in March, and nobody who lives there forgot it. "
    )
    text = (head * 2)[:before]
    unit = "Attempt {} of many: Zeno will notice the steep engine or order that river in Accra.\n"
    counted = "".join(map(unit.format, range(1, 20)))
    assert _alarm_after(text + counted, before) <= 8 * len(unit)


def test_an_alarm_that_the_words_raised_holds_until_they_are_examined_again() -> None:
    stream, states = Stream(), []
    for number in range(1, 13):
        line = f"Attempt {number} of many: Zeno will notice the steep engine or order that river in Accra.\n"
        states += [stream.feed(line[at : at + 4]) is not None for at in range(0, len(line), 4)]
    assert states == sorted(states)
