"""Releases on a real Docker engine with a real vLLM: a failed release is replaced by the last good one.

The tests of `served` run in order on one deployment, since each start takes a minute; each leaves it serving. Their
measurements are printed (`-s`), for docs/lab/releases.md.
"""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.kit import KIT, MODEL, Kit
from e2e.test_up import containers, inspect, wait_for

pytestmark = pytest.mark.e2e


class Served:
    """A deployment with at least one good release."""

    def __init__(self, kit: Kit, override: Path) -> None:
        self.kit = kit
        self.words = ("--override", override)

    def up(self, *words: str | Path, model: Path = MODEL) -> Any:
        return self.kit.up(*self.words, *words, "--json", model=model)

    def popen(self, *words: str) -> "subprocess.Popen[str]":
        argv = [*KIT, "up", *self.kit.settings(MODEL), *map(str, self.words), *words, "--json"]
        return subprocess.Popen(
            argv, cwd=self.kit.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )

    @property
    def releases(self) -> list[dict[str, Any]]:
        done = self.kit.run("releases", "--json")
        assert done.code == 0, done.err
        rows: list[dict[str, Any]] = done.json["releases"]
        return rows

    @property
    def id(self) -> str:
        return str(inspect(self.kit.project)["Id"])

    def assert_serves(self) -> None:
        status = self.kit.run("status", "--json")
        assert status.code == 0, status.out + status.err
        assert [row["id"] for row in self.releases if row["in_service"]] == [status.json["release"]]


def figure(name: str, seconds: float) -> None:
    print(f"\nFIGURE {name}: {seconds:.1f} s")  # noqa: T201


