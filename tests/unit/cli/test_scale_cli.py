"""`glm4-deploy scale` as a user runs it: the answer, its JSON, and what it refuses."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import preloaded

CALIBRATION = """
card: a card
vllm: 0.24.0
date: 2026-11-25
model: m
max_num_seqs: 32
max_num_batched_tokens: 2048
kv_cache_tokens: 200000
runs:
- input_len: 512
  output_len: 64
  levels:
  - {concurrency: 1, requests: 4, ttft: {p50: 30, p95: 35}, tpot: {p50: 9, p95: 9.2}, output_tokens_per_s: 109}
  - {concurrency: 16, requests: 32, ttft: {p50: 200, p95: 330}, tpot: {p50: 11, p95: 12}, output_tokens_per_s: 1250}
"""
ASK = ("--users", "100", "--think-time", "5s", "--requests", "300", "--seeds", "2", "--ttft-p95", "1s")


def scale(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    (cwd / "c.yaml").write_text(CALIBRATION)
    done = preloaded.run("scale", *words, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_an_answer_names_its_calibration_and_is_the_same_again(tmp_path: Path) -> None:
    first, again = (scale(*ASK, "--calibration", "c.yaml", cwd=tmp_path) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    for words in ("GPU holds TTFT p95 ≤ 1000 ms", "a card, vLLM 0.24.0, m, 2026-11-25", "headroom:", "one prompt"):
        assert words in first.stdout


def test_json_carries_the_answer_and_what_it_rests_on(tmp_path: Path) -> None:
    done = scale(*ASK, "--calibration", "c.yaml", "--json", cwd=tmp_path)
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["status"], report["calibration"]["card"]) == ("warn", "a card")
    assert report["answer"]["replicas"] >= 1
    assert report["answer"]["fleet"]["times"]["ttft p95"]["high"] <= 1000
    assert report["calibration"]["step"]["base"] > 0


def test_a_number_of_gpus_that_misses_the_slo_exits_with_1(tmp_path: Path) -> None:
    words = ("--rate", "40", "--requests", "300", "--seeds", "1", "--ttft-p95", "1s", "--gpus", "1")
    done = scale(*words, "--calibration", "c.yaml", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "1 GPU does NOT hold" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            (*ASK, "--calibration", "c.yaml", "--slo", "slo.yaml"),
            2,
            "SLO file limits goodput, which `scale` does not judge",
        ),
        (ASK, 2, "this cannot be answered without a measured load"),
        (("--users", "-5"), 2, "--users"),
        ((*ASK, "--rate", "1"), 2, "either --users or --rate"),
        ((*ASK, "--burstiness", "2"), 2, "--burstiness has no effect with --users"),
        (("--rate", "1", "--think-time", "1s"), 2, "--think-time has no effect with --rate"),
        ((*ASK, "--lengths", "l.csv", "--prompt-p95", "900"), 2, "--prompt-p95 has no effect with --lengths"),
        (("--users", "9", "--calibration", "c.yaml"), 2, "no latency limit was given"),
        ((*ASK, "--tpot-p95", "fast"), 2, "not a duration"),
        ((*ASK, "--tpot-p95", "0s"), 2, "must be greater than 0"),
        ((*ASK, "--calibration", "c.yaml", "--gpu", "h1000x"), 2, "--kv-cache-tokens"),
        ((*ASK, "--calibration", "turned.yaml"), 2, "runs.0.levels.0.ttft: p95 35 is below p50 3000"),
        ((*ASK, "--gpus", "5..2"), 2, "is not a valid range"),
        ((*ASK, "--gpus", "5..6", "--tensor-parallel-size", "4"), 2, "no room for whole engines of 4"),
        ((*ASK, "--router", "random"), 2, "unknown router"),
        ((*ASK, "--prompt-tokens", "500", "--prompt-p95", "100"), 2, "below the median"),
        ((*ASK, "--lengths", "c.yaml"), 2, "c.yaml line"),
        ((*ASK, "--calibration", "nofile"), 2, "cannot read nofile"),
        ((*ASK, "--calibration", "broken.yaml"), 2, "broken.yaml is not a valid calibration: runs.0.levels.0.ttft.p50"),
        ((*ASK, "--calibration", "list.json"), 2, "list.json is not a valid calibration"),
        ((*ASK, "--calibration", "c.yaml", "--kv-cache-tokens", "320"), 2, "do not fit into a KV cache of 320 tokens"),
        (("--users", "9", "--calibration", "c.yaml", "--ttft-p95", "3ms"), 13, "no number of GPUs helps"),
        (("--rate", "1e8", "--ttft-p95", "1s", "--requests", "300", "--calibration", "c.yaml"), 13, "cannot keep up"),
        ((*ASK[2:], "--users", "100000", "--calibration", "c.yaml", "--gpus", "1..2"), 13, "not even 2 replicas"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "broken.yaml").write_text(CALIBRATION.replace("p50: 30,", "p50: -30,"))
    (tmp_path / "turned.yaml").write_text(CALIBRATION.replace("p50: 30,", "p50: 3000,"))
    (tmp_path / "slo.yaml").write_text("goodput: {ttft_ms: 500, tpot_ms: 50}")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "l.csv").write_text("100,50\n" * 20)
    done = scale(*words, cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stdout == ""
