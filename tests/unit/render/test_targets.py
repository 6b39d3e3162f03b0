"""Kubernetes, the chart's values and Quadlet: golden, parsed again, and checked by what the field checks them with."""

import http.server
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import kubernetes_validate
import pytest
import yaml

from glm4_deploy.errors import UsageError
from glm4_deploy.plan.spec import choose_fraction, plan_deployment
from glm4_deploy.render.quoting import unit_word
from glm4_deploy.render.targets import TARGETS, render_target
from glm4_deploy.settings import load_settings
from golden.render import CASES, HERE, render_case

ROOT = Path(__file__).parents[3]
LIVENESS = ROOT / "templates/targets/liveness.py"
DRAIN = ROOT / "templates/targets/drain.py"


def files(target: str, *sets: str) -> dict[str, str]:
    settings, profile = load_settings(environ={}, sets=sets)
    return dict(
        render_target(target, plan_deployment(settings, profile, choose_fraction(settings, profile)), settings, profile)
    )


def objects(text: str) -> dict[str, Any]:
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


@pytest.mark.parametrize("name", CASES)
def test_golden_files_have_not_drifted(name: str) -> None:
    made = render_case(name)
    assert made == {path: path.read_text() for path in (HERE / name).iterdir()}, "run `make compose`"


@pytest.mark.parametrize("version", ["1.33", "1.35", "1.37"])
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("kubernetes")])
def test_kubernetes_accepts_each_object(name: str, version: str) -> None:
    for text in render_case(name).values():
        for item in yaml.safe_load_all(text):
            for part in kubernetes_parts(item):
                kubernetes_validate.validate(part, version, strict=True)


def kubernetes_parts(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The object itself, if its kind is Kubernetes' own."""
    if item["kind"] not in ("ScaledObject", "PodMonitor"):  # KEDA's and the Prometheus operator's
        yield item


def test_with_a_claim_and_a_user_the_pod_is_what_the_restricted_standard_asks_for() -> None:
    """Pod Security Standards, `restricted`: every rule that a pod of this shape can break."""
    for file in render_case("kubernetes-restricted").values():
        for item in yaml.safe_load_all(file):
            for part in kubernetes_parts(item):
                spec = part.get("spec", {}).get("template", {}).get("spec")
                if spec is None:
                    continue
                assert spec["securityContext"]["runAsNonRoot"] is True
                assert spec["securityContext"]["runAsUser"] > 0
                assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
                assert spec["automountServiceAccountToken"] is False
                assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
                for volume in spec.get("volumes", []):
                    assert set(volume) - {"name"} <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
                for container in spec["containers"]:
                    context = container["securityContext"]
                    assert context["allowPrivilegeEscalation"] is False
                    assert context["capabilities"] == {"drop": ["ALL"]}


def test_memory_that_is_asked_for_is_never_above_its_limit() -> None:
    def memory(*sets: str) -> tuple[str, str]:
        pod = objects(files("kubernetes", "profile=b200", *sets)["kubernetes.yaml"])["Deployment"]["spec"]["template"][
            "spec"
        ]
        resources = pod["containers"][0]["resources"]
        return resources["requests"]["memory"], resources["limits"].get("memory", "")

    assert memory() == ("16Gi", "")
    assert memory("mem_limit=8gb") == ("8Gi", "8Gi")
    assert memory("mem_limit=64g", "kubernetes.memory=24Gi") == ("24Gi", "64Gi")


def test_kubernetes_runs_the_same_words_as_compose_and_keeps_the_entrypoint() -> None:
    service = next(iter(yaml.safe_load(files("compose", "profile=b200")["compose.yaml"])["services"].values()))
    pod = objects(files("kubernetes", "profile=b200")["kubernetes.yaml"])["Deployment"]["spec"]["template"]["spec"]
    (engine,) = pod["containers"]
    assert "command" not in engine
    assert engine["args"] == service["command"]
    assert {row["name"]: row["value"] for row in engine["env"]} == service["environment"]
    assert engine["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_key_is_named_and_never_written() -> None:
    made = files("kubernetes", "kubernetes.api_key_secret=glm4-key")
    pod = objects(made["kubernetes.yaml"])["Deployment"]["spec"]["template"]["spec"]
    source = {row["name"]: row for row in pod["containers"][0]["env"]}["VLLM_API_KEY"]
    assert source["valueFrom"]["secretKeyRef"] == {"name": "glm4-key", "key": "api-key"}
    assert (
        "--api-key-file" in objects(made["smoke-job.yaml"])["Job"]["spec"]["template"]["spec"]["containers"][0]["args"]
    )


def test_one_gpu_cannot_hold_two_engines_so_the_old_goes_first() -> None:
    def strategy(*sets: str) -> Any:
        return objects(files("kubernetes", "profile=b200", *sets)["kubernetes.yaml"])["Deployment"]["spec"]["strategy"]

    assert strategy() == {"type": "Recreate"}
    assert strategy("replicas=3")["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize(
    ("target", "wish"),
    [
        ("kubernetes", "bind=0.0.0.0"),
        ("kubernetes", "restart=no"),
        ("kubernetes", "extras=watch"),
        ("kubernetes", "model_dir=a/b"),
        ("compose", "kubernetes.namespace=x"),
        ("quadlet", "replicas=2"),
        ("quadlet", "kubernetes.namespace=x"),
        ("quadlet", "model_dir=a/b"),
        ("kubernetes", "devices=0,1"),
    ],
)
def test_a_wish_without_a_form_is_refused_by_name(target: str, wish: str) -> None:
    with pytest.raises(UsageError) as caught:
        files(target, wish)
    assert wish.split("=")[0].split(".")[0] in caught.value.message or wish.split("=")[1] in caught.value.message
    assert target in caught.value.message
    assert caught.value.hint


def test_a_unit_has_the_gpus_that_were_named_and_no_more() -> None:
    def devices(*sets: str) -> list[str]:
        unit = files("quadlet", "profile=b200", *sets)["glm4.container"]
        return [line.partition("gpu=")[2] for line in unit.splitlines() if line.startswith("AddDevice=")]

    assert devices() == ["0"]
    assert devices("tensor_parallel_size=2") == ["0", "1"]
    assert devices("tensor_parallel_size=2", "devices=3,5") == ["3", "5"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("flag", ["pipeline-parallel-size", "nnodes", "data-parallel-address", "tensor-parallel-size"])
def test_an_engine_is_not_spread_behind_the_file_s_back(target: str, flag: str) -> None:
    """Its GPUs are counted from the settings; and nothing here starts its other parts on other hosts."""
    with pytest.raises(UsageError, match=f"args.{flag}"):
        files(target, "profile=b200", f"args.{flag}=2")


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("replicas=3", "kubernetes.storage_class=a"), "kubernetes.storage_class a"),
        (("kubernetes.max_replicas=3", "kubernetes.storage_class=a"), "kubernetes.storage_class a"),
        (("replicas=3", "kubernetes.max_replicas=2"), "is below replicas 3"),
    ],
)
def test_wishes_that_contradict_each_other_are_refused(sets: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        files("kubernetes", "profile=b200", *sets)


@pytest.mark.parametrize("project", ["9b", "x" * 63, "Glm_4", "a.b"])
def test_names_are_what_a_service_may_be_called(project: str) -> None:
    made = files("kubernetes", f"project={project}")["kubernetes.yaml"]
    names = [item["metadata"]["name"] for item in yaml.safe_load_all(made)]
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in names), names


