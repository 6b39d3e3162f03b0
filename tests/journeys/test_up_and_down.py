"""A healthy engine, from `up` to `down`, and one that dies while it serves."""

import json
import os
import signal
from pathlib import Path

from journeys.kit import GOOD, Kit, alive, wait_for


def test_a_healthy_engine_goes_up_serves_and_comes_down(kit: Kit) -> None:
    up = kit.up()
    assert up.code == 0, up.err
    for check in ("this-container", "chat", "arithmetic", "loop-sampled"):
        assert f" s  ok       {check}\n" in up.err
    (release,) = kit.releases()
    assert release["verdict"] in GOOD
    served = f"http://127.0.0.1:{kit.port}/v1 serves 'glm-4-9b-chat': {release['verdict']}, release {release['id']}"
    kernel = "NVFP4 kernel: FlashInferCutlassNvFp4LinearKernel (native FP4)"
    assert up.out.splitlines()[-2:] == [kernel, served]

    smoke = kit.run("smoke", "--suite", "gate")
    assert smoke.code == 0, smoke.out + smoke.err
    pids = kit.pids()
    assert pids.keys() == {"APIServer", "EngineCore"}

    down = kit.run("down")
    assert (down.code, down.out) == (0, "glm4: stopped and removed\n")
    assert not any(alive(pid) for pid in pids.values())
    after = kit.run("status")
    assert after.code == 1
    assert "not up: no process" in after.err
    assert kit.run("logs").code == 1
    assert kit.run("smoke").code == 3
    assert (kit.run("down").code, len(kit.releases())) == (0, 1), "the release stays"


def test_the_gate_asks_for_a_tool_call_where_tools_are_on(kit: Kit) -> None:
    without = kit.up()
    assert (without.code, "tools-call" in without.err) == (0, False), without.err
    with_tools = kit.up("--tools")
    assert with_tools.code == 0, with_tools.err
    assert " s  ok       tools-call\n" in with_tools.err
    assert kit.run("down").code == 0


def test_what_runs_is_reported_to_people_and_to_programs(kit: Kit) -> None:
    release = kit.good_release()
    text = kit.run("status")
    assert text.code == 0, text.err
    rows = {line[:18].strip(): line[19:] for line in text.out.splitlines()}
    assert len(text.out.splitlines()) <= 10, text.out
    assert (rows["up"], rows["release"].split(",")[0]) == ("yes", release)
    assert rows["vLLM"].startswith("0.32.0, FlashInferCutlassNvFp4LinearKernel (native FP4), KV cache 1048576 tokens")

    status = kit.status()
    assert (status["up"], status["runner"], status["deployment"]) == (True, "process", "")
    assert (status["models"], status["release"]) == (["glm-4-9b-chat"], release)
    assert status["last_verdict"] in GOOD
    engine = status["engine"]
    assert (engine["phase"], engine["native_fp4"]) == ("ready", True)
    assert (engine["kv_cache_tokens"], engine["max_concurrency"]) == (1048576, 256.0)

    (row,) = kit.releases()
    assert (row["id"], row["good"], row["in_service"]) == (release, True, True)
    assert row["engine"]["version"] == "0.32.0"
    assert release in kit.run("releases").out
    assert "Application startup complete" in kit.run("logs", "--tail", "all").out
    last = [json.loads(line)["line"] for line in kit.run("logs", "--tail", "3", "--json").out.splitlines()]
    assert len(last) == 3
    assert "POST /v1/chat/completions" in "".join(last), "asked by `status`"
    diagnosis = kit.run("diagnose")
    assert diagnosis.code == 0, diagnosis.out
    assert "no failure found; it came up" in diagnosis.out


def test_an_engine_whose_core_dies_in_service_is_one_finding_of_every_command(kit: Kit) -> None:
    assert kit.up(engine="DiesAndLogsIt").code == 0
    smoke = kit.run("smoke", "--json", "-")
    assert smoke.code == 11
    (failed,) = [row for row in smoke.json["results"] if row["status"] == "fail"]
    assert (failed["check"], failed["code"]) == ("structured", "ENGINE_DIED")
    assert failed["observed"].startswith("the engine died in structured: HTTP 500: EngineCore encountered an issue")
    assert failed["observed"].endswith("its log: ValueError: logits must be of type float32")

    status = kit.status()
    assert status["up"] is False, "although its server answers"
    assert "/health answers 503, as vLLM does once its engine has died" in status["why"]
    diagnosis = kit.run("diagnose")
    assert diagnosis.code == 1
    assert "root cause: unknown-exception" in diagnosis.out
    assert "engine-dead" in diagnosis.out

    os.kill(kit.pids()["APIServer"], signal.SIGKILL)
    wait_for(lambda: not alive(kit.pids()["APIServer"]))
    ended = "its last end: ValueError: logits must be of type float32"
    assert kit.status()["why"] == f"process {kit.pids()['APIServer']} ended; {ended}"
    again = kit.run("diagnose")
    assert again.code == 1, "its log is there when it is not"
    assert "logits must be of type float32" in again.out


def test_an_engine_that_died_is_not_up_and_the_next_up_clears_what_it_left(kit: Kit) -> None:
    first = kit.good_release()
    before = kit.pids()
    os.kill(before["APIServer"], signal.SIGKILL)
    wait_for(lambda: not alive(before["APIServer"]))
    status = kit.run("status")
    assert status.code == 1
    assert f"not up: process {before['APIServer']} ended" in status.err
    assert kit.run("smoke").code == 3
    assert alive(before["EngineCore"]), "a worker outlives its server"

    second = kit.good_release()
    assert second != first
    assert not alive(before["EngineCore"])
    assert kit.status()["release"] == second


def everything_in(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its modification time and bytes; not the engine's log, which grows, nor captured output."""
    files = (
        path for path in sorted(directory.rglob("*")) if path.is_file() and path.suffix not in (".log", ".out", ".err")
    )
    return {str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_dry_run_says_every_step_and_changes_nothing(kit: Kit) -> None:
    empty = everything_in(kit.directory)
    first = kit.up("--dry-run")
    assert first.code == 0, first.err
    assert [line.split()[0] for line in first.out.splitlines()] == ["checkpoint", "start", "gate:", "record", "if"]
    assert everything_in(kit.directory) == empty
    assert not (kit.directory / ".glm4").exists()
    assert kit.up("--dry-run", "--model-dir", "/gone").code == 9  # what is refused is refused here, too

    release = kit.good_release()
    before, pids = everything_in(kit.directory), kit.pids()
    again = kit.up("--dry-run", "--json")
    steps = json.loads(again.out)["steps"]
    assert any(step.startswith("stop the running engine") for step in steps)
    assert f"if it fails: put release {release} back, and gate it" in steps
    back = kit.run("rollback", release, "--dry-run")
    assert back.code == 0, back.err
    assert f"release {release}" in back.out
    down = kit.run("down", "--dry-run")
    assert "stop and remove: process " in down.out
    assert everything_in(kit.directory) == before
    assert kit.pids() == pids
    assert kit.run("down").code == 0
