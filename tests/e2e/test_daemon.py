"""A Docker engine that is killed during a deployment: a second one with its own root and socket, so that no other is
affected."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.kit import KIT, MODEL, ROOT, Kit, free_port
from e2e.machine import wait_until
from e2e.test_up import containers, inspect, wait_for
from e2e.watching import Lines
from glm4_deploy.deploy.docker import ContainerState, connect, state_of
from servers import broken
from servers.reference import Reference
from servers.serve import serving

pytestmark = pytest.mark.e2e


class Daemon:
    """A separate dockerd with its own bridge: `--bridge none` would remove the host's docker0."""

    def __init__(self, root: Path) -> None:
        self.host = f"unix://{root}/docker.sock"
        self._root = root
        self._bridge = f"glm4t{os.getpid() % 100_000}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, tries: int = 3) -> None:
        """Start it and wait until it answers. On a busy machine it may give up on its containerd: try again."""
        words = ["--data-root", self._root / "data", "--exec-root", self._root / "exec", "-H", self.host]
        words += ["--pidfile", self._root / "pid", "--bridge", self._bridge, "--iptables=false"]
        words += ["--ip-masq=false", "--ip-forward=false"]
        if not Path(f"/sys/class/net/{self._bridge}").exists():
            for command in (f"link add {self._bridge} type bridge", f"addr add 198.18.77.1/24 dev {self._bridge}"):
                subprocess.run(["ip", *command.split()], check=True)
        (self._root / "pid").unlink(missing_ok=True)
        with (self._root / "log").open("ab") as log:
            self._process = subprocess.Popen(["dockerd", *words], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while subprocess.run(["docker", "-H", self.host, "info"], capture_output=True, check=False).returncode != 0:
            if self._process.poll() is not None and tries > 1:
                self.start(tries - 1)
                return
            assert self._process.poll() is None, (self._root / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def end(self, sign: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(sign)
        self._process.wait(60)

    def remove_bridge(self) -> None:
        subprocess.run(["ip", "link", "del", self._bridge], check=False, capture_output=True)


@pytest.fixture
def daemon(cpu_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("a second dockerd needs root and the program")
    root = Path("/tmp") / f"glm4-dockerd-{os.getpid()}"  # the path of a socket must be short
    root.mkdir()
    second = Daemon(root)
    try:
        second.start()
        yield second
        second.end(signal.SIGTERM)
    finally:
        second.remove_bridge()
        # A daemon that was killed leaves its mounts.
        points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for point in sorted((point for point in points if point.startswith(f"{root}/")), reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(root, ignore_errors=True)


class Changing:
    """A server that turns sick, or well, while it serves, as an ASGI app."""

    now: Any = Reference()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.now(scope, receive, send)


ENDS_WITH_0 = "trap 'exit 0' TERM; while :; do sleep 0.1; done"


def test_a_crash_loop_ends_and_a_restarted_docker_engine_brings_back_what_served(
    daemon: Daemon, override: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rendered policy and script, around an engine that crashes, and one that ends with 0 as vLLM does.

    A watch is at work meanwhile, for which another server stands for what the container serves: it turns sick while the
    Docker engine is away.
    """
    kit = Kit(directory=tmp_path, project="glm4-ends")
    done = kit.run("render", *kit.settings(MODEL), "--set", "restart=on-failure:2", "-o", tmp_path / "compose.yaml")
    assert done.code == 0, done.err
    (service,) = yaml.safe_load((tmp_path / "compose.yaml").read_text())["services"].values()
    script = [word.replace("$$", "$") for word in service["entrypoint"][:4]]
    monkeypatch.setenv("DOCKER_HOST", daemon.host)
    subprocess.run([ROOT / "scripts/cpu-image.sh", tmp_path / "image.yaml"], check=True, capture_output=True)
    stub = tmp_path / "bin/sleep"  # only the script's long pauses are cut
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\nexec /usr/bin/sleep 0.1\n")
    stub.chmod(0o755)

    def start(name: str, engine: str) -> None:
        options = [f"--restart={service['restart']}", "--network=none", "--tmpfs=/tmp", "-v=/usr:/usr:ro"]
        options += [f"-v={name}:/cache", f"-v={stub.parent}:/stub:ro", "-e=PATH=/stub:/usr/bin:/bin"]
        words = [*options, "--name", name, service["image"], *script, "/bin/sh", "-c", engine]
        subprocess.run(["docker", "run", "-d", *words], check=True, capture_output=True)

    def state(name: str) -> ContainerState:
        found = state_of(connect().containers.get(name))
        assert found is not None
        return found

    start("serves", ENDS_WITH_0)
    start("crashes", "exit 3")
    wait_until(lambda: state("crashes").gave_up, 60, lambda: str(state("crashes")))
    log = subprocess.run(["docker", "logs", "crashes"], capture_output=True, text=True, check=True).stderr
    assert "gave up after 3 starts" in log
    server, first = Changing(), state("serves").started_at
    with serving(server) as url:
        words = ("--base-url", url, "--interval", "0.5", "--stall", "2", "--canary-every", "0", "--grace", "0")
        options = ("--container", "serves", "--backoff", "30", "--port", str(free_port()))
        watch = Lines([*KIT, "watch", "--restart", "--json", *words, *options], cwd=tmp_path)
        try:
            watch.state("ok", seconds=60)
            daemon.end(signal.SIGTERM)
            server.now = broken.Sick(started=server.now.started)
            watch.wait(lambda row: row["event"] == "restart-failed", 60)
            daemon.start()
            wait_until(lambda: state("serves").running, 60, lambda: str(state("serves")))
            watch.wait(lambda row: row["event"] == "restarted", 120)
            server.now, seen = Reference(), len(watch.rows)
            watch.state("ok", seconds=60, after=seen)
        finally:
            watch.end()
    told = [row["event"] for row in watch.rows]
    assert [event for event in told if event.startswith("restart")] == ["restart-failed", "restarted"]
    assert told.count("container-unknown") <= 1, "it may look before the server turns sick"
    assert watch.process.returncode == 0 and state("serves").running and state("serves").started_at > first
    assert state("crashes").gave_up


def test_a_docker_engine_killed_during_a_deployment_is_an_error_and_not_a_hang(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", daemon.host)
    override, network = tmp_path / "override.yaml", tmp_path / "network.yaml"
    subprocess.run([ROOT / "scripts/cpu-image.sh", override], check=True, capture_output=True)
    network.write_text("services: {glm4-9b-nvfp4: {network_mode: host, ports: !reset []}}\n")
    kit = Kit(directory=tmp_path, project=f"glm4-daemon-{os.getpid()}")
    words = [*KIT, "up", *kit.settings(MODEL), "--override", str(override), "--override", str(network)]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: bool(containers(kit.project)) and inspect(kit.project)["State"]["Running"], process)
        time.sleep(2)
        daemon.end(signal.SIGKILL)
        killed = time.monotonic()
        _, err = process.communicate(timeout=60)
        print(f"\nFIGURE Docker engine killed during a deployment, until reported: {time.monotonic() - killed:.1f} s")  # noqa: T201
    assert process.returncode == 5, err
    assert "Docker engine" in err
    assert kit.run("status").code == 5

    daemon.start()
    status = kit.run("status")
    assert status.code == 1, status.err
    assert [row["good"] for row in kit.run("releases", "--json").json["releases"]] == [False]
    assert kit.run("down", "--volumes", "--yes").code == 0
    assert containers(kit.project) == []
