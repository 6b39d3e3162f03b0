"""Each version of vLLM that an image tag stands for, as a real engine on the CPU: does the kit know it?

`make test` deploys the default image's engine (the other tests here deploy the newest), and asks both for their
arguments and checkpoints. `make matrix ENGINES="0.15.1 0.31.0"` runs all tests for any of scripts/engines.toml. The
table that it prints is in docs/lab/engines.md.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from scripts import engines
from scripts.engines import EngineRow

import tool_calls
from e2e.engine import engine
from e2e.kit import KIT, MODEL, ROOT, Kit, free_port
from e2e.watching import Lines, cores
from glm4_deploy.catalog import changes
from glm4_deploy.catalog.images import images
from glm4_deploy.catalog.rows import parse_version, profiles
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.errors import PlanRefused, UsageError
from glm4_deploy.settings import Settings

pytestmark = pytest.mark.e2e
RIG = ROOT / "tests/nvfp4_rig"
NVFP4 = ROOT / "demo/glm-4-tiny-chat-nvfp4"
Observe = Callable[[str, object], None]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One engine, and where its checkpoints go."""

    row: EngineRow
    python: str
    directory: Path
    out: Path | None

    @property
    def vllm(self) -> str:
        return self.row.vllm

    def verify(self, checkpoint: Path) -> dict[str, Any]:
        """Each rule's status for this version."""
        report = self._kit.run("checkpoint", "verify", checkpoint, "--vllm", self.vllm, "--json").json
        return {row["check"]: row["status"] for row in report["results"]}

    def repaired(self, checkpoint: Path) -> Path:
        """What this version can load: the checkpoint itself if it needs no repair."""
        if "fail" not in self.verify(checkpoint).values():
            return checkpoint
        output = self.directory / f"{checkpoint.name}-repaired"
        if not output.exists():
            done = self._kit.run("checkpoint", "repair", checkpoint, "--output", output, "--for", self.vllm)
            assert done.code == 0, done.err
        return output

    @property
    def _kit(self) -> Kit:
        return Kit(directory=self.directory, project="unused")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = (metafunc.config.getoption("--engines") or "").split() or [engines.default(), engines.newest()]
    metafunc.parametrize("bench", chosen, indirect=True, scope="module", ids=chosen)


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    done = subprocess.run([ROOT / "scripts/cpu-engine.sh", request.param], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    out = request.config.getoption("--engines-out")
    return Bench(
        row=engines.rows()[request.param],
        python=done.stdout.strip(),
        directory=tmp_path_factory.mktemp(request.param),
        out=Path(out) if out else None,
    )


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What `up` said, and the directory that it ran in."""

    kit: Kit
    code: int
    said: str

    @property
    def log(self) -> Path:
        return self.kit.directory / ".glm4/engine.log"


@contextmanager
def up(bench: Bench, checkpoint: Path, *words: str, rig: bool = False) -> Iterator[Deployed]:
    """`up --runner process` with this engine, and `down` at the end."""
    directory = bench.directory / f"run-{checkpoint.name}"
    directory.mkdir()
    kit = Kit(directory=directory, project="glm4-matrix", env=environment(bench, rig=rig))
    how = ("--runner", "process", "--image-tag", bench.vllm, "--timeout", "600")
    try:
        done = kit.up(*how, *words, model=bench.repaired(checkpoint), timeout=1800)
        yield Deployed(kit=kit, code=done.code, said=done.out + done.err)
    finally:
        kit.run("down", "--yes")


def environment(bench: Bench, *, rig: bool) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(RIG) if rig else "", os.environ.get("PYTHONPATH", "")]))
    return {"GLM4_CPU_PYTHON": bench.python} | ({"PYTHONPATH": path} if path else {})


@pytest.fixture(scope="module")
def deployed(bench: Bench) -> Iterator[Deployed]:
    """The demo model in bf16, repaired as this version needs it, started by `up`."""
    with up(bench, MODEL) as running:
        yield running


# The command line.

# Texts have no other values to try; these are what docs/reference/settings.md shows.
DOCUMENTED = ({"quantization": "none"}, {"args.seed": 7}, {"args.enable-log-requests": ""})


def variations() -> Iterator[dict[str, Any]]:
    """Every profile as it is; and, one at a time, every setting with each of its choices or another value."""
    for profile in profiles():
        yield {"profile": profile}
    yield from DOCUMENTED
    for name, field in Settings.model_fields.items():
        kinds = get_args(field.annotation) if get_origin(field.annotation) is not Literal else (field.annotation,)
        for kind in kinds or (field.annotation,):
            if get_origin(kind) is Literal:
                yield from ({name: choice} for choice in get_args(kind))
            elif kind is bool:
                yield {name: not field.default}
            elif kind is int:
                yield {name: 2}
                yield {name: 1024}


def command_lines(vllm: str) -> dict[tuple[str, ...], str]:
    """Arguments of the engine → the settings that gave them. What the kit refuses to render is left out."""
    tags = [tag for tag, image in images().items() if image.vllm == parse_version(vllm)] or [vllm]
    lines = {}
    for settings in variations():
        for tag in tags:
            image = {"image_tag": tag} if "image_tag" not in settings and settings.get("profile") != "cpu" else {}
            sets = [f"{name}={value}" for name, value in {**image, **settings}.items()]
            try:
                spec = resolve_spec({}, sets=sets)
            except (UsageError, PlanRefused):
                continue
            lines.setdefault(spec.argv[len(spec.program) :], " ".join(sets))
    return lines


def test_its_own_parser_takes_every_command_line(bench: Bench, record_property: Observe) -> None:
    lines = command_lines(bench.vllm)
    assert len(lines) > len(profiles()), "the settings change nothing"
    parser = [bench.python, ROOT / "tests/e2e/parse_arguments.py"]
    given = json.dumps([*lines, ["--no-such-argument"]])
    done = subprocess.run(parser, input=given, capture_output=True, text=True, check=True, cwd=bench.directory)
    found = json.loads(done.stdout.splitlines()[-1])
    *complaints, control = found["complaints"]
    assert control, "the parser refuses nothing"
    refused = {settings: said for settings, said in zip(lines.values(), complaints, strict=True) if said}
    assert not refused
    record_property("observed", f"{len(lines)} command lines")
    rendered = {variable.name for variable in resolve_spec({}).environment if variable.name.startswith("VLLM_")}
    for what, table in (("flags", changes.flags()), ("variables", changes.variables())):
        known = {name for name, span in table.items() if span.knows(bench.row.version)}
        assert known == set(found[what]) & set(table), f"catalog/changes.yaml says which version has which {what}"
    gone = {name for name in rendered if changes.variable_trouble(name, bench.row.version)}
    unread = {"VLLM_FP4_ENABLED"} | gone
    assert rendered - set(found["variables"]) == unread, "variables.yaml says which version reads what"


def test_it_loads_the_tool_parser_which_parses_as_without_it(bench: Bench, record_property: Observe) -> None:
    outputs = [output for output in tool_calls.corpus() if len(output.text) < 1000]
    program = [bench.python, ROOT / "tests/e2e/parse_tool_calls.py", tool_calls.PLUGIN]
    given = json.dumps({"names": tool_calls.NAMES, "outputs": [output.text for output in outputs]})
    done = subprocess.run(program, input=given, capture_output=True, text=True, check=False, cwd=bench.directory)
    assert done.returncode == 0, done.stderr[-3000:]
    for output, (whole, streamed, refused) in zip(outputs, json.loads(done.stdout.splitlines()[-1]), strict=True):
        calls = [list(call) for call in output.calls]
        assert whole[1] == streamed[1] == calls, output.kind
        assert refused == [output.text, []], "tool_choice none: all of it is text"
        if not calls:
            assert whole[0].strip() == output.content.strip(), output.kind
        if output.kind in ("prose", "prose, call", "call, prose", "token in text"):
            assert streamed[0] == output.content, output.kind
    record_property("observed", f"{len(outputs)} outputs, whole and letter by letter")


# Checkpoints.


@pytest.mark.parametrize("weights", ["bf16", pytest.param("nvfp4", marks=pytest.mark.matrix)])
def test_verify_says_what_the_engine_does_with_the_raw_checkpoint(
    bench: Bench, weights: str, tmp_path: Path, record_property: Observe
) -> None:
    raw = {"bf16": MODEL, "nvfp4": NVFP4}[weights]
    failures = [check for check, status in bench.verify(raw).items() if status == "fail"]
    record_property("observed", f"dies: {', '.join(failures)}" if failures else "loads")
    if not failures:
        assert bench.repaired(raw) == raw
        return  # `up` starts this very checkpoint
    log = tmp_path / "engine.log"
    rig = {"PYTHONPATH": str(RIG)} if weights == "nvfp4" else {}
    with pytest.raises(AssertionError, match="the engine died"), engine(bench.python, raw, log, env=rig):
        pytest.fail(f"vLLM {bench.vllm} loads what verify refuses for {failures}")
    keep(bench, log, f"raw-{weights}")
    report = Kit(directory=tmp_path, project="unused").run("diagnose", log, "--json").json
    found = [row["id"] for row in report["findings"]]
    assert found[0] not in ("unknown-error", "unknown-exception", "engine-core-failed"), report["findings"][0]


# A deployment.


def test_up_is_green(bench: Bench, deployed: Deployed) -> None:
    assert deployed.code == 0, deployed.said
    keep(bench, deployed.log, "bf16")


def keep(bench: Bench, log: Path, name: str) -> None:
    """Keep an engine's log, if `--engines-out` says where."""
    if bench.out:
        bench.out.mkdir(parents=True, exist_ok=True)
        shutil.copy(log, bench.out / f"{bench.vllm}-{name}.log")


def test_diagnose_reads_a_healthy_start(bench: Bench, deployed: Deployed, record_property: Observe) -> None:
    done = deployed.kit.run("diagnose", "--json")
    report = done.json
    assert (done.code, report["version"], report["phase"]) == (0, bench.vllm, "ready"), report
    assert report["kv_cache_tokens"], report
    loud = [row for row in report["findings"] if row["severity"] in ("error", "warn")]
    assert not loud
    record_property("observed", f"ready in {report['ready_s']} s, KV {report['kv_cache_tokens']} tokens")


def test_status_says_up(bench: Bench, deployed: Deployed) -> None:
    done = deployed.kit.run("status", "--json")
    assert done.code == 0, done.out + done.err
    assert done.json["models"] == ["glm-4-9b-chat"]


def test_the_suite_passes(bench: Bench, deployed: Deployed, request: pytest.FixtureRequest) -> None:
    """The full one if engines are named, else the quick one."""
    suite = "full" if request.config.getoption("--engines") else "quick"
    skips = [word for check in bench.row.smoke_skips for word in ("--skip", check)]
    done = deployed.kit.run("smoke", "--suite", suite, *skips, "--json", "smoke.json", timeout=3600)
    rows = json.loads((deployed.kit.directory / "smoke.json").read_text())["results"]
    assert done.code == 0, [row for row in rows if row["status"] not in ("ok", "skipped")]
    without = f", without {' '.join(skips[1::2])}" if skips else ""
    request.node.user_properties.append(("observed", f"{sum(row['status'] == 'ok' for row in rows)} ok{without}"))


@pytest.mark.matrix
def test_watch_sees_a_stopped_core_and_its_return(
    bench: Bench, deployed: Deployed, record_property: Observe, tmp_path: Path
) -> None:
    fast = ("--interval", "1", "--stall", "10", "--canary-every", "5", "--canary-tokens", "64")
    words = [*KIT, "watch", "--json", *fast, "--port", str(free_port())]
    watch = Lines(words, cwd=deployed.kit.directory)
    stopped: list[int] = []
    try:
        watch.state("ok", seconds=120)
        api = int((deployed.kit.directory / ".glm4/engine.pid").read_text().partition(":")[0])
        stopped = cores(api)
        assert stopped
        seen = len(watch.rows)
        for core in stopped:
            os.kill(core, signal.SIGSTOP)
        hung = watch.state("hung", seconds=120, after=seen)
        seen = len(watch.rows)
        for core in stopped:
            os.kill(core, signal.SIGCONT)
        back = watch.state("ok", seconds=120, after=seen)
        record_property("observed", f"hung after {hung:.0f} s, ok again after {back:.0f} s")
    finally:
        for core in stopped:
            os.kill(core, signal.SIGCONT)
        watch.end()


# NVFP4, by emulation.


@pytest.fixture(scope="module")
def emulated(bench: Bench, deployed: Deployed) -> Iterator[Deployed]:
    """The NVFP4 demo checkpoint, repaired as this version needs it; after the other engine, which is stopped first."""
    deployed.kit.run("down", "--yes")
    with up(bench, NVFP4, "--set", "quantization=compressed-tensors", rig=True) as running:
        yield running


@pytest.mark.matrix
def test_nvfp4_is_green_and_said_to_be_emulated(bench: Bench, emulated: Deployed, record_property: Observe) -> None:
    assert emulated.code == 0, emulated.said
    keep(bench, emulated.log, "nvfp4")
    report = emulated.kit.run("diagnose", "--json").json
    assert (report["version"], report["phase"], report["native_fp4"]) == (bench.vllm, "ready", False)
    assert [row["id"] for row in report["findings"] if row["severity"] != "info"] == ["not-native-fp4"]
    record_property("observed", report["kernel"])