@pytest.fixture(scope="module")
def served(override: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    kit = Kit(directory=tmp_path_factory.mktemp("served"), project=f"glm4-served-{os.getpid()}")
    deployment = Served(kit, override)
    try:
        with deployment.popen("--set", "env.HF_TOKEN=hf_notToBeSeen12345") as first:
            wait_for(lambda: bool(containers(kit.project)), first)
            second = kit.up(*deployment.words)  # while the first is at work
            assert second.code == 14, second.err
            assert f"pid {first.pid}" in second.err
            out, err = first.communicate(timeout=400)
        assert first.returncode == 0, err
        assert json.loads(out)["release"].startswith("0001-")
        yield deployment
    finally:
        kit.run("down", "--volumes", "--yes")


def test_a_release_keeps_what_is_needed_to_restore_it_and_no_secret(served: Served) -> None:
    (only,) = served.releases
    assert only["good"]
    assert only["in_service"]
    assert only["fingerprint"]
    assert only["image"]["id"].startswith("sha256:")
    assert only["engine"]["version"].startswith("0.32")
    assert only["ready_seconds"] > 5
    directory = served.kit.directory / ".glm4/releases" / only["id"]
    assert "Application startup complete" in (directory / "boot.log").read_text()
    assert {row["check"] for row in json.loads((directory / "smoke.json").read_text())["results"]} > {"chat", "alive"}
    assert (directory / "compose.yaml").read_text() == (served.kit.directory / ".glm4/compose.yaml").read_text()
    for path in directory.iterdir():
        if path.name != "compose.yaml":  # it is started again unchanged, and only its owner can read it
            assert "notToBeSeen" not in path.read_text(), path.name
        assert path.stat().st_mode & 0o077 == 0
    served.assert_serves()


def test_a_deployment_whose_kit_was_killed_can_be_diagnosed_and_resumed(served: Served) -> None:
    half = served.kit.directory / ".glm4/releases/0009-20260101T000000Z"
    half.mkdir()
    (half / "compose.yaml").write_text("half-writ")
    before = served.id
    with served.popen("--set", "max_num_seqs=8") as process:
        wait_for(lambda: bool(containers(served.kit.project)) and served.id != before and running(served), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = time.monotonic()

    status = served.kit.run("status")
    assert status.code == 1
    assert "cut off in the stage `start`" in status.err
    assert "glm4-deploy rollback 0001-" in status.err

    started = served.id
    again = served.up("--set", "max_num_seqs=8")
    assert again.code == 0, again.err
    figure("kit killed during a deployment, `up` again until gated", time.monotonic() - killed)
    assert "was cut off" in again.err
    assert served.id == started, "it continues with the engine that is starting"
    assert again.json["release"].startswith("0002-")
    assert not half.exists()
    assert [row["good"] for row in served.releases] == [True, True]
    served.assert_serves()


def running(served: Served) -> bool:
    return bool(inspect(served.kit.project)["State"]["Running"])


def test_the_same_settings_are_gated_again_without_a_restart_or_a_new_release(served: Served) -> None:
    before, known = served.id, served.releases
    done = served.up("--set", "max_num_seqs=8")
    assert done.code == 0, done.err
    assert done.json["kept"] is True
    assert done.json["release"] == known[-1]["id"]
    assert served.id == before
    assert served.releases == known


def test_a_sick_model_fails_its_gate_and_the_good_one_is_restored_and_gated(
    served: Served, twin: Callable[[str], Path]
) -> None:
    good = served.releases[-1]
    done = served.up("--set", "max_num_seqs=8", model=twin("loops"))
    assert done.code == 15, done.err
    report = done.json
    assert report["verdict"] == "fail"
    assert report["error"]["exit_code"] == 1
    assert report["restored"]["verdict"] in ("ok", "warn")
    figure("sick model: from stopping the old to the failed gate", report["seconds"])
    figure("sick model: from there until the good one is gated again", report["restored"]["seconds"])
    failed, back = served.releases[-2:]
    assert not failed["good"]
    assert failed["reason"]
    assert back["restores"] == good["id"]
    assert back["content"] == good["content"]
    assert httpx.get(f"http://127.0.0.1:{served.kit.port}/v1/models", timeout=5).status_code == 200
    served.assert_serves()
    difference = served.kit.run("diff", failed["id"], back["id"], "--json").json
    assert "model_dir" in {change["name"] for change in difference["changes"]}
    refused = served.kit.run("rollback", failed["id"])
    assert refused.code == 2
    assert "never passed its gate" in refused.err


def test_an_engine_killed_while_serving_is_noticed_and_gated_again(served: Served) -> None:
    pid = inspect(served.kit.project)["State"]["Pid"]
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    while (status := served.kit.run("status")).code == 0:
        assert time.monotonic() - killed < 20
    figure("engine killed while serving, until `status` says so", time.monotonic() - killed)
    assert "not up" in status.err
    done = served.up("--set", "max_num_seqs=8")  # Docker has restarted it: restart: on-failure
    assert done.code == 0, done.err
    figure("engine killed while serving, until gated again", time.monotonic() - killed)
    assert inspect(served.kit.project)["RestartCount"] == 1
    served.assert_serves()


class Thief(threading.Thread):
    """Takes a port as soon as it is free."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self.held: socket.socket | None = None
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.is_set() and self.held is None:
            probe = socket.socket()
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self._port))
                probe.listen()
                self.held = probe
            except OSError:
                probe.close()

    def stop(self) -> None:
        self.enough.set()
        self.join()
        if self.held is not None:
            self.held.close()


def test_a_port_stolen_between_stop_and_start_is_reported_and_nothing_is_lost(served: Served) -> None:
    known = served.releases
    thief = Thief(served.kit.port)
    thief.start()
    try:
        begin = time.monotonic()
        done = served.up("--set", "max_num_seqs=4")
        figure("port stolen between stop and start, until reported", time.monotonic() - begin)
        assert thief.held is not None, "the port was never free"
        assert done.code == 16, done.err
        assert "port" in done.err
        assert "nothing serves now" in done.err
        taken = served.kit.run("rollback")
        assert taken.code == 8, taken.err
    finally:
        thief.stop()
    assert served.releases[: len(known)] == [{**row, "in_service": False} for row in known]

    begin = time.monotonic()
    back = served.kit.run("rollback", "--json")
    assert back.code == 0, back.err
    figure("port free again: `rollback` until gated", time.monotonic() - begin)
    assert served.releases[-1]["restores"] == known[-1]["id"]
    served.assert_serves()


def test_a_rollback_to_a_changed_checkpoint_or_image_is_refused(served: Served, tmp_path: Path) -> None:
    record = served.kit.directory / ".glm4/releases" / served.releases[0]["id"] / "release.json"
    original = record.read_text()
    before = served.id
    try:
        content = json.loads(original)
        record.write_text(json.dumps(content | {"fingerprint": "0" * 12}))
        other = served.kit.run("rollback", "1")
        assert other.code == 10, other.err
        assert "holds another checkpoint now" in other.err
        record.write_text(json.dumps(content | {"image": content["image"] | {"id": f"sha256:{'0' * 64}"}}))
        gone = served.kit.run("rollback", "1")
        assert gone.code == 19, gone.err
        assert "no longer on this host" in gone.err
        moved = content["endpoint"] | {"model_dir": str(tmp_path / "gone")}
        record.write_text(json.dumps(content | {"endpoint": moved}))
        assert served.kit.run("rollback", "1").code == 9
    finally:
        record.write_text(original)
    assert served.id == before, "the running engine was not touched"
    served.assert_serves()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_reported_before_anything_is_touched(kit: Kit, override: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        done = kit.up("--override", override, "--state-dir", small / "state")
        assert done.code == 18, done.err
        assert "No space left" in done.err
        assert containers(kit.project) == []
        assert kit.run("releases", "--state-dir", small / "state", "--json").json["releases"] == []
        assert kit.run("status", "--state-dir", small / "state").code == 1
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_engine_out_of_memory_ends_the_wait_at_once(kit: Kit, override: Path, tmp_path: Path) -> None:
    tight = tmp_path / "tight.yaml"
    tight.write_text("services: {glm4-9b-nvfp4: {mem_limit: 300m, memswap_limit: 300m}}\n")
    done = kit.up("--override", override, "--override", tight)
    assert done.code == 11, done.err
    assert "memory" in done.err
    assert "no earlier release is good" in done.err
    assert inspect(kit.project)["State"]["Running"] is False
