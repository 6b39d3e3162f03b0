"""What can be a calibration: a real result of `bench --json`, a calibration file, several of one engine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from glm4_deploy.errors import UsageError
from glm4_deploy.probe.bench import read_level
from glm4_deploy.report.wire import dumps
from glm4_deploy.report_model import BenchReport, Fact
from glm4_deploy.result import Status
from glm4_deploy.scale.calibration import example, examples, joined, parse_measured

DATA = Path(__file__).parents[2] / "data" / "bench" / "vllm-0.32-cpu-concurrency-4.json"


def report() -> BenchReport:
    return BenchReport(
        base_url="http://h:1",
        model="m",
        started="2026-11-23T21:14:42+00:00",
        input_len=128,
        output_len=64,
        levels=(read_level(json.loads(DATA.read_text()), None),),
        verdict=Status.OK,
        exit_code=0,
        engine=(Fact(name="vLLM", value="0.32.0"),),
    )


def test_a_bench_report_is_a_calibration() -> None:
    found = parse_measured(dumps(report()), "b.json")
    assert (found.vllm, found.date, found.model, found.card) == ("0.32.0", "2026-11-23", "m", None)
    (level,) = found.levels
    assert (level.concurrency, level.requests, level.input_len, level.output_len) == (4, 8, 128, 64)
    assert (round(level.ttft_p50, 1), round(level.tpot_p95, 2)) == (130.2, 9.47)


def test_a_bench_report_with_failures_is_not_a_calibration() -> None:
    broken = replace(report(), levels=(replace(report().levels[0], failed=1),))
    with pytest.raises(UsageError, match="requests failed"):
        parse_measured(dumps(broken), "b.json")


def test_several_files_of_one_engine_are_one_calibration() -> None:
    first = parse_measured(dumps(report()), "a")
    other = parse_measured(dumps(replace(report(), input_len=512)), "b")
    both = joined([first, other])
    assert (both.name, [level.input_len for level in both.levels]) == ("a, b", [128, 512])
    with pytest.raises(UsageError, match=r"vllm is 0\.32\.0 in a and 0\.33\.0 in c"):
        joined([first, replace(other, name="c", vllm="0.33.0")])


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "\x00", '{"base_url": 1}', "runs: []", "a: &a [*a]"])
def test_a_file_that_is_not_a_calibration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_measured(text, "x")


def test_every_example_is_valid_and_says_that_it_is_an_example() -> None:
    for name in examples():
        found = example(name)
        assert found.example
        assert found.card
        assert len({level.concurrency for level in found.levels}) > 1
