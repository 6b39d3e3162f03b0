"""`diagnose --metrics` against real servers: what the counters say, and what they do not."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

import preloaded
from glm4_deploy.catalog.rows import metric_rows
from glm4_deploy.probe.endpoints import parse_metrics
from glm4_deploy.probe.metrics import engine_metrics, judge_metrics, read_engine, unjudged
from servers.reference import Reference, Send
from servers.serve import mounted, raw_server

ROOT = Path(__file__).parents[3]
COUNTED = "corruption-not-counted"
QUIET: dict[str, Any] = {
    "running": 2,
    "waiting": 0,
    "usage": 0.4,
    "preemptions": 0,
    "queries": 200_000,
    "hits": 90_000,
    "corrupted": 0,
    "awake": 1,
    "finished": {"stop": 900, "length": 100, "abort": 0, "error": 0, "repetition": 0},
}


def page(old: bool = False, engines: int = 1, **changes: Any) -> str:
    """As vLLM writes it, by the same client library. old: the names of 0.9. A value of None is not reported."""
    values, registry = QUIET | changes, CollectorRegistry()

    def put(kind: type[Counter] | type[Gauge], name: str, value: float | None, **labels: str) -> None:
        if value is None:
            return
        metric = kind(f"vllm:{name}", "x", ["model_name", "engine", *labels], registry=registry)
        for engine in range(engines):
            row = metric.labels(model_name="glm", engine=str(engine), **labels)
            row.inc(value) if isinstance(row, Counter) else row.set(value)

    put(Gauge, "num_requests_running", values["running"])
    put(Gauge, "num_requests_waiting", values["waiting"])
    put(Gauge, "gpu_cache_usage_perc" if old else "kv_cache_usage_perc", values["usage"])
    put(Counter, "num_preemptions", values["preemptions"])
    put(Counter, f"{'gpu_' if old else ''}prefix_cache_queries", values["queries"])
    put(Counter, f"{'gpu_' if old else ''}prefix_cache_hits", values["hits"])
    put(Counter, "corrupted_requests", values["corrupted"])
    put(Gauge, "engine_sleep_state", values["awake"], sleep_state="awake")
    if values["finished"] is not None:
        done = Counter("vllm:request_success", "x", ["engine", "finished_reason"], registry=registry)
        for reason, value in values["finished"].items():
            done.labels(engine="0", finished_reason=reason).inc(value)
    return generate_latest(registry).decode()


def found(stalled: float = 0.0, **changes: Any) -> dict[str, str]:
    seen = replace(engine_metrics(parse_metrics(page(**changes))), stalled_s=stalled)
    return {row.id: row.level for row in judge_metrics(seen)}


def finished(**changes: int) -> dict[str, int]:
    return QUIET["finished"] | changes


@pytest.mark.parametrize("old", [False, True])
def test_a_quiet_engine_has_no_finding(old: bool) -> None:
    assert found(old=old) == {}
    assert unjudged(replace(engine_metrics(parse_metrics(page(old=old))), stalled_s=0.0)) == ()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"corrupted": 1}, {"corrupted-requests": "error"}),
        ({"corrupted": None}, {COUNTED: "info"}),
        ({"finished": finished(error=1)}, {"requests-failed": "error"}),
        ({"finished": finished(repetition=5)}, {"answers-cut-for-repetition": "warn"}),
        ({"finished": finished(repetition=50)}, {"answers-cut-for-repetition": "error"}),
        ({"finished": finished(stop=10, length=90)}, {"answers-run-to-limit": "warn"}),
        ({"finished": finished(stop=0, length=19)}, {}),
        ({"finished": finished(stop=0, length=0)}, {"nothing-finished": "warn"}),
        ({"usage": 0.99}, {"kv-cache-full": "warn"}),
        ({"usage": 0.94}, {}),
        ({"preemptions": 3}, {"requests-preempted": "info"}),
        ({"preemptions": 30}, {"requests-preempted": "warn"}),
        ({"waiting": 1}, {}),
        ({"waiting": 2}, {"queue-long": "warn"}),
        ({"waiting": 1, "running": 0}, {"waiting-with-none-running": "warn"}),
        ({"hits": 1000}, {"prefix-cache-misses": "info"}),
        ({"hits": 10, "queries": 1000}, {}),
        ({"hits": 0, "queries": 0}, {}),
        ({"stalled": 60.0}, {"no-progress": "error"}),
        (
            {"stalled": 60.0, "finished": finished(stop=0, length=0)},
            {"no-progress": "warn", "nothing-finished": "warn"},
        ),
        ({"awake": 0}, {"engine-asleep": "error"}),
        ({"awake": None}, {}),
    ],
)
def test_each_limit_has_two_sides(changes: dict[str, Any], wanted: dict[str, str]) -> None:
    assert found(**changes) == wanted


def test_every_row_is_tested() -> None:
    marks = test_each_limit_has_two_sides.pytestmark  # type: ignore[attr-defined]
    tested = {row for _, wanted in marks[0].args[1] for row in wanted}
    assert tested == {row.id for row in metric_rows()}


def test_several_engines_are_summed_and_the_fullest_counts() -> None:
    seen = engine_metrics(parse_metrics(page(engines=3, waiting=1)))
    assert (seen.running, seen.waiting, seen.kv_usage, seen.awake) == (6, 3, 0.4, True)


@pytest.mark.parametrize("missing", ["running", "waiting", "usage", "preemptions", "finished", "queries"])
def test_a_counter_that_is_missing_is_unknown_and_not_fine(missing: str) -> None:
    (row,) = unjudged(replace(engine_metrics(parse_metrics(page(**{missing: None}))), stalled_s=0.0))
    assert row.status.value == "unknown"
    assert row.reason.startswith("vllm:")


def test_the_alerts_of_the_monitoring_have_the_same_limits() -> None:
    rules = (ROOT / "templates/services/monitoring/rules.yml").read_text(encoding="utf-8")
    limits = {row.id: row for row in metric_rows()}
    alert = rules.split("- alert: AnswersRunToTheirLimit")[1].split("- alert:")[0]
    assert re.findall(r"> ([\d.]+)", alert) == [
        f"{limits['answers-run-to-limit'].limit:g}",
        f"{limits['answers-run-to-limit'].least:g}",
    ]
    alert = rules.split("- alert: KvCachePressure")[1].split("- alert:")[0]
    assert f"kv_cache_usage_perc) > {limits['kv-cache-full'].limit:g}" in alert


# --- as a user calls it -----------------------------------------------------------------------------------------------


def kit(*words: str, cwd: Path) -> tuple[int, str, str]:
    env = {**os.environ, "DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    done = preloaded.run("diagnose", *words, cwd=cwd, env=env)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_live_engine_is_judged(tmp_path: Path) -> None:
    engine = Reference()
    engine.counts.update({"success:stop": 50, "num_preemptions_total": 20, "prefix_cache_queries_total": 10})
    with mounted(engine) as url:
        code, out, err = kit("--metrics", f"{url}/metrics", "--json", cwd=tmp_path)
        report = json.loads(out)
        assert (code, err, report["verdict"]) == (0, "", "warn")
        assert [(row["id"], row["severity"]) for row in report["findings"]] == [("requests-preempted", "warn")]
        assert [*report["findings"][0]] == ["id", "severity", "line", "cause", "fix", "source", "count"]
        assert report["finished"]["stop"] == 50
        assert report["awake"] is None
        engine.counts["corrupted_requests_total"] = 2
        code, out, _ = kit("--metrics", url, cwd=tmp_path)
    assert code == 1
    assert out.splitlines()[-2].startswith("worst:      corrupted-requests: ")
    assert "awake              unknown" in out


class Busy(Reference):
    """It holds a request; each reading finds `step` more tokens."""

    step = 0

    def metrics(self) -> str:
        self.counts["num_requests_running"] = 1
        self.counts["generation_tokens_total"] += self.step
        return super().metrics()


def test_an_engine_that_makes_no_progress_is_told_from_a_busy_one() -> None:
    hung, busy = Busy(), Busy()
    busy.step = 1
    told: list[str] = []
    with mounted(hung) as url:
        seen = read_engine(url, stall=1.5, waiting=lambda: told.append("waiting"))
        assert seen.stalled_s is not None
        assert seen.stalled_s >= 1.5
        assert told == ["waiting"]
    with mounted(busy) as url:
        assert read_engine(url, stall=1e9).stalled_s == 0


def test_an_engine_that_has_died_behind_its_server_is_not_judged_by_its_last_counters(tmp_path: Path) -> None:
    class Dead(Reference):
        async def health(self, send: Send) -> None:
            await self.send_bytes(send, b"", 503)

    with mounted(Dead()) as url:
        code, out, err = kit("--metrics", url, cwd=tmp_path)
    assert (code, out) == (11, "")
    assert "its engine has died" in err


def test_a_missing_counter_fails(tmp_path: Path) -> None:
    class Partial(Reference):
        def metrics(self) -> str:
            return "\n".join(line for line in super().metrics().split("\n") if "preemptions" not in line)

    with mounted(Partial()) as url:
        code, out, _ = kit("--metrics", url, cwd=tmp_path)
    assert code == 1
    assert "not judged: vllm:num_preemptions_total is not reported" in out
    assert "no failure found" not in out


@pytest.mark.parametrize("body", ["", "<html>404</html>", "process_start_time_seconds 1\n", "vllm:x 1\n", "\x00\xff"])
def test_an_answer_without_the_counters_is_another_server(tmp_path: Path, body: str) -> None:
    class Other(Reference):
        def metrics(self) -> str:
            return body

    with mounted(Other()) as url:
        code, out, err = kit("--metrics", url, cwd=tmp_path)
    assert (code, out) == (4, "")
    assert "has no counters of vLLM" in err


def test_no_answer_is_unreachable(tmp_path: Path) -> None:
    def hang_up(connection: Any) -> None:
        connection.recv(1000)

    with raw_server(hang_up) as url:
        assert kit("--metrics", url, cwd=tmp_path)[0] == 3
    code, out, err = kit("--metrics", "http://127.0.0.1:1", cwd=tmp_path)
    assert (code, out) == (3, "")
    assert "nothing answers at http://127.0.0.1:1/metrics" in err


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://user:secret@host:8000", ""])
def test_what_is_no_address_is_refused(tmp_path: Path, url: str) -> None:
    code, _, err = kit("--metrics", url, cwd=tmp_path)
    assert code == 2
    assert "secret" not in err


def test_no_label_controls_the_terminal(tmp_path: Path) -> None:
    with mounted(Reference(model="a\x1b]0;owned\x07\x1b[2J")) as url:
        _, out, _ = kit("--metrics", url, cwd=tmp_path)
    assert "owned" in out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
