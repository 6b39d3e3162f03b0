"""`init` on hosts with and without a GPU, with and without a terminal: what it finds, asks, writes and refuses."""

import os
import pty
import re
import select
import shutil
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from checkpoints import DATA
from glm4_deploy.cli.app import app
from glm4_deploy.errors import DeployError
from glm4_deploy.settings import load_settings

SRC = Path(__file__).parents[3] / "src"
# nvidia-smi stands in for a driver: it prints the columns of the kit's two queries, as a GeForce RTX 5090 reports them.
NVIDIA_SMI = """#!/bin/sh
case "$1" in
*query-gpu*)
  printf 'index, name, driver_version, compute_cap, memory.total [MiB], memory.used [MiB], memory.free [MiB], '
  echo "mig.mode.current, temperature.gpu"
  echo "0, NVIDIA GeForce RTX 5090, 590.44.01, 12.0, 32607, 2, 32120, [N/A], 31" ;;
*) echo "pid, process_name, used_gpu_memory [MiB]" ;;
esac
"""
OLD = "nvcr.io/nvidia/vllm:26.01-py3"  # it cannot load the tiny model as llm-compressor writes it


class Host:
    """A working directory with a home, and a PATH with or without a driver's tool."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, *, gpu: bool) -> None:
        self.directory = directory
        tools = directory / "tools"
        tools.mkdir()
        if gpu:
            (tools / "nvidia-smi").write_text(NVIDIA_SMI)
            (tools / "nvidia-smi").chmod(0o755)
        patch.chdir(directory)
        for name in [name for name in os.environ if name.startswith(("GLM4_", "HF_"))]:
            patch.delenv(name)
        patch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        patch.setenv("HOME", str(directory))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        patch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")

    def run(self, *words: str) -> tuple[int, str]:
        """Without a terminal; exit code and what stderr shows."""
        done = CliRunner().invoke(app, ["init", *words])
        if isinstance(done.exception, DeployError):
            return done.exception.exit_code, " ".join((done.exception.message, *done.exception.hints))
        assert done.exit_code == 0, done.exception
        return 0, done.stderr

    def typed(self, *answers: str, words: tuple[str, ...] = ()) -> tuple[int, str]:
        """On a terminal: each answer is typed at a question. Returns the exit code and all that was shown."""
        pid, terminal = pty.fork()
        if pid == 0:  # pragma: no cover (the child)
            argv = [sys.executable, "-m", "glm4_deploy", "init", *words]
            os.execve(sys.executable, argv, {**os.environ, "PYTHONPATH": str(SRC)})  # noqa: S606
        shown, left, asked = "", list(answers), 0
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if select.select([terminal], [], [], 1)[0]:
                try:
                    shown += os.read(terminal, 4096).decode()
                except OSError:  # the program has ended
                    break
            if left and len(re.findall(r"\]: ", shown)) > asked:
                asked += 1
                os.write(terminal, f"{left.pop(0)}\n".encode())
        os.close(terminal)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown

    @property
    def written(self) -> dict[str, object]:
        return dict(yaml.safe_load((self.directory / "glm4.yaml").read_text()))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch, gpu=True)


def with_model(host: Host) -> Path:
    target = host.directory / "models/glm-4-tiny"
    shutil.copytree(DATA, target)
    return target


def test_a_host_with_a_gpu_and_a_model_is_set_up_without_a_question(host: Host) -> None:
    model = with_model(host)
    with socket.socket() as busy:
        with suppress(OSError):  # somebody else holds it
            busy.bind(("127.0.0.1", 8080))
            busy.listen()
        code, shown = host.run("--yes", "--for", "16 users, 8k context")
    assert code == 0, shown
    written = host.written
    assert (written["profile"], written["model_dir"]) == ("rtx-5090", str(model))
    assert (written["max_num_seqs"], written["max_model_len"]) == (16, 8192)
    assert written["port"] != 8080
    settings, profile = load_settings(file=host.directory / "glm4.yaml", environ={})
    assert profile.name == "rtx-5090"
    assert settings.image.startswith("nvcr.io/nvidia/vllm:")
    lines = (host.directory / "glm4.yaml").read_text().splitlines()
    assert all(lines[number - 1].startswith("# ") for number, line in enumerate(lines) if not line.startswith("#"))
    assert "NVIDIA GeForce RTX 5090" in shown
    assert "tokens (glm4-deploy plan shows more)" in shown
    assert shown.rstrip().endswith("next: glm4-deploy up")


def test_an_existing_file_is_kept_without_force(host: Host) -> None:
    file = host.directory / "glm4.yaml"
    file.write_text("port: 9999\n")
    code, shown = host.run("--yes", "--no-pull")
    assert (code, "exists and is not replaced" in shown) == (2, True)
    assert file.read_text() == "port: 9999\n"
    assert host.run("--yes", "--no-pull", "--force")[0] == 0
    assert host.written["profile"] == "rtx-5090"
    assert host.written.get("port") != 9999
    assert host.run("--yes", "--no-pull")[0] == 0  # the same text again


def test_without_a_gpu_it_offers_the_demo_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, monkeypatch, gpu=False)
    code, shown = host.run("--yes")
    assert (code, "make demo" in shown) == (13, True)
    assert not (tmp_path / "glm4.yaml").exists()
    assert host.run("--yes", "--no-pull", "--profile", "gb10", "--file", "spark.yaml")[0] == 0  # for another host
    assert yaml.safe_load((tmp_path / "spark.yaml").read_text())["profile"] == "gb10"


def test_a_missing_model_is_named_with_how_to_fetch_it(host: Host) -> None:
    assert host.run()[0] == 0  # without a terminal it is as with --yes
    assert "# not there yet: glm4-deploy pull --output" in (host.directory / "glm4.yaml").read_text()
    code, shown = host.run("--pull", "--force")
    assert (code, "does not answer" in shown) == (3, True)


def test_a_model_that_the_image_cannot_load_is_named_with_its_repair(host: Host) -> None:
    model = with_model(host)
    code, shown = host.run("--yes", "--image", OLD)
    assert code == 0
    assert f"glm4-deploy checkpoint repair {model} --output {model}-0.13.0 --for 0.13.0" in shown
    assert host.written["model_dir"] == str(model)


def test_settings_that_do_not_fit_are_refused_and_not_written(host: Host) -> None:
    code, shown = host.run("--yes", "--no-pull", "--for", "1 user, 200k context")
    assert (code, "max_model_len" in shown) == (2, True)
    assert not (host.directory / "glm4.yaml").exists()


def test_on_a_terminal_it_asks_at_most_five_questions(host: Host) -> None:
    """Model, repair, load, replace, start."""
    model = with_model(host)
    (host.directory / "glm4.yaml").write_text("port: 9999\n")
    code, shown = host.typed("1", "y", "8 users, 4k context", "y", "n", words=("--image", OLD))
    assert code == 0, shown
    assert len(re.findall(r"\]: ", shown)) == 5, shown
    assert host.written["model_dir"] == f"{model}-0.13.0"
    assert Path(f"{model}-0.13.0").is_dir()
    assert (host.written["max_num_seqs"], host.written["max_model_len"]) == (8, 4096)


def test_no_on_a_terminal_changes_nothing(host: Host) -> None:
    model = with_model(host)
    (host.directory / "glm4.yaml").write_text("port: 9999\n")
    code, shown = host.typed("", "n", "", "n", words=("--image", OLD))
    assert code == 2, shown
    assert (host.directory / "glm4.yaml").read_text() == "port: 9999\n"
    assert not Path(f"{model}-0.13.0").exists()
