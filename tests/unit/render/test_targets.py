"""The targets: golden files, refused settings, the quoting of a unit, and the two scripts that a pod runs."""

import ast
import http.server
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from glm4_deploy.errors import UsageError
from glm4_deploy.plan.engine_rules import HELD_REQUESTS, LIVENESS_SECONDS, STALL_SECONDS, WORK_COUNTERS
from glm4_deploy.render.quoting import unit_word
from glm4_deploy.render.targets import TARGETS
from glm4_deploy.settings import load_settings
from glm4_deploy.watch.judge import Limits
from golden.render import GOLDEN, HERE, committed, render

ROOT = Path(__file__).parents[3]
LIVENESS = ROOT / "templates/targets/liveness.py"
DRAIN = ROOT / "templates/targets/drain.py"


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_have_not_drifted(name: str) -> None:
    made = committed(name)
    assert made == {path: path.read_text() for path in (HERE / name).iterdir()}, "run `make compose`"


@pytest.mark.parametrize(
    ("target", "setting"),
    [
        ("kubernetes", "bind=0.0.0.0"),
        ("kubernetes", "restart=no"),
        ("kubernetes", "extras=watch"),
        ("compose", "kubernetes.namespace=x"),
        ("quadlet", "replicas=2"),
        ("quadlet", "kubernetes.namespace=x"),
        ("kubernetes", "devices=0,1"),
    ],
)
def test_a_setting_that_a_target_cannot_express_is_refused_by_name(target: str, setting: str) -> None:
    with pytest.raises(UsageError) as caught:
        render(target, setting)
    key, _, value = setting.partition("=")
    assert key.split(".")[0] in caught.value.message or value in caught.value.message
    assert target in caught.value.message
    assert caught.value.hint


def test_a_unit_has_the_gpus_that_were_named_and_no_more() -> None:
    def devices(*sets: str) -> list[str]:
        unit = render("quadlet", "profile=b200", *sets)["glm4.container"]
        return [line.partition("gpu=")[2] for line in unit.splitlines() if line.startswith("AddDevice=")]

    assert devices() == ["0"]
    assert devices("tensor_parallel_size=2") == ["0", "1"]
    assert devices("tensor_parallel_size=2", "devices=3,5") == ["3", "5"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("flag", ["pipeline-parallel-size", "nnodes", "data-parallel-address", "tensor-parallel-size"])
def test_flags_that_spread_an_engine_over_other_hosts_are_refused(target: str, flag: str) -> None:
    """GPUs are counted from the settings, and nothing here would start the other parts on other hosts."""
    with pytest.raises(UsageError, match=f"args.{flag}"):
        render(target, "profile=b200", f"args.{flag}=2")


def test_every_refusal_names_a_setting() -> None:
    fields = set(type(load_settings(environ={})[0]).model_fields)
    assert all(set(target.refuses) <= fields for target in TARGETS.values())


@pytest.mark.parametrize("value", ["a b", 'say "hi"', "50%", "$HOME", "back\\slash", "", "plain"])
def test_any_value_survives_the_quoting_of_a_unit(value: str) -> None:
    quoted = unit_word(value)
    assert shlex.split(quoted) == [value.replace("%", "%%").replace("$", "$$")]


class Metrics(http.server.BaseHTTPRequestHandler):
    """Imitates an engine's /metrics in vLLM's format, with only the numbers that the probe reads."""

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


def test_the_liveness_probe_distinguishes_hung_busy_and_idle(metrics: int, tmp_path: Path) -> None:
    def alive(running: float, tokens: float) -> bool:
        Metrics.running, Metrics.tokens = running, tokens
        words = [sys.executable, LIVENESS, str(metrics), "0", tmp_path / "state.json"]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    assert alive(0, 5), "idle"
    assert alive(0, 5), "still idle"
    assert alive(3, 10), "busy: tokens moved"
    assert not alive(3, 10), "requests are running, but no counter moves"
    assert alive(3, 11), "it continues"
    dead = subprocess.run(
        [sys.executable, LIVENESS, "1", "0", tmp_path / "state.json"], check=False, capture_output=True, text=True
    )
    assert (dead.returncode, "no metrics" in dead.stdout) == (1, True)


def test_the_drain_waits_for_requests_but_no_longer_than_allowed(metrics: int) -> None:
    def drain(seconds: float, **seen: float) -> str:
        Metrics.running, Metrics.waiting = seen.get("running", 0), seen.get("waiting", 0)
        words = [sys.executable, DRAIN, str(metrics), str(seconds), "0.2"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    assert drain(0.5, running=1) == "requests are still running after 0 s\n"
    assert drain(0.5, waiting=1) == "requests are still running after 0 s\n"
    threading.Timer(1, lambda: setattr(Metrics, "running", 0)).start()
    assert drain(60, running=1) == ""
    gone = subprocess.run([sys.executable, DRAIN, "1", "6", "0"], check=True, capture_output=True, text=True)
    assert "nothing to wait for" in gone.stdout


def test_a_refusal_names_the_setting_once() -> None:
    for setting, message in (("extras=watch", "extras cannot be"), ("bind=0.0.0.0", "bind 0.0.0.0 cannot be")):
        with pytest.raises(UsageError) as caught:
            render("kubernetes", setting)
        assert caught.value.message == f"{message} expressed in the target kubernetes"


def test_everything_that_judges_a_hung_engine_uses_the_same_counters_and_limits() -> None:
    """The watch and the checks share one rule; the pod's probe and Prometheus have copies, which must agree."""
    script = ast.parse(LIVENESS.read_text())
    names = {ast.unparse(node.targets[0]): node.value for node in script.body if isinstance(node, ast.Assign)}
    assert (ast.literal_eval(names["HELD"]), ast.literal_eval(names["MOVING"])) == (HELD_REQUESTS, WORK_COUNTERS)
    [container] = next(
        document["spec"]["template"]["spec"]["containers"]
        for document in yaml.safe_load_all(render("kubernetes")["kubernetes.yaml"])
        if document["kind"] == "Deployment"
    )
    assert float(container["livenessProbe"]["exec"]["command"][3]) == LIVENESS_SECONDS > STALL_SECONDS
    assert Limits().stall_s == STALL_SECONDS
    rules = (ROOT / "templates/services/monitoring/rules.yml").read_text()
    rule = rules.partition("alert: EngineHung\n")[2].partition("annotations:")[0]
    assert set(HELD_REQUESTS) & (named := set(re.findall(r"vllm:\w+", rule)))
    assert named <= {*HELD_REQUESTS, *WORK_COUNTERS}
