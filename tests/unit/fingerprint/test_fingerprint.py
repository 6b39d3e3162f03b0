"""The file, the distance between two answers, and the verdict over many."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from glm4_deploy.errors import UsageError
from glm4_deploy.fingerprint.distance import Answer, divergence, measure
from glm4_deploy.fingerprint.judge import Comparison, judge
from glm4_deploy.fingerprint.model import (
    Arithmetic,
    Bucket,
    Fingerprint,
    PrintedText,
    dump_fingerprint,
    parse_fingerprint,
    read_fingerprint,
)
from glm4_deploy.result import Status

DEMO = Path(__file__).parents[3] / "demo/glm-4-tiny-chat-nvfp4/fingerprint.json"
SHARP: Answer = {7: -0.1, 3: -3.0, 9: -4.0, 2: -5.0, 5: -6.0}


@pytest.fixture(scope="module")
def demo() -> Fingerprint:
    return read_fingerprint(DEMO)


def answers_of(found: Fingerprint, arithmetic: Arithmetic, heat: float = 1.0, only: set[Bucket] | None = None):  # type: ignore[no-untyped-def]
    """What an engine would say that computes exactly as a reference, but with its logits divided by `heat`."""

    def row(text: PrintedText) -> list[Answer]:
        factor = heat if only is None or text.bucket in only else 1.0
        tops = text.tops[arithmetic]
        return [
            {token: value / factor for token, value in zip(ids, values, strict=True)}
            for ids, values in zip(tops.ids, tops.logprobs, strict=True)
        ]

    return [row(text) for text in found.texts]


def judged(
    found: Fingerprint, arithmetic: Arithmetic, heat: float = 1.0, only: set[Bucket] | None = None
) -> Comparison:
    return judge(found, measure(found, answers_of(found, arithmetic, heat, only)), arithmetic)


def test_the_same_answers_have_no_divergence() -> None:
    assert divergence(SHARP, SHARP) == pytest.approx(0, abs=1e-12)


def test_other_tokens_are_far_away_though_both_name_as_much_probability() -> None:
    assert divergence(SHARP, {token + 100: value for token, value in SHARP.items()}) > 2


def test_it_is_the_divergence_of_the_whole_distributions_where_both_name_the_same_tokens() -> None:
    other: Answer = {7: -0.3, 3: -2.0, 9: -3.5, 2: -4.0, 5: -5.0}
    rest, left = (1 - sum(math.exp(value) for value in one.values()) for one in (SHARP, other))
    exact = sum(math.exp(SHARP[token]) * (SHARP[token] - other[token]) for token in SHARP)
    assert divergence(SHARP, other) == pytest.approx(exact + rest * math.log(rest / left), abs=1e-9)


def test_the_file_keeps_what_was_computed(demo: Fingerprint) -> None:
    assert parse_fingerprint(dump_fingerprint(demo)) == demo
    assert demo.arithmetics == (Arithmetic.BF16, Arithmetic.W4A16, Arithmetic.W4A4)


@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_a_sound_engine_passes_and_its_arithmetic_is_seen(demo: Fingerprint, arithmetic: Arithmetic) -> None:
    found = judge(demo, measure(demo, answers_of(demo, arithmetic)))
    assert (found.status, found.arithmetic, found.off) == (Status.OK, arithmetic, ())


@pytest.mark.parametrize("arithmetic", [Arithmetic.W4A16, Arithmetic.BF16])
def test_too_flat_answers_fail_in_every_bucket(demo: Fingerprint, arithmetic: Arithmetic) -> None:
    found = judged(demo, arithmetic, heat=2.0)
    assert found.status is Status.FAIL
    assert "most buckets are off" in found.points_to


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ({Bucket.LONG_1K, Bucket.LONG_2K}, "mostly long texts are off: look at rope_theta"),
        ({Bucket.DIGITS}, "mostly digits off: look for wrong rows"),
        ({Bucket.ENGLISH, Bucket.CHINESE}, "mostly chinese, english off: look for wrong rows"),
    ],
)
def test_the_bucket_that_is_off_is_named(demo: Fingerprint, only: set[Bucket], words: str) -> None:
    found = judged(demo, Arithmetic.W4A16, heat=4.0, only=only)
    assert found.status is Status.FAIL
    assert {bucket for bucket, _ in found.off} == only
    assert words in found.points_to


def test_what_hits_every_bucket_is_not_put_down_to_the_one_that_it_hits_hardest(demo: Fingerprint) -> None:
    answers, hotter = (answers_of(demo, Arithmetic.W4A16, heat) for heat in (1.1, 4.0))
    rows = [b if text.bucket is Bucket.DIGITS else a for text, a, b in zip(demo.texts, answers, hotter, strict=True)]
    found = judge(demo, measure(demo, rows), Arithmetic.W4A16)
    assert found.off[0][0] is Bucket.DIGITS
    assert "most buckets are off" in found.points_to


def test_a_kernel_named_by_the_log_decides_which_reference_counts(demo: Fingerprint) -> None:
    """A damaged W4A16 engine may be about as far from W4A4 as a sound W4A4 engine is."""
    measured = measure(demo, answers_of(demo, Arithmetic.W4A4))
    assert judge(demo, measured, Arithmetic.W4A16).status is Status.FAIL


def test_a_file_of_bf16_alone_allows_what_nvfp4_costs(demo: Fingerprint) -> None:
    kind = Arithmetic.BF16
    texts = tuple(replace(text, tops={kind: text.tops[kind]}) for text in demo.texts)
    alone = replace(demo, texts=texts, expected={kind: {kind: demo.expected[kind][kind]}})
    assert judge(alone, measure(alone, answers_of(demo, Arithmetic.W4A4))).status is Status.OK
    assert judge(alone, measure(alone, answers_of(demo, Arithmetic.W4A4, heat=3.0))).status is Status.FAIL


def test_texts_that_were_not_asked_do_not_count(demo: Fingerprint) -> None:
    answers = answers_of(demo, Arithmetic.W4A16)
    answers[-1] = [None] * len(answers[-1])
    found = judge(demo, measure(demo, answers))
    assert found.distance.points == sum(len(text.points) for text in demo.texts[:-1])


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"kind": "bench"},
        {"texts": []},
        {"expected": {}},
    ],
)
def test_another_document_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "fingerprint.json"
    path.write_text(json.dumps(json.loads(DEMO.read_text()) | change))
    with pytest.raises(UsageError, match="not a fingerprint that this version reads"):
        read_fingerprint(path)


@pytest.mark.parametrize("key", ["ids", "logprobs"])
def test_a_missing_row_is_refused(key: str) -> None:
    document = json.loads(DEMO.read_text())
    document["texts"][0]["tops"]["w4a4"][key].pop()
    with pytest.raises(ValueError, match="a row is missing"):
        parse_fingerprint(json.dumps(document).encode())