def test_every_refusal_names_a_setting() -> None:
    fields = set(type(load_settings(environ={})[0]).model_fields)
    assert all(set(target.refuses) <= fields for target in TARGETS.values())


@pytest.mark.parametrize("value", ["a b", 'say "hi"', "50%", "$HOME", "back\\slash", "", "plain"])
def test_a_word_of_a_unit_comes_out_as_it_went_in(value: str) -> None:
    quoted = unit_word(value)
    assert shlex.split(quoted) == [value.replace("%", "%%").replace("$", "$$")]


class Metrics(http.server.BaseHTTPRequestHandler):
    """Stands for an engine's /metrics, in vLLM's form: only the numbers that the probe reads."""

    running: ClassVar[float] = 0
    tokens: ClassVar[float] = 0
    waiting: ClassVar[float] = 0

    def do_GET(self) -> None:
        body = (
            f'vllm:num_requests_running{{engine="0"}} {self.running}\n'
            f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}\n'
            f'vllm:generation_tokens_total{{engine="0",model_name="a b"}} {self.tokens}\n'
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def metrics() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_the_liveness_probe_tells_hanging_from_busy_and_from_idle(metrics: int, tmp_path: Path) -> None:
    def alive(running: float, tokens: float) -> bool:
        Metrics.running, Metrics.tokens = running, tokens
        words = [sys.executable, LIVENESS, str(metrics), "0", tmp_path / "state.json"]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    assert alive(0, 5), "idle"
    assert alive(0, 5), "still idle"
    assert alive(3, 10), "busy: tokens moved"
    assert not alive(3, 10), "requests run and nothing moves"
    assert alive(3, 11), "it goes on"
    dead = subprocess.run(
        [sys.executable, LIVENESS, "1", "0", tmp_path / "state.json"], check=False, capture_output=True, text=True
    )
    assert (dead.returncode, "no metrics" in dead.stdout) == (1, True)


def test_the_drain_waits_for_requests_and_no_longer_than_it_may(metrics: int) -> None:
    def drain(seconds: float, **seen: float) -> tuple[str, float]:
        Metrics.running, Metrics.waiting = seen.get("running", 0), seen.get("waiting", 0)
        before = time.monotonic()
        words = [sys.executable, DRAIN, str(metrics), str(seconds), "0.2"]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        return done.stdout, time.monotonic() - before

    assert drain(0.5, running=1)[0] == "requests still run after 0 s\n"
    assert drain(0.5, waiting=1)[0] == "requests still run after 0 s\n"
    threading.Timer(1, lambda: setattr(Metrics, "running", 0)).start()
    said, seconds = drain(60, running=1)
    assert (said, seconds < 30) == ("", True)
    gone = subprocess.run([sys.executable, DRAIN, "1", "6", "0"], check=True, capture_output=True, text=True)
    assert "nothing to wait for" in gone.stdout


def test_a_refusal_names_the_wish_once() -> None:
    for wish, said in (("extras=watch", "extras cannot be"), ("bind=0.0.0.0", "bind 0.0.0.0 cannot be")):
        with pytest.raises(UsageError) as caught:
            files("kubernetes", wish)
        assert caught.value.message == f"{said} expressed in the target kubernetes"
