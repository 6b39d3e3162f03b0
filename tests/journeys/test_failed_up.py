"""An `up` with nothing before it that is refused, or does not come to serve: why, and what is left behind."""

import json
import os
import shutil
import signal
import tarfile
from pathlib import Path

import pytest

from e2e.kit import ROOT, Done
from journeys.kit import GOOD, Kit, alive
from servers.reference import Reference
from servers.serve import serving

NVFP4 = ROOT / "demo/glm-4-tiny-chat-nvfp4"  # as llm-compressor wrote it


def test_a_first_engine_that_talks_in_loops_is_stopped_and_its_log_is_kept(kit: Kit) -> None:
    up = kit.up(engine="LoopsGreedy")
    assert up.code == 1
    assert "the engine came up but did not pass: loop-greedy" in up.err
    assert "no earlier release is good" in up.err
    assert up.out.splitlines()[-1] == f"nothing serves at http://127.0.0.1:{kit.port}/v1: the engine is stopped"
    assert kit.status()["up"] is False
    (release,) = kit.releases()
    assert (release["good"], release["in_service"]) == (False, False)
    assert "loop-greedy" in release["reason"]

    log = kit.directory / ".glm4/failed.log"
    assert "Application startup complete" in log.read_text()
    assert log.read_text() == (kit.directory / ".glm4/releases" / release["id"] / "boot.log").read_text()
    diagnosis = kit.run("diagnose", "--json")
    assert (diagnosis.code, diagnosis.json["phase"], diagnosis.json["findings"]) == (0, "ready", [])


def test_an_engine_that_dies_while_it_starts_is_noticed_with_its_cause(kit: Kit) -> None:
    up = kit.up(engine="dies")
    assert up.code == 11
    assert "the engine stopped in the phase `compile`, exit code 1: weights and workspace use up" in up.err
    assert "ValueError: No available memory for the cache blocks" in up.err
    assert kit.status()["up"] is False
    diagnosis = kit.run("diagnose")
    assert diagnosis.code == 1
    assert "root cause: no-kv-room" in diagnosis.out
    assert "engine-core-failed" in diagnosis.out
    refused = kit.run("rollback", *kit.recorded)
    assert refused.code == 2
    assert f"release {kit.recorded[0]} never passed its gate: the engine stopped" in refused.err


def test_a_support_bundle_has_what_a_stranger_needs_to_explain_a_failed_start(kit: Kit) -> None:
    assert kit.up(engine="dies").code == 11
    texts, done = support_bundle(kit, HF_TOKEN="planted-secret", USER="quillfeather")
    assert "root cause: no-kv-room" in texts["diagnose.txt"]
    assert "ValueError: No available memory for the cache blocks" in texts["boot.log"]
    assert "not up: " in texts["status.txt"]
    assert kit.recorded[0] in texts["releases.json"]
    assert str(kit.port) in texts["doctor.json"], "checked with the settings of that start"
    assert '"profile": "cpu"' in texts["releases.json"]
    assert "failed.log       not included: it is the same as boot.log" in texts["CONTENTS.txt"]
    assert done.out.startswith(texts["CONTENTS.txt"])
    assert not [name for name, text in texts.items() if "planted-secret" in text or "quillfeather" in text]


def test_a_support_bundle_of_an_engine_that_serves_has_its_log(kit: Kit) -> None:
    kit.good_release()
    texts, _ = support_bundle(kit)
    assert "Application startup complete" in texts["engine.log"]
    assert "\nup                 yes\n" in texts["status.txt"]
    assert json.loads(texts["smoke.json"])["verdict"] in GOOD


def support_bundle(kit: Kit, **env: str) -> tuple[dict[str, str], Done]:
    """The archive's texts by name, and what the command printed."""
    done = kit.run("support-bundle", **env)
    assert done.code == 0, done.err
    with tarfile.open(kit.directory / "glm4-support.tar.gz") as archive:
        files = {Path(one.name).name: archive.extractfile(one) for one in archive.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}, done


