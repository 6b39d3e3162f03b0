"""`bench`: the arguments for vLLM's generator, and its result (a recorded one: tests/data/bench)."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm4_deploy.cli.output import Outputs
from glm4_deploy.cli.smoke import Where, read_report, run_bench
from glm4_deploy.errors import ExtraMissing, UsageError
from glm4_deploy.probe.bench import BenchLoad, bench_levels, in_container, read_level
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.limits import Goodput, Slo
from glm4_deploy.report.terminal import bench_text
from glm4_deploy.report.wire import dumps, report_json, to_wire
from glm4_deploy.report_model import SCHEMA, BenchReport, make_report
from glm4_deploy.result import Status, ok
from servers import dying
from servers.serve import serving

DATA = Path(__file__).parents[2] / "data" / "bench" / "vllm-0.32-cpu-concurrency-4.json"
LOAD = BenchLoad(base_url="http://h:1", model="m", tokenizer="/m", concurrency=(1, 16))


@pytest.fixture
def raw() -> Any:
    return json.loads(DATA.read_text())


def report(raw: Any, slo: Slo | None = None) -> BenchReport:
    return BenchReport(
        base_url="http://h:1",
        model="m",
        started="2026-01-01T00:00:00+00:00",
        input_len=128,
        output_len=64,
        levels=(read_level(raw, slo),),
        verdict=Status.OK,
        exit_code=0,
    )


def test_a_real_result_is_read(raw: Any) -> None:
    level = read_level(raw, None)
    assert (level.concurrency, level.requests, level.failed) == (4, 8, 0)
    assert round(level.output_tokens_per_s, 1) == 367.7
    assert (round(level.ttft.p95, 1), round(level.tpot.p50, 2)) == (253.8, 8.82)
    assert level.broken == ()


def test_limits_are_judged(raw: Any) -> None:
    slo = Slo(ttft_p95_ms=200, output_tokens_per_s=400, goodput=Goodput(ttft_ms=1, tpot_ms=1))
    broken = read_level({**raw, "request_goodput": 1.0, "completed": 7}, slo).broken
    said = " | ".join(broken)
    for words in ("1 of 8 requests failed", "ttft p95 254 ms (limit 200)", "368 tokens/s (limit 400)", "goodput 17%"):
        assert words in said


def test_one_level_each_after_a_warm_up(raw: Any) -> None:
    words = LOAD.arguments(Slo(goodput=Goodput(ttft_ms=500, tpot_ms=50)))
    pairs = [(level[level.index("--max-concurrency") + 1], level[level.index("--num-prompts") + 1]) for level in words]
    assert pairs == [("16", "16"), ("1", "8"), ("16", "64")]
    assert all("ttft:500" in level and "--ignore-eos" in level for level in words)


def test_no_level_sends_the_prompts_of_another() -> None:
    """The generator derives its prompts from the seed: a repeated seed would be served from the prefix cache."""
    levels = replace(LOAD, concurrency=(1, 16, 64, 256)).arguments(None)
    seeds = [level[level.index("--seed") + 1] for level in levels]
    assert len(set(seeds)) == len(seeds) == 5


def test_the_key_is_never_an_argument() -> None:
    assert in_container("c") == ["docker", "exec", "-i", "-e", "OPENAI_API_KEY", "c", "python3"]
    assert not any("sk-" in word for level in LOAD.arguments(None) for word in level)


def test_a_python_without_vllm_says_so() -> None:
    with pytest.raises(ExtraMissing):
        bench_levels([sys.executable], LOAD, slo=None, key=None, on_level=print)
    with pytest.raises(ExtraMissing):
        bench_levels(["/no/such/python"], LOAD, slo=None, key=None, on_level=print)


GENERATOR = """#!{python}
import urllib.request
print("glm4-bench-result {{}}", flush=True)
print("glm4-bench-result " + {good!r}, flush=True)
body = b'{{"model": "glm-4-9b-chat", "messages": [], "max_tokens": 9, "response_format": {{"type": "json_object"}}}}'
try:
    urllib.request.urlopen(urllib.request.Request("{url}/v1/chat/completions", body))
except OSError as error:
    pass
{rest}
"""


@pytest.mark.parametrize("ends", ["with failed requests", "with an error"])
def test_an_engine_that_dies_under_the_load_is_one_finding(raw: Any, tmp_path: Path, ends: str) -> None:
    generator, out = tmp_path / "generator", tmp_path / "bench.json"
    bad = json.dumps({**raw, "max_concurrency": 16, "num_prompts": 64, "completed": 3})
    rest = f"print('glm4-bench-result ' + {bad!r})\n" if ends == "with failed requests" else ""
    rest += "raise SystemExit('ValueError: Initial test run failed')"
    with serving(dying.Dies()) as url:
        generator.write_text(
            GENERATOR.format(python=sys.executable, url=url, good=json.dumps({**raw, "max_concurrency": 1}), rest=rest)
        )
        generator.chmod(0o755)
        code = run_bench(
            ProbeTarget(base_url=url, model="glm-4-9b-chat"),
            Where(container=None, python=str(generator), tokenizer=None, state_dir=tmp_path),
            (1, 16, 64),
            (128, 64),
            slo=None,
            outputs=Outputs(json=out),
            compare=None,
        )
    report = json.loads(out.read_text())
    assert (code, report["exit_code"]) == (11, 11)
    assert [row["status"] for row in report["results"]] == ["ok", "fail", "skipped"]
    died = report["results"][1]
    assert died["observed"].startswith("the engine died in concurrency-16: GET /health HTTP 503")
    assert ("61 of 64 requests failed" in died["observed"]) is (ends == "with failed requests")
    assert report["results"][2]["reason"] == "the engine died in concurrency-16"


@pytest.mark.parametrize("older", [{}, {"form": 1}])
def test_a_comparison_reads_what_was_written(raw: Any, tmp_path: Path, older: dict[str, int]) -> None:
    path = tmp_path / "b.json"
    path.write_text(
        dumps(older | to_wire(report(raw))) if older else report_json(make_report("bench", [ok("fast")]), report(raw))
    )
    earlier = read_report(path, (128, 64))
    assert earlier == report(raw)
    assert "x 2.00" in bench_text(report({**raw, "output_throughput": 2 * raw["output_throughput"]}), earlier)


def test_a_report_of_another_kind_or_a_newer_schema_is_refused(raw: Any, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    for wrong in ({"kind": "smoke"}, {"schema": SCHEMA + 1}):
        path.write_text(dumps(to_wire(report(raw)) | wrong))
        with pytest.raises(UsageError):
            read_report(path, (128, 64))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"form": 1}', "\x00"])
def test_a_file_that_is_not_a_result_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_report(path, (128, 64))


def test_other_lengths_have_no_ratio(raw: Any, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(dumps(report(raw)))
    with pytest.raises(UsageError) as caught:
        read_report(path, (512, 128))
    assert "128 tokens in and 64 out" in caught.value.message
