"""The script that starts the engine under `on-failure`: real shells and processes; only `sleep` does not wait."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.render.compose import compose_file

SHELLS = ["/bin/sh", "/bin/bash"]


class Container:
    """What survives between two starts of one container: its name and its cache."""

    def __init__(self, root: Path, shell: str = "/bin/sh", **settings: object) -> None:
        spec = resolve_spec({"profile": "cpu"}, sets=[f"{key}={value}" for key, value in settings.items()])
        (service,) = yaml.safe_load(compose_file(spec))["services"].values()
        _, flag, script, name = service.get("entrypoint", service["command"])[:4]
        assert (service["restart"], flag, name) == ("on-failure", "-c", "engine")
        self._script = script.replace("$$", "$").replace("=/cache/", f"={root}/")
        self._shell = shell
        self.ledger = root / ".starts"
        self._pauses = root / "pauses"
        stub = root / "bin/sleep"
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f"#!/bin/sh\necho $1 >>{self._pauses}\n")
        stub.chmod(0o755)
        self._environment = {**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}", "HOSTNAME": "c0ffee"}

    @property
    def pauses(self) -> list[int]:
        return [int(line) for line in self._pauses.read_text().split()] if self._pauses.exists() else []

    def popen(self, *engine: str) -> subprocess.Popen[str]:
        words = [self._shell, "-c", self._script, "engine", *engine]
        return subprocess.Popen(words, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def start(self, *engine: str) -> tuple[int, str, str]:
        """Exit code and both streams."""
        process = self.popen(*engine)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.mark.parametrize("shell", SHELLS)
def test_a_crash_loop_ends_after_growing_pauses_and_says_so(tmp_path: Path, shell: str) -> None:
    container = Container(tmp_path, shell)
    codes = [container.start("sh", "-c", "exit 3")[0] for _ in range(4)]
    code, _, err = container.start("sh", "-c", "exit 3")
    assert (codes, code) == ([3, 3, 3, 3], 0), "Docker leaves what ends with 0"
    assert container.pauses == [10, 20, 40]
    assert "gave up after 4 starts" in err and "diagnose" in err
    assert container.start("sh", "-c", "exit 3")[0] == 3, "who starts it again has a whole series"


@pytest.mark.parametrize("shell", SHELLS)
def test_an_engine_that_is_asked_to_stop_ends_in_order_and_returns_after_a_reboot(tmp_path: Path, shell: str) -> None:
    container = Container(tmp_path, shell)
    engine = "import signal, sys, time\nsignal.signal(15, lambda *_: (print('in order'), sys.exit(0)))\n"
    process = container.popen(sys.executable, "-uc", f"{engine}print('serves')\ntime.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "serves\n"
    assert container.ledger.exists()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "in order\n"), "Docker starts again what ended with an error"
    assert not container.ledger.exists(), "a stop is no failure"


def test_a_stop_during_a_pause_is_obeyed(tmp_path: Path) -> None:
    container = Container(tmp_path)
    container.start("sh", "-c", "exit 3")
    (tmp_path / "bin/sleep").write_text(f"#!/bin/sh\ntouch {tmp_path}/paused\nexec /bin/sleep 600\n")
    process = container.popen("touch", str(tmp_path / "started"))
    while not (tmp_path / "paused").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(("engine", "code"), [("exit 0", 1), ("exit 78", 78), ("kill -KILL $$", 137)])
def test_docker_learns_how_the_engine_ended(tmp_path: Path, engine: str, code: int) -> None:
    assert Container(tmp_path).start("sh", "-c", engine)[0] == code


def test_arguments_and_streams_are_passed_unchanged(tmp_path: Path) -> None:
    words = ["a b", '{"x": "$(id)"}', "*", "", "--flag", "it's", "two\nlines"]
    code, out, _ = Container(tmp_path).start("python3", "-c", "import sys; print(sys.argv[1:])", *words)
    assert (code, out.strip()) == (1, str(words))


def test_only_recent_starts_of_this_container_since_the_boot_count(tmp_path: Path) -> None:
    container = Container(tmp_path)
    now = int(float(Path("/proc/uptime").read_text().split()[0]))
    foreign = ["another 5", "c0ffee", "c0ffee x", "c0ffee $(id)", "", f"c0ffee {now + 90_000}", "\\", "c0ffee 08"]
    container.ledger.write_text("\n".join([*foreign, f"another {now}", f"c0ffee {now}", "c0ffee"]))
    container.start("sh", "-c", "exit 3")
    assert container.pauses == [10], "one start counts: the others are old, foreign, of another boot, or no times"
    assert len(container.ledger.read_text().splitlines()) == 2


def test_without_a_number_there_is_no_ceiling_and_other_policies_are_dockers_own(tmp_path: Path) -> None:
    container = Container(tmp_path, restart="on-failure")
    assert [container.start("sh", "-c", "exit 3")[0] for _ in range(7)] == [3] * 7
    assert container.pauses == [10, 20, 40, 80, 80, 80]
    (service,) = yaml.safe_load(compose_file(resolve_spec({}, sets=["restart=always"])))["services"].values()
    assert (service["restart"], service["command"][0]) == ("always", "python3")


def test_where_starts_cannot_be_counted_each_end_is_followed_by_a_long_pause(tmp_path: Path) -> None:
    container = Container(tmp_path)
    container.ledger.mkdir()
    assert container.start("sh", "-c", "exit 3")[0] == 3
    assert container.pauses == [80]


def test_the_window_holds_every_start_of_a_slow_engine() -> None:
    assert resolve_spec({}, sets=["start_period=3600"]).restart.window_s == 4 * 2 * 3600
    assert resolve_spec({}).restart.window_s == 7200
