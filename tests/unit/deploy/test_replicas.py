"""Several engines and a router in one Compose file: each engine with its own devices and cache, one port for all."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import preloaded
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.errors import UsageError
from glm4_deploy.render.compose import COMPOSE, compose_file, rendered
from golden.render import render_case

ENGINES = ("glm4-9b-nvfp4-1", "glm4-9b-nvfp4-2", "glm4-9b-nvfp4-3")


def services(*sets: str, profile: str = "b200") -> dict[str, Any]:
    text = compose_file(resolve_spec({"profile": profile}, sets=sets))
    return dict(yaml.safe_load(text)["services"])


def devices(service: dict[str, Any]) -> list[str]:
    (only,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert "count" not in only
    return list(only["device_ids"])


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (("replicas=3",), [["0"], ["1"], ["2"]]),
        (("replicas=2", "tensor_parallel_size=2"), [["0", "1"], ["2", "3"]]),
        (
            ("replicas=2", "tensor_parallel_size=2", "data_parallel_size=2"),
            [["0", "1", "2", "3"], ["4", "5", "6", "7"]],
        ),
        (("replicas=2", "devices=3,GPU-1a,0"), [["3"], ["GPU-1a"]]),
    ],
)
def test_each_engine_has_its_own_devices(sets: tuple[str, ...], expected: list[list[str]]) -> None:
    made = services(*sets)
    assert [devices(made[name]) for name in ENGINES[: len(expected)]] == expected
    assert set(made) == {*ENGINES[: len(expected)], "router"}


def test_one_engine_may_be_pinned_too() -> None:
    assert devices(services("devices=1")["glm4-9b-nvfp4"]) == ["1"]


def test_numbers_name_devices_in_a_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text("profile: b200\nreplicas: 2\ndevices: [2, 3]\n")
    made = yaml.safe_load(compose_file(resolve_spec({}, config=file)))["services"]
    assert [devices(made[name]) for name in ENGINES[:2]] == [["2"], ["3"]]


def test_the_engines_are_alike_and_share_no_cache() -> None:
    first, second = (services("replicas=2", "api_key_file=/k")[name] for name in ENGINES[:2])
    own = {"container_name", "deploy", "volumes"}
    assert {key: value for key, value in first.items() if key not in own} == {
        key: value for key, value in second.items() if key not in own
    }
    assert {first["container_name"], second["container_name"]} == {"glm4-9b-fp4-1", "glm4-9b-fp4-2"}
    caches = [volume["source"] for one in (first, second) for volume in one["volumes"] if volume["type"] == "volume"]
    assert caches == ["cache-1", "cache-2"]


def test_only_the_router_has_a_port_and_it_knows_every_engine() -> None:
    made = services("replicas=3", "port=9000")
    assert [name for name, service in made.items() if "ports" in service] == ["router"]
    assert made["router"]["ports"] == ["127.0.0.1:9000:8080"]
    words = made["router"]["command"]
    assert words[words.index("--worker-urls") + 1 :] == [f"http://{name}:8080" for name in ENGINES]
    assert words[words.index("--policy") + 1] == "cache_aware"


def test_the_router_is_as_hardened_as_the_engine_and_never_sees_the_key() -> None:
    router = services("replicas=2", "api_key_file=/k")["router"]
    assert router["read_only"] is True
    assert router["cap_drop"] == ["ALL"]
    assert router["security_opt"] == ["no-new-privileges:true"]
    assert router["user"] == "65532:65532"
    assert {"pids_limit", "mem_limit", "healthcheck", "logging", "restart"} <= set(router)
    assert not {"secrets", "environment"} & set(router)


def test_the_routers_wheel_is_checked_against_its_hashes() -> None:
    recipe = services("replicas=2")["router"]["build"]["dockerfile_inline"]
    assert services("replicas=2")["router"]["pull_policy"] == "never", "an image of that name in a registry is not ours"
    assert "--require-hashes" in recipe
    assert recipe.count("--hash=sha256:") == 2
    assert len(recipe.splitlines()) == 2, "one line per step: a broken line would be another instruction"


def test_the_other_services_talk_to_the_router() -> None:
    made = resolve_spec({"profile": "b200"}, sets=["replicas=2", "extras=gateway,ui,monitoring"])
    files = rendered(made)
    assert "router:8080" in files["gateway/Caddyfile"]
    ui = yaml.safe_load(files[COMPOSE])["services"]["ui"]
    assert ui["environment"]["OPENAI_API_BASE_URL"] == "http://router:8080/v1"
    jobs = {job["job_name"]: job for job in yaml.safe_load(files["monitoring/prometheus.yml"])["scrape_configs"]}
    scraped = [target for group in jobs["engine"]["static_configs"] for target in group["targets"]]
    assert scraped == [f"{name}:8080" for name in ENGINES[:2]]
    assert jobs["router"]["static_configs"] == [{"targets": ["router:29000"]}]


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (("replicas=2", "devices=0"), "devices names 1"),
        (("replicas=2", "devices=0,0"), "devices names 1"),
        (("tensor_parallel_size=2", "devices=0"), "devices names 1"),
        (("replicas=2", "env.CUDA_VISIBLE_DEVICES=0"), "env.CUDA_VISIBLE_DEVICES"),
        (("replicas=2", "env.NVIDIA_VISIBLE_DEVICES=0"), "env.NVIDIA_VISIBLE_DEVICES"),
        (("replicas=2", "bind=0.0.0.0"), "bind 0.0.0.0"),
        (("replicas=2", "devices=first,second"), "devices = 'first'"),
        (("replicas=2", "devices=all"), "devices = 'all'"),
        (("profile=cpu", "devices=0"), "devices"),
        (("replicas=10", f"service={'x' * 61}"), "the service name"),
    ],
)
def test_settings_that_replicas_cannot_have_are_refused_by_name(sets: tuple[str, ...], named: str) -> None:
    with pytest.raises(UsageError) as refused:
        services(*sets)
    assert named in refused.value.message
    assert refused.value.hint


def test_an_unprotected_router_and_a_host_with_one_gpu_cause_warnings() -> None:
    warnings = resolve_spec({"profile": "gb10"}, sets=["replicas=2"]).router_warnings
    assert any("/add_worker" in text for text in warnings)
    assert any("one GPU" in text for text in warnings)
    assert resolve_spec({"profile": "gb10"}).router_warnings == ()


@pytest.mark.parametrize(("target", "warned"), [("compose", True), ("kubernetes", False)])
def test_kubernetes_without_a_router_gets_no_warning_about_one(target: str, warned: bool) -> None:
    words = ["render", "--profile", "b200", "--replicas", "2", "--target", target]
    done = preloaded.run(*words)
    assert done.returncode == 0
    assert ("/add_worker" in done.stderr) == warned


@pytest.mark.parametrize("name", ["compose-two-b200", "compose-three-named"])
def test_compose_and_its_schema_accept_it(
    name: str, compose: list[str], check_schema: list[str], tmp_path: Path
) -> None:
    file = tmp_path / COMPOSE
    file.write_text(next(iter(render_case(name).values())))
    done = subprocess.run(
        [*compose, "-f", file, "config", "--format", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)["services"]
    assert {"router", *ENGINES[:2]} <= set(read)
    assert read[ENGINES[0]]["command"] == read[ENGINES[1]]["command"]
    subprocess.run([*check_schema, file], check=True, capture_output=True)
