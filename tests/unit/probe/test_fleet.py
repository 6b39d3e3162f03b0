"""Many hosts: real sockets, a real sshd; one sick or absent host is one row."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import preloaded
from glm4_deploy.errors import UsageError
from glm4_deploy.probe.fleet import read_inventory
from servers import broken
from servers.reference import Reference
from servers.serve import mounted

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
KEY = "sk-fleet-0123456789"


def fleet(*words: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    return preloaded.run("fleet", *words, cwd=cwd, env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"})


def test_one_table_for_the_healthy_the_wrong_and_the_absent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    with mounted(Reference(token_s=0.001, key=KEY)) as good, mounted(broken.ProxyPage()) as wrong:
        (tmp_path / "fleet.yaml").write_text(
            "model: glm-4-9b-chat\nhosts:\n"
            f"  good: {{base_url: {good}, api_key_file: key}}\n"
            f"  wrong: {{base_url: {wrong}}}\n"
            "  absent: {base_url: http://127.0.0.1:1}\n"
        )
        done = fleet("status", "--json", cwd=tmp_path)
        suite = fleet("smoke", "--suite", "gate", cwd=tmp_path)
    rows = {row["host"]: row["row"] for row in json.loads(done.stdout)["hosts"]}
    assert done.returncode == 1
    assert list(rows) == ["good", "wrong", "absent"], "in the inventory's order"
    assert [row["status"] for row in rows.values()] == ["ok", "fail", "fail"]
    assert "nothing answers" in rows["absent"]["observed"]
    assert "1 of 3 hosts" in suite.stdout
    assert suite.returncode == 1
    assert KEY not in done.stdout + done.stderr + suite.stdout + suite.stderr


@pytest.fixture
def ssh_host(tmp_path: Path) -> Iterator[str]:
    """A directory with an `ssh` that knows the host `spark`: a real sshd of this user on its own port."""
    if SSHD is None:
        pytest.skip("openssh-server is not installed (scripts/test-needs.sh)")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    (tmp_path / "authorized").chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ["HostKey", f"{tmp_path}/host", "AuthorizedKeysFile", f"{tmp_path}/authorized", "StrictModes", "no"]
    server += ["Port", str(port), "ListenAddress", "127.0.0.1", "UsePAM", "no", "PidFile", "none"]
    server += ["PermitRootLogin", "prohibit-password"]
    lines = [f"{key} {value}" for key, value in zip(server[::2], server[1::2], strict=True)]
    (tmp_path / "sshd_config").write_text("\n".join(lines) + "\n")
    (tmp_path / "config").write_text(
        f"Host spark\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {tmp_path}/user\n"
        "  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
    )
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/config "$@"\n')
    (bin_ / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-f", tmp_path / "sshd_config"], stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield str(bin_)
    process.terminate()
    process.wait(10)


def test_a_host_behind_ssh_is_checked_through_a_tunnel_that_is_closed_afterwards(ssh_host: str, tmp_path: Path) -> None:
    with mounted(Reference(token_s=0.001)) as url:
        inventory = f"hosts:\n  one: {{ssh: spark, base_url: {url}}}\n  none: {{ssh: nobody.invalid}}\n"
        (tmp_path / "fleet.yaml").write_text(inventory)
        done = fleet("status", "--json", cwd=tmp_path, path=ssh_host)
    rows = {row["host"]: row["row"] for row in json.loads(done.stdout)["hosts"]}
    assert rows["one"]["status"] == "ok", rows
    assert "ssh nobody.invalid" in rows["none"]["observed"]
    assert "-o BatchMode=yes nobody.invalid" in rows["none"]["remedy"]
    left = subprocess.run(["pgrep", "-fc", f"ssh -F {tmp_path}/config"], capture_output=True, text=True, check=False)
    assert left.stdout.strip() == "0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "hosts"),
        ("hosts: {}", "hosts"),
        ("hosts: {a: {url: x}}", "hosts.a.url"),
        ("hosts: {a: {base_url: ftp://x}}", "hosts.a"),
        ("hosts: {a: {ssh: -oProxyCommand=reboot}}", "hosts.a.ssh"),
        ("hosts: [", "not valid YAML"),
    ],
)
def test_a_wrong_inventory_names_the_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "fleet.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_inventory(tmp_path / "fleet.yaml")
    assert said in caught.value.message
    assert caught.value.hint