def test_an_engine_that_dies_in_its_gate_is_one_finding_with_its_cause(kit: Kit) -> None:
    up = kit.up("--json", engine="DiesInItsGate")
    assert up.code == 11
    assert "the engine died in loop-greedy: HTTP 500: EngineCore encountered an issue" in up.err
    assert "its log: ValueError: logits must be of type float32" in up.err
    rows = {row["check"]: row for row in up.json["results"]}
    assert [check for check, row in rows.items() if row["status"] == "fail"] == ["loop-greedy"]
    assert rows["loop-sampled"]["reason"] == "the engine died in loop-greedy"
    assert kit.status()["up"] is False


@pytest.mark.parametrize(("engine", "phase"), [("hangs", "weights"), ("hangs-late", "kv_cache")])
def test_an_engine_that_is_killed_while_it_starts_is_noticed_in_any_phase(kit: Kit, engine: str, phase: str) -> None:
    up = kit.start_up("--timeout", "30", engine=engine, phase=phase)
    os.kill(kit.pids()["APIServer"], signal.SIGKILL)
    done = up.end()
    assert done.code == 11
    assert f"the engine stopped in the phase `{phase}`, exit code 137: killed from outside" in done.err


def test_an_engine_that_is_not_ready_in_time_is_stopped(kit: Kit) -> None:
    up = kit.start_up("--timeout", "4")
    pids = kit.pids()
    done = up.end()
    assert done.code == 12
    assert "not ready after 4 s, in the phase `weights`" in done.err
    assert not any(alive(pid) for pid in pids.values())
    diagnosis = kit.run("diagnose")
    assert "it is not up: the log ends in the phase `weights`" in diagnosis.out


def test_a_server_of_somebody_else_is_not_taken_for_the_engine(kit: Kit) -> None:
    up = kit.start_up()
    pids = kit.pids()
    with serving(Reference(), kit.port):
        done = up.end()
    assert done.code == 4
    assert "never reached the engine just started" in done.err
    assert not any(alive(pid) for pid in pids.values())


def test_a_taken_port_is_refused_before_anything_starts(kit: Kit) -> None:
    with serving(Reference(model="old-model"), kit.port):
        up = kit.up()
    assert up.code == 8
    assert f"port {kit.port} on 127.0.0.1 is taken by a server of the model 'old-model'" in up.err
    assert not (kit.directory / ".glm4/engine.log").exists()
    assert kit.recorded == []


def test_a_missing_model_directory_is_refused_before_anything_starts(kit: Kit) -> None:
    up = kit.up(model=kit.directory / "gone")
    assert up.code == 9
    assert f"no model directory at {kit.directory / 'gone'}" in up.err
    assert not (kit.directory / ".glm4/engine.log").exists()
    assert kit.recorded == []


def test_a_checkpoint_that_would_not_load_is_refused_before_anything_starts(kit: Kit, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "none"}')
    up = kit.up(model=model)
    assert up.code == 10
    assert "NoSuchModel" in up.err
    assert not (kit.directory / ".glm4/engine.log").exists()
    assert kit.recorded == []


def test_what_verify_found_comes_first_where_a_forced_checkpoint_fails_its_gate(kit: Kit) -> None:
    model = kit.directory / "nvfp4"  # the stand-in's tokenizer is not the one of the fingerprint
    shutil.copytree(NVFP4, model, ignore=shutil.ignore_patterns("fingerprint.json"))
    up = kit.up("--force", "--set", "image_tag=0.13.0", engine="LoopsGreedy", model=model)
    assert up.code == 1
    first, *rest = up.err[up.err.index("glm4-deploy: the engine came up but did not pass: loop-greedy") :].splitlines()
    assert "in a row" in first and "'" in first, "the loop is quoted"
    assert "known before the start: gate-up: 4 NVFP4 layers with mlp.gate_up_proj fused" in rest[0]
    assert "glm4-deploy checkpoint repair" in next(line for line in rest if "→" in line)


def test_with_tools_a_call_that_leaks_into_the_text_fails_the_gate(kit: Kit) -> None:
    up = kit.up("--tools", engine="LeakyTools")
    assert up.code == 1
    assert "the engine came up but did not pass: tools-call: the call leaked into the text" in up.err
