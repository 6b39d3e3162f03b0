"""The same settings give the same plan in every command, whatever layer they come from."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from glm4_deploy.catalog.rows import profiles
from glm4_deploy.cli import plan, scale, smoke
from glm4_deploy.cli.app import app
from glm4_deploy.cli.params import NO_PROFILE, Requested
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.state import Record, save_record
from glm4_deploy.errors import UsageError
from glm4_deploy.host.gpu import GpuFacts, GpuReport
from glm4_deploy.settings import load_settings

FILE = {"max_num_seqs": 32, "max_model_len": 8192, "kv_cache_dtype": "auto"}
# The layers that set something: arguments, environment, glm4.yaml.
REQUESTS: dict[str, tuple[list[str], dict[str, str], dict[str, Any]]] = {
    "nothing": ([], {}, {}),
    "file": ([], {}, FILE),
    "file over a profile": (["--profile", "gb10"], {}, FILE),
    "profile in the file": ([], {}, {"profile": "rtx-5090", **FILE}),
    "flags over the file": (["--max-num-seqs", "16", "--gpu-memory-utilization", "0.5"], {}, FILE),
    "environment": ([], {"GLM4_PROFILE": "b200", "GLM4_MAX_MODEL_LEN": "4096", "GLM4_KV_CACHE_DTYPE": "fp8_e5m2"}, {}),
    "--set": (["--profile", "hopper", "--set", "max_num_batched_tokens=4096", "--set", "enforce_eager=true"], {}, {}),
    "image": (["--profile", "jetson-thor", "--image-tag", "26.05-py3"], {}, {}),
    "two GPUs": (["--profile", "b300", "--tensor-parallel-size", "2"], {}, FILE),
    "bf16": (["--profile", "rtx-pro-6000", "--set", "quantization=none"], {}, {}),
}


@pytest.fixture(autouse=True)
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of this machine, and no GPU, though this machine may have one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "read_gpus", lambda: GpuReport(trouble="none"))
    for name in [name for name in os.environ if name.startswith("GLM4_")]:
        monkeypatch.delenv(name)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.mark.parametrize("name", REQUESTS)
def test_plan_shows_what_render_renders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, environ, content = REQUESTS[name]
    (tmp_path / "glm4.yaml").write_text(yaml.safe_dump(content))
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    services = yaml.safe_load(run("render", *words))["services"]
    command = [str(word) for word in services["glm4-9b-nvfp4"]["command"]]
    rendered = dict(itertools.pairwise(command))
    planned = json.loads(run("plan", *words, "--json"))
    assert f"{planned['gpu_memory_utilization']:g}" == rendered["--gpu-memory-utilization"]
    assert str(planned["max_num_seqs"]) == rendered["--max-num-seqs"]
    assert str(planned["max_model_len"]) == rendered["--max-model-len"]
    assert planned["kv_cache_dtype"] == rendered["--kv-cache-dtype"]
    assert str(planned["tensor_parallel_size"]) == rendered.get("--tensor-parallel-size", "1")


def test_a_named_gpu_without_a_profile_uses_the_file_and_no_profile(tmp_path: Path) -> None:
    plain = json.loads(run("plan", "--gpu", "gb10", "--json"))
    assert (plain["max_num_seqs"], plain["max_model_len"], plain["kv_cache_dtype"]) == (64, 32768, "fp8")
    assert plain["solved"]
    (tmp_path / "glm4.yaml").write_text(yaml.safe_dump(FILE))
    filed = json.loads(run("plan", "--gpu", "gb10", "--json"))
    as_rendered = json.loads(run("plan", "--profile", "gb10", "--json"))
    assert filed["gpu_memory_utilization"] == as_rendered["gpu_memory_utilization"] < plain["gpu_memory_utilization"]


CARD = GpuFacts(index=0, name="NVIDIA GeForce RTX 5090", total_mib=32607.0, used_mib=0.0, free_mib=32607.0, mig=False)


def test_a_host_with_a_gpu_is_planned_by_its_profile_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "read_gpus", lambda: GpuReport(gpus=(CARD,)))
    for words in ([], ["--profile", "rtx-5090"]):
        settings, profile, card, here = plan._target(Requested(flags={"profile": words[-1] if words else None}), None)
        assert (profile.name, settings.max_num_seqs, card.gpu.name, here) == ("rtx-5090", 32, "rtx-5090", True)
    _, profile, card, here = plan._target(Requested(flags={"profile": "gb10"}), None)
    assert (profile.name, card.gpu.name, here) == ("gb10", "gb10", False)


def test_a_load_overrides_the_flags_and_the_file(tmp_path: Path) -> None:
    (tmp_path / "glm4.yaml").write_text(yaml.safe_dump(FILE))
    planned = json.loads(run("plan", "--gpu", "gb10", "--for", "10 users, 4k context", "--json"))
    assert (planned["max_num_seqs"], planned["max_model_len"], planned["kv_cache_dtype"]) == (10, 4096, "auto")


@pytest.mark.parametrize("command", ["render", "up", "plan", "scale", "bench", "doctor", "smoke", "lock"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profile", "gb10", "--max-num-seqs", "5000"], "command line: max_num_seqs = '5000'"),
        (["--profile", "gb10", "--tensor-parallel-size", "64"], "command line: tensor_parallel_size = '64'"),
        (["--set", "prot=1"], "--set: unknown key 'prot'"),
        (["--profile", "gb1"], "did you mean 'gb10'"),
        (["--config", "none.yaml"], "no settings file at none.yaml"),
        ([], "glm4.yaml: port = '70000'"),
    ],
)
def test_every_command_refuses_a_wrong_setting_with_the_same_message(
    command: str, words: list[str], message: str, tmp_path: Path
) -> None:
    if not words:
        (tmp_path / "glm4.yaml").write_text("port: 70000\nprofile: cpu\n")
    load = ["--users", "9", "--ttft-p95", "1s"] if command == "scale" else []
    done = CliRunner().invoke(app, [command, *load, *words])
    assert isinstance(done.exception, UsageError), (done.output, done.exception)
    assert message in f"{done.exception.message} {done.exception.hint}"


def record(port: int) -> Record:
    endpoint = Endpoint(
        runner=EngineKind.PROCESS, project="glm4", service="engine", profile="cpu", bind="127.0.0.1", port=port,
        base_url=f"http://127.0.0.1:{port}", model="recorded", model_dir="/m", max_model_len=512, start_period=1,
    )  # fmt: skip
    return Record(endpoint=endpoint)


def target(tmp_path: Path, base_url: str | None = None, **flags: Any) -> tuple[str, str | None, int | None]:
    made = smoke.make_target(base_url, None, None, 1.0, requested=Requested(flags=flags), state_dir=tmp_path / "state")
    return made.base_url, made.model, made.max_model_len


def test_smoke_checks_the_recorded_engine_or_else_the_one_in_the_settings(tmp_path: Path) -> None:
    (tmp_path / "glm4.yaml").write_text("port: 9001\nserved_model_name: named\nmax_model_len: 2048\n")
    assert target(tmp_path) == ("http://127.0.0.1:9001", "named", 2048)
    save_record(record(9002), tmp_path / "state")
    assert target(tmp_path) == ("http://127.0.0.1:9002", "recorded", 512)


def test_flags_of_smoke_win_over_the_record(tmp_path: Path) -> None:
    save_record(record(9002), tmp_path / "state")
    assert target(tmp_path, port=9003) == ("http://127.0.0.1:9003", "glm-4-9b-chat", 32768)
    assert target(tmp_path, port=9002) == ("http://127.0.0.1:9002", "recorded", 512)
    assert target(tmp_path, port=9002, served_model_name="x") == ("http://127.0.0.1:9002", "x", 512)
    assert target(tmp_path, "http://h:1", served_model_name="x", max_model_len=9) == ("http://h:1", "x", 9)
    assert target(tmp_path, "http://h:1") == ("http://h:1", None, None)


@pytest.mark.parametrize("command", ["smoke", "bench"])
def test_smoke_and_bench_look_into_the_state_directory(command: str, tmp_path: Path) -> None:
    save_record(record(9), tmp_path / "state")
    done = CliRunner().invoke(app, [command, "--state-dir", "state"])
    assert "127.0.0.1:9" in f"{done.output}{done.exception}"
    assert "127.0.0.1:8080" not in f"{done.output}{done.exception}"


def test_scale_uses_what_a_layer_sets_and_the_calibration_for_the_rest() -> None:
    settings, profile = load_settings({}, environ={}, default_profile=lambda: NO_PROFILE)
    bare = scale._engine(settings, profile, None, None)
    assert (bare.max_num_seqs, bare.max_num_batched_tokens, bare.memory, bare.gpus_each) == (None, None, None, 1)
    settings, profile = load_settings({"profile": "rtx-5090", "tensor_parallel_size": 2}, environ={})
    made = scale._engine(settings, profile, None, None)
    assert (made.max_num_seqs, made.gpus_each, made.gpu_named) == (32, 2, False)
    assert made.memory is not None
    assert made.memory.gpu.name == "rtx-5090"
    assert made.memory.max_num_seqs == 32
    named = scale._engine(settings, profile, "h100", 4096)
    assert named.memory is not None
    assert (named.memory.gpu.name, named.gpu_named, named.kv_cache_tokens) == ("h100", True, 4096)


def test_a_profile_without_a_gpu_cannot_be_planned() -> None:
    with pytest.raises(UsageError, match="profile cpu has no GPU to plan for"):
        plan._target(Requested(flags={"profile": "cpu"}), None)
    assert profiles()["cpu"].gpu is None


def test_config_show_names_the_layer_of_each_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    (tmp_path / "glm4.yaml").write_text("max_num_seqs: 7\nenv: {HF_TOKEN: hf_abcdefghijklmnopqrstuvwxyz0123456789}\n")
    (tmp_path / ".env").write_text("GLM4_PORT=9002\n")
    text = run("config", "show", "--profile", "b200")
    rows = {line.split()[0]: line.split(None, 1)[1].rsplit("  ", 1) for line in text.splitlines()}
    layers = {key: layer.strip() for key, (_, layer) in rows.items()}
    assert layers["max_num_seqs"] == "glm4.yaml"
    assert layers["port"] == ".env"
    assert layers["profile"] == "command line"
    assert layers["shm_size"] == "profile b200"
    assert "restart" not in layers
    assert "hf_abc" not in text
    shown = {row["key"]: row for row in json.loads(run("config", "show", "--all", "--json"))["settings"]}
    assert shown["ui_admin"] == {"key": "ui_admin", "value": "admin@localhost", "layer": "default"}
    assert shown["port"]["value"] == 9002
    assert "hf_abc" not in json.dumps(shown)
