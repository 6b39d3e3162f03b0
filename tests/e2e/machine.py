"""A Debian machine that boots: a container with systemd as process 1, and Podman in it."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.kit import ROOT

# In the order of their bits. The machine gets those that this host has; `--privileged` would ask for all of them.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
)  # fmt: skip
UNCONFINED = [f"--security-opt={name}=unconfined" for name in ("apparmor", "seccomp", "systempaths")]
# A root file system of directories and links only; /usr is mounted when it runs.
BARE = """
mkdir -p /tmp/bare/{usr,etc,tmp,cache,mnt/models,proc,sys,dev,run,root} && cd /tmp/bare
for link in bin sbin lib lib64; do ln -sfn usr/$link $link; done
echo root:x:0:0:root:/root:/bin/sh >etc/passwd
tar -c . >/tmp/bare.tar
"""


class Machine:
    """A booted machine; commands run in it through `docker exec`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *words: str | Path, check: bool = True, stdin: str | None = None, timeout: float = 300) -> str:
        """Returns what the command printed, both streams."""
        done = subprocess.run(
            ["docker", "exec", *(["-i"] if stdin is not None else []), self.name, *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            input=stdin, timeout=timeout, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.stdout}"
        return done.stdout

    def shell(self, script: str) -> str:
        return self.run("bash", "-ec", script)

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', path, stdin=text)

    def wait_for_boot(self) -> None:
        """Until systemd accepts commands: its state is `starting` while any unit of the boot is, such as an engine."""
        known = {"starting", "running", "degraded"}
        wait_until(lambda: self.state().strip() in known, 90, self.state)

    def state(self) -> str:
        return self.run("systemctl", "is-system-running", check=False)

    def reboot(self) -> None:
        subprocess.run(["docker", "restart", "--time", "60", self.name], check=True, capture_output=True, timeout=120)
        self.wait_for_boot()

    @property
    def limits(self) -> bool:
        """Whether its cgroups can limit memory and processes; not on a host with cgroups version 1."""
        return "pids" in self.run("cat", "/sys/fs/cgroup/cgroup.controllers")


def wait_until(true: Callable[[], bool], seconds: float, message: Callable[[], str] = str) -> None:
    """Wait for a condition. message: of the AssertionError if it never holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, message()
        time.sleep(0.5)


@contextmanager
def machine(name: str, mounts: dict[Path, Path]) -> Iterator[Machine]:
    """Boot a machine, and remove it at the end. mounts: path on the host → path in the machine, read-only."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker engine answers")
    made = subprocess.run([ROOT / "scripts/systemd-image.sh"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no machine to boot: {made.stderr.strip()[-300:]}")
    words = ["docker", "run", "--detach", "--name", name, "--stop-signal=SIGRTMIN+3"]
    words += ["--cgroupns=private", "--device-cgroup-rule=a *:* rwm"]
    words += [f"--cap-add={capability}" for capability in _capabilities()] + UNCONFINED
    words += ["--tmpfs=/run:exec", "--tmpfs=/tmp:exec", "--volume=/var/lib/containers"]
    words += [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
    subprocess.run(["docker", "rm", "--force", "--volumes", name], capture_output=True, check=False)
    subprocess.run([*words, made.stdout.strip()], check=True, capture_output=True)
    try:
        booted = Machine(name)
        booted.wait_for_boot()
        yield booted
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], capture_output=True, check=False)


def _capabilities() -> list[str]:
    """Those in this process's bounding set."""
    status = Path("/proc/self/status").read_text()
    bounding = int(next(line for line in status.splitlines() if line.startswith("CapBnd:")).split()[1], 16)
    return [name for bit, name in enumerate(CAPABILITIES) if bounding >> bit & 1]


def python_mounts(python: str) -> dict[Path, Path]:
    """The virtual environment of a Python, and its installation unless that is below /usr, at the same paths."""
    base = subprocess.run(
        [python, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True, check=True
    )
    venv = Path(python).parent.parent
    return {path: path for path in (venv, Path(base.stdout.strip())) if not str(path).startswith("/usr")}


def unique(word: str) -> str:
    return f"glm4-{word}-{os.getpid()}"
