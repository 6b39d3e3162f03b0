"""Calibration samples: the card's lengths, the seed's order, and a clear error if the data is not enough."""

import json
from pathlib import Path

import pytest

from glm4_deploy.checkpoint.quantize import Conversation, Sample, draw_samples, text_of
from glm4_deploy.errors import UsageError


def tokenize(text: Conversation | str) -> Sample:
    """One token per word."""
    words = text if isinstance(text, str) else " ".join(turn["content"] for turn in text)
    return [len(word) for word in words.split()]


def write(path: Path, lengths: list[int]) -> str:
    rows = [
        {"messages": [{"role": "user", "content": "x" * (1 + number % 9) + " y" * (length - 1)}]}
        for number, length in enumerate(lengths)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path.name


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    short = [100, 255, 256, 400, 900, 1023] * 40
    return [write(tmp_path / "chat.jsonl", short), write(tmp_path / "long.jsonl", [1024, 1500, 9000] * 40)]


@pytest.mark.parametrize("samples", [1, 10, 33, 120])
def test_nine_in_ten_are_short(samples: int, sources: list[str], tmp_path: Path) -> None:
    taken, drawn = draw_samples(sources, tokenize, samples=samples, seed=1, directory=tmp_path)
    lengths = sorted(map(len, taken))
    assert len(taken) == samples and lengths[0] >= 256 and lengths[-1] <= 2048
    assert drawn.long == sum(length >= 1024 for length in lengths) == round(samples * 0.1)
    assert (drawn.shortest, drawn.longest, drawn.tokens) == (lengths[0], lengths[-1], sum(lengths))
    assert sum(drawn.by_source.values()) == samples
    assert f"{100 * drawn.short / samples:.1f} %" in drawn.table()


def test_the_same_seed_draws_the_same_samples_and_another_seed_others(sources: list[str], tmp_path: Path) -> None:
    first, again, other = (
        draw_samples(sources, tokenize, samples=60, seed=seed, directory=tmp_path) for seed in (7, 7, 8)
    )
    assert first == again
    assert first[1].digest != other[1].digest


def test_too_little_data_is_reported_with_what_is_missing(tmp_path: Path) -> None:
    name = write(tmp_path / "few.jsonl", [300] * 5 + [10] * 20)
    with pytest.raises(UsageError, match=r"only 5 of 20 samples: 13 of 256 .* 2 of 1024 .* \(20 texts") as caught:
        draw_samples([name], tokenize, samples=20, seed=0, directory=tmp_path)
    assert "--dataset" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [("no.jsonl", None), ("bad.jsonl", "{"), ("bytes.txt", b"\xff"), ("what.csv", "a,b"), ("deep.json", "[" * 100_000)],
)
def test_a_source_that_cannot_be_read(name: str, content: str | bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError):
        draw_samples([name], tokenize, samples=1, seed=0, directory=tmp_path)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("plain", "plain"),
        ({"text": "t"}, "t"),
        ({"prompt": "p"}, "p"),
        ({"messages": [{"role": "user", "content": "c", "extra": 1}]}, [{"role": "user", "content": "c"}]),
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": []}, None),
        ({"other": 1}, None),
        (7, None),
    ],
)
def test_rows_of_every_kind(row: object, text: object) -> None:
    assert text_of(row) == text
