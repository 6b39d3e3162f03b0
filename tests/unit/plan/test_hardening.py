"""Hardening: each limit can be switched off and then says why; the key stays out of argv and environment."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from glm4_deploy.catalog.rows import profiles
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.keys import ensure_key, read_key
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.services import SECRET_PATH, WITH_KEY
from glm4_deploy.render.compose import compose_file

SWITCHES = {
    "cap_drop": ("cap_drop=false", "cap_drop"),
    "no_new_privileges": ("no_new_privileges=false", "security_opt"),
    "read_only": ("read_only=false", "read_only"),
    "pids_limit": ("pids_limit=null", "pids_limit"),
    "mem_limit": ("mem_limit=null", "mem_limit"),
    "cpus": ("cpus=null", "cpus"),
    "user": ("user=null", "user"),
}
ALL_ON = ("read_only=true", "mem_limit=9gb", "cpus=3.5", "user=1000:1000")


def rendered(*sets: str, profile: str = "gb10") -> tuple[dict[str, Any], str]:
    text = compose_file(resolve_spec({"profile": profile}, sets=sets))
    (service,) = yaml.safe_load(text)["services"].values()
    return dict(service), text


@pytest.mark.parametrize("name", SWITCHES)
def test_each_limit_can_be_switched_off_and_then_says_why(name: str) -> None:
    switch, key = SWITCHES[name]
    service, text = rendered(*ALL_ON)
    assert key in service
    assert "is not set" not in text
    service, text = rendered(*ALL_ON, switch)
    assert key not in service
    assert f"# {name} is not set: " in text


@pytest.mark.parametrize("profile", list(profiles()))
def test_every_limit_that_is_off_says_why(profile: str) -> None:
    service, text = rendered(profile=profile)
    for name, (_, key) in SWITCHES.items():
        assert (key in service) != (f"# {name} is not set: " in text), name


def test_the_key_is_a_secret_file_and_the_engine_is_started_through_a_shell_that_reads_it(
    tmp_path: Path, compose: list[str]
) -> None:
    hostile = '/secrets/it\'s $HOME "key"'
    service, text = rendered(f"api_key_file={hostile}", 'args.hf-overrides={"a": "$(id) `id` $1"}')
    assert service["secrets"] == ["engine_api_key"]
    assert "entrypoint" not in service
    assert service["command"][8:11] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert "VLLM_API_KEY" not in service["environment"]
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    done = subprocess.run([*compose, "-f", file, "config", "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(text)["secrets"]["engine_api_key"]["file"] == hostile.replace("$", "$$")


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_the_launcher_passes_every_argument_unchanged(tmp_path: Path, shell: str) -> None:
    words = ["a b", '{"x": "$(id)"}', "*", "", "--flag", "it's"]
    (tmp_path / "key").write_text("s3cret\n")
    script = WITH_KEY.replace(SECRET_PATH, str(tmp_path / "key"))
    show = ["python3", "-c", "import os, sys; print([os.environ['VLLM_API_KEY'], *sys.argv[1:]])"]
    done = subprocess.run([shell, "-c", script, "engine", *show, *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["s3cret", *words])


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_an_engine_without_its_key_does_not_start_open(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    script = WITH_KEY.replace(SECRET_PATH, str(tmp_path / "key"))
    done = subprocess.run(
        ["/bin/sh", "-c", script, "engine", "echo", "up"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert "key file" in done.stderr


def test_a_key_in_the_command_line_or_the_environment_is_refused_or_warned_about() -> None:
    with pytest.raises(UsageError, match=r"args\.api-key"):
        resolve_spec({}, sets=["args.api-key=x"])
    assert any("api_key_file" in warning for warning in resolve_spec({}, sets=["env.VLLM_API_KEY=x"]).warnings)


def test_an_open_bind_warns_with_and_without_a_key() -> None:
    bare = resolve_spec({"bind": "192.0.2.7"}).warnings
    keyed = resolve_spec({"bind": "192.0.2.7"}, sets=["api_key_file=k"]).warnings
    assert any("it needs no key" in warning for warning in bare)
    assert not any("it needs no key: set" in warning for warning in keyed)
    assert any("/metrics" in warning for warning in keyed)


def test_a_key_is_made_once_in_a_private_directory_and_never_empty(tmp_path: Path) -> None:
    path = tmp_path / "deep/secrets/key"
    assert ensure_key(path)
    first = read_key(path)
    assert len(first) >= 32
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o644)
    assert not ensure_key(path)
    assert read_key(path) == first
    open_directory = tmp_path / "open"
    open_directory.mkdir(mode=0o755)
    assert ensure_key(open_directory / "key")
    assert (open_directory / "key").stat().st_mode & 0o777 == 0o600
    path.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        ensure_key(path)
