"""Podman's own generator reads the units; systemd starts one, with a real vLLM in it, and again after a reboot."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kit import MODEL, ROOT, Kit
from e2e.machine import BARE, Machine, machine, python_mounts, unique, wait_until
from golden.render import CASES, render_case

pytestmark = pytest.mark.e2e
UNITS = "/etc/containers/systemd"


@pytest.fixture(scope="module")
def debian(cpu_python: str) -> Iterator[Machine]:
    mounts = {Path("/usr"): Path("/host/usr"), ROOT / "demo": Path("/demo"), **python_mounts(cpu_python)}
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        if Path(name).exists():
            mounts[Path(name)] = Path(f"/host{name}")
    with machine(unique("quadlet"), mounts) as booted:
        yield booted


def generated(debian: Machine, files: dict[str, str]) -> list[str]:
    """The arguments of `podman run` as systemd passes them. The generator must not have complained."""
    debian.run("rm", "-rf", "/tmp/units")
    for name, text in files.items():
        debian.write(f"/tmp/units/{name}", text)
    made = debian.shell("QUADLET_UNIT_DIRS=/tmp/units /usr/libexec/podman/quadlet -dryrun 2>/tmp/stderr")
    complaints = [line for line in debian.run("cat", "/tmp/stderr").splitlines() if "Loading source unit" not in line]
    # It warns about an image name without a registry, and accepts it.
    assert [line for line in complaints if "fully qualified image name" not in line] == []
    verified(debian, made)
    (command,) = re.findall(r"^ExecStart=(.* run .*)$", made, re.MULTILINE)
    # systemd splits like a shell, and %% and $$ stand for % and $.
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(command)]


def verified(debian: Machine, made: str) -> None:
    """systemd accepts each generated unit without a warning about any of its lines."""
    debian.run("rm", "-rf", "/tmp/generated")
    parts = re.split(r"^---(.+)---$", made, flags=re.MULTILINE)[1:]
    names = [f"/tmp/generated/{name}" for name in parts[::2]]
    for name, text in zip(names, parts[1::2], strict=True):
        debian.write(name, text)
    lines = debian.run("systemd-analyze", "verify", *names, check=False).splitlines()
    # The generator does not quote a space there: systemd does not wait for that path, but the mount itself is right.
    lines = [line for line in lines if "RequiresMountsFor= path is not absolute" not in line]
    assert [line for line in lines if "/tmp/generated" in line] == []


def option(words: list[str], name: str) -> list[str]:
    return [words[place + 1] for place, word in enumerate(words) if word == name]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("quadlet")])
def test_the_generator_and_systemd_read_the_units_as_they_are_meant(debian: Machine, name: str) -> None:
    files = {path.name: text for path, text in render_case(name).items()}
    words = generated(debian, files)
    assert json.loads(option(words, "--health-cmd")[0])[0] == "python3", "a JSON list, so no shell is needed"
    assert option(words, "--sdnotify") == [] and "--sdnotify=healthy" in words
    if name == "quadlet-cpu":
        assert option(words, "--publish") == ["[::1]:8080:8080"]
        assert (
            'type=bind,"source=/models, new/glm-4-tiny-chat",target=/mnt/models/glm-4-tiny-chat,readonly=true' in words
        )
        assert "NOTE=50% of $it" in option(words, "--env")
        assert option(words, "--user") == ["1000:1000"] and {"--memory=16g", "--cpus=1.5"} <= set(words)
        _, flag, shell, *program = json.loads(option(words, "--entrypoint")[0])
        assert (flag, program) == ("-c", ["engine", "python3", "-m", "vllm.entrypoints.openai.api_server"])
        assert shell.startswith("VLLM_API_KEY=$(cat /run/secrets/engine_api_key)") and shell.endswith('exec "$@"')
    else:
        assert option(words, "--device") == ["nvidia.com/gpu=0"]
    if name == "quadlet-tools":
        file = "glm4_tool_parser.py"
        assert f"type=bind,source=/tmp/units/tools/{file},target=/mnt/tools/{file},readonly=true" in words


def test_a_started_unit_is_a_healthy_engine_and_starts_again_with_the_machine(
    debian: Machine, cpu_python: str, tmp_path: Path
) -> None:
    debian.shell(BARE + "podman import --quiet /tmp/bare.tar glm4-deploy/vllm-cpu:0.32.0")
    kit = Kit(directory=tmp_path, project="glm4q")
    sets = ["--set", "bind=0.0.0.0", "--set", "restart=always"]
    if not debian.limits:
        sets += ["--set", "mem_limit=null", "--set", "pids_limit=null"]
    settings = tuple("/demo/glm-4-tiny-chat" if word == str(MODEL) else word for word in kit.settings(MODEL))
    done = kit.run("render", "--target", "quadlet", *settings, *sets, "-o", tmp_path / "units")
    assert done.code == 0, done.err
    for path in (tmp_path / "units").iterdir():
        debian.write(f"{UNITS}/{path.name}", path.read_text())
    debian.write(f"{UNITS}/glm4q.container.d/10-engine.conf", engine_of_this_host(debian, cpu_python))
    debian.run("systemctl", "daemon-reload")
    debian.run("systemctl", "start", "glm4q", timeout=300)
    address = f"http://{debian.run('hostname', '--ip-address').strip()}:{kit.port}"
    smoke = kit.run("smoke", "--base-url", address, "--suite", "gate")
    assert smoke.code == 0, smoke.out

    first = running(debian)
    debian.reboot()
    wait_until(
        lambda: running(debian) not in ("", first), 90, lambda: debian.run("journalctl", "-u", "glm4q", "-n", "20")
    )
    assert debian.run("systemctl", "is-active", "glm4q", check=False).strip() == "activating", (
        "a started unit is not active before it is healthy"
    )
    debian.run("systemctl", "stop", "glm4q")
    assert running(debian) == ""


def running(debian: Machine) -> str:
    return debian.run("podman", "ps", "--quiet", "--no-trunc", "--filter", "name=glm4q").strip()


def engine_of_this_host(debian: Machine, cpu_python: str) -> str:
    """A drop-in that fills the bare image with this host's /usr and the CPU engine, as scripts/cpu-image.sh does."""
    mounts = {"/host/usr": "/usr"} | {str(path): str(path) for path in python_mounts(cpu_python)}
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        if Path(name).exists():
            mounts[f"/host{name}"] = name
    lines = [f"Volume={source}:{target}:ro" for source, target in mounts.items()]
    lines += [f"Environment=PATH={Path(cpu_python).parent}:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1"]
    if not debian.limits:
        lines += ["PodmanArgs=--cgroups=disabled"]
    return "\n".join(["[Container]", *lines, ""])
