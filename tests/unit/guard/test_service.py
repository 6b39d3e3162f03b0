"""The service `guard` as Compose reads it: between gateway and engine, and hardened."""

import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.kit_image import kit_tag, requirements
from glm4_deploy.errors import UsageError
from glm4_deploy.files import write_text
from glm4_deploy.render.compose import COMPOSE, rendered
from glm4_deploy.run import run_program
from glm4_deploy.settings import Settings
from servers.guarded import ANSWER, Engine, guarded, whole

ROOT = Path(__file__).parents[3]


def services_of(tmp_path: Path, compose: list[str], *sets: str, profile: str = "*") -> dict[str, Any]:
    files = rendered(resolve_spec({"profile": "gb10", "extras": ["gateway", "guard"]}, sets=sets))
    for name, text in files.items():
        write_text(tmp_path / name, text)
    words = ["-f", tmp_path / COMPOSE, "--profile", profile, "config", "--format", "json"]
    done = subprocess.run([*compose, *words], capture_output=True, text=True, check=True)
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    assert "guard:8080" in files["gateway/Caddyfile"]
    return services


def test_it_stands_between_gateway_and_engine_and_publishes_nothing(tmp_path: Path, compose: list[str]) -> None:
    sets = (
        "guard_mode=cut",
        "guard_repetition_detection=64,16",
        "guard_mode_for.key:ada=retry",
        "guard_mode_for.model:zai/glm-4.5=off",
    )
    guard = services_of(tmp_path, compose, *sets, profile="gateway")["guard"]
    assert guard["image"] == kit_tag()
    assert (guard["user"], guard["read_only"], guard["cap_drop"]) == ("65532:65532", True, ["ALL"])
    assert guard["security_opt"] == ["no-new-privileges:true"]
    assert not {"ports", "volumes", "secrets", "environment", "env_file"} & guard.keys()
    words = guard["command"]
    assert words[words.index("--engine") + 1] == "http://glm4-9b-nvfp4:8080"
    assert words[words.index("--mode") + 1] == "cut"
    assert words[-6:-2] == ["--mode-for", "key:ada=retry", "--mode-for", "model:zai/glm-4.5=off"]
    assert words[-2:] == ["--repetition-detection", "64,16"]
    assert "copy_headers Authorization X-Key-Name\n" in (tmp_path / "gateway/Caddyfile").read_text()


def test_in_front_of_several_engines_it_asks_the_router(tmp_path: Path, compose: list[str]) -> None:
    words = services_of(tmp_path, compose, "replicas=2")["guard"]["command"]
    assert words[words.index("--engine") + 1] == "http://router:8080"


def test_its_health_check_asks_the_clients_port_too_and_never_the_engine(tmp_path: Path, compose: list[str]) -> None:
    kind, *words = services_of(tmp_path, compose)["guard"]["healthcheck"]["test"]
    assert kind == "CMD"
    program = words[-1]

    def healthy(metrics: int, clients: int) -> bool:
        here = program.replace("9110", str(metrics)).replace("8080", str(clients))
        return subprocess.run([sys.executable, "-c", here], capture_output=True, check=False).returncode == 0

    engine = Engine(*whole(ANSWER))
    with guarded(engine) as guard, socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        metrics = int(guard.metrics_url.rpartition(":")[2])
        assert healthy(metrics, guard.port)
        assert not healthy(metrics, silent.getsockname()[1]), "it takes connections and answers none"
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            assert not healthy(metrics, closed.getsockname()[1])
        assert not healthy(guard.port, metrics)
    assert engine.requests == []


def test_without_a_gateway_no_client_could_reach_it() -> None:
    with pytest.raises(UsageError, match="needs the gateway"):
        resolve_spec({"profile": "gb10", "extras": ["guard"]})


def test_without_it_nothing_changes() -> None:
    files = rendered(resolve_spec({"profile": "gb10", "extras": ["gateway"]}))
    assert "guard" not in files[COMPOSE]
    assert "glm4-9b-nvfp4:8080" in files["gateway/Caddyfile"]


def test_the_kits_image_has_what_it_needs() -> None:
    assert any(line.startswith("aiohttp") and ";" not in line for line in requirements())
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["guard"]
    locked = (ROOT / "templates/image/requirements.txt").read_text()
    assert all(f"\n{name.partition('>')[0]}==" in locked for name in wanted)


def test_the_watch_beside_it_reads_its_counters() -> None:
    for extras, reads in (["gateway", "guard", "watch"], True), (["gateway", "watch"], False):
        files = rendered(resolve_spec({"profile": "gb10", "extras": extras}))
        assert ("http://guard:9110" in files[COMPOSE]) is reads


def test_a_mode_for_one_key_or_model_is_checked_and_yamls_off_is_a_mode() -> None:
    assert Settings.model_validate({"guard_mode_for": {"key:ada": False}}).guard_mode_for == {"key:ada": "off"}
    for what, mode in (("ada", "cut"), ("key:", "cut"), ("key:ada", "on")):
        with pytest.raises(UsageError):
            resolve_spec({"profile": "gb10"}, sets=(f"guard_mode_for.{what}={mode}",))
    done = run_program(sys.executable, "-m", "glm4_deploy", "guard", "--mode-for", "key:=cut", timeout=60)
    assert (done.code, "is not WHAT=MODE" in done.stderr) == (2, True)


@pytest.mark.parametrize("wrong", ["64", "0,8", "64,1", "64,8,2", "a,b", "99999,8"])
def test_the_engines_own_check_is_two_numbers(wrong: str) -> None:
    with pytest.raises(UsageError):
        resolve_spec({"profile": "gb10"}, sets=(f"guard_repetition_detection={wrong}",))
    done = run_program(sys.executable, "-m", "glm4_deploy", "guard", "--repetition-detection", wrong, timeout=60)
    assert (done.code, "is not TOKENS,TIMES" in done.stderr) == (2, True)
