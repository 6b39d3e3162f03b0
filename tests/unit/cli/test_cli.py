"""Bad input as users give it: one sentence, a hint, the documented exit code, no traceback, nothing half-written."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.reference import help_of

import preloaded
from glm4_deploy.cli.app import COMMANDS

RENDERED = Path(__file__).parents[3] / "compose/gb10.yaml"

KIT = [sys.executable, "-m", "glm4_deploy"]
NO_ENGINE = "unix:///nonexistent/docker.sock"


def kit(*words: str, cwd: Path, prefix: tuple[str, ...] = (), **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environ}
    if prefix:
        words = (*prefix, *KIT, *words)
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=60, env=env)
    else:
        done = preloaded.run(*words, cwd=cwd, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def model(directory: Path) -> Path:
    made = directory / "glm-4-x"
    made.mkdir()
    (made / "config.json").write_text("{}")
    return made


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["render", "--gpu-memory-utilization", "1.5"], 2, "gpu_memory_utilization"),
        (["render", "--max-model-len", "0"], 2, "max_model_len"),
        (["render", "--profile", "gb1"], 2, "did you mean 'gb10'"),
        (["render", "--port", "eighty"], 2, "--port"),
        (["render", "--check"], 2, "no file to compare"),
        (["up", "--timeout", "-3"], 2, "--timeout"),
        (["releases", "--state-dir", "/etc/passwd"], 2, "is a file"),
        (["bundle", "create", str(RENDERED), "--output", "/etc/passwd"], 2, "is a file"),
        (["render", "--diff", "none.yaml"], 2, "cannot read none.yaml"),
        (["render", "--config", "none.yaml"], 2, "no settings file"),
        (["render", "-o", "/proc/nowhere/compose.yaml"], 18, "cannot write"),
        (["up", "--profile", "seed", "--runner", "process"], 2, "cpu profile only"),
        (["up", "--profile", "seed", "--runner", "magic"], 2, "not known"),
        (["up", "--profile", "cpu", "--runner", "process", "--model-dir", "/none"], 9, "no model directory at /none"),
        (["up", "--profile", "b200", "--model-dir", "/none"], 9, "no model directory at /none"),  # no Docker is needed
        (["logs", "--tail", "many"], 2, "--tail"),
        (["watch", "--base-url", "foo"], 2, "not an http(s) address"),
        (["watch", "--base-url", "http://127.0.0.1:9", "--listen", "203.0.113.9"], 2, "cannot listen"),
        (["watch", "--for", "long"], 2, "write it like 90s, 30m, 8h or 500ms"),
        (["watch", "--canary-every", "1"], 2, "shorter than --interval"),
        (["bundle", "verify", "nofile"], 2, "directory nofile does not exist"),
        (["bundle", "verify", "."], 2, "does not contain a bundle"),
        (["image", "build", "--base", ""], 2, "--base '' is not a valid image reference"),
        (["image", "build", "--tag", "-x"], 2, "--tag '-x' is not a valid image reference"),
        (["nosuch"], 2, "No such command"),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    done = kit(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


def test_a_model_directory_that_is_empty_or_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    words = ("up", "--profile", "cpu", "--runner", "process", "--model-dir")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = kit(*words, str(empty), cwd=tmp_path)
    assert (done.returncode, "is empty" in done.stderr) == (9, True)
    (empty / "readme.txt").write_text("x")
    done = kit(*words, str(empty), cwd=tmp_path)
    assert (done.returncode, "no config.json" in done.stderr) == (9, True)


def test_without_a_profile_nothing_is_rendered_without_limits(tmp_path: Path) -> None:
    done = kit("render", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "profile" in done.stderr, "which one, and why"
    assert "cap_drop" in done.stdout
    assert "ipc: host" not in done.stdout
    assert "cap_drop: " not in kit("render", "--profile", "seed", cwd=tmp_path).stdout, "as its publisher wrote it"


def test_an_unknown_key_in_the_settings_file_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "glm4.yaml").write_text("max_model_length: 4096\n")
    done = kit("render", cwd=tmp_path)
    assert done.returncode == 2
    assert "max_model_length" in done.stderr
    assert "did you mean 'max_model_len'" in done.stderr


def path_with(directory: Path, **programs: str) -> str:
    """A PATH with only these programs, each a link or a one-line script."""
    made = directory / "bin"
    made.mkdir()
    for name, content in programs.items():
        if content.startswith("/"):
            (made / name).symlink_to(content)
        else:
            (made / name).write_text(f"#!/bin/sh\n{content}\n")
            (made / name).chmod(0o755)
    return str(made)


COMPOSE = str(Path(sys.executable).parent / "docker-compose")


def test_without_a_docker_engine_up_says_so(tmp_path: Path) -> None:
    words = ("up", "--profile", "cpu", "--model-dir", str(model(tmp_path)))
    path = path_with(tmp_path, **{"docker-compose": COMPOSE})
    done = kit(*words, cwd=tmp_path, DOCKER_HOST=NO_ENGINE, PATH=path)
    assert done.returncode == 5, done.stderr
    assert "no Docker engine answers" in done.stderr
    (tmp_path / "none").mkdir()
    done = kit(*words, cwd=tmp_path, PATH=str(tmp_path / "none"))
    assert done.returncode == 5, done.stderr
    assert "no Docker client" in done.stderr


def test_without_compose_up_says_so(tmp_path: Path) -> None:
    words = ("up", "--profile", "cpu", "--model-dir", str(model(tmp_path)))
    # Imitates a docker client without the compose plugin.
    path = path_with(tmp_path, docker="echo \"docker: 'compose' is not a docker command\" >&2; exit 1")
    done = kit(*words, cwd=tmp_path, PATH=path)
    assert done.returncode == 6, done.stderr
    assert "docker compose is not installed" in done.stderr


def test_an_old_compose_is_reported(tmp_path: Path) -> None:
    words = ("up", "--profile", "cpu", "--model-dir", str(model(tmp_path)))
    done = kit(*words, cwd=tmp_path, PATH=path_with(tmp_path, docker="echo 2.3.3"))
    assert done.returncode == 6, done.stderr
    assert "2.3.3 is too old" in done.stderr


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv to drop a capability"
)
def test_without_permission_on_the_socket_up_says_so(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        os.chown(path, 65534, 65534)
        path.chmod(0o600)
        done = kit(
            *("up", "--profile", "cpu", "--model-dir", str(model(tmp_path))),
            cwd=tmp_path,
            prefix=("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"),
            DOCKER_HOST=f"unix://{path}",
            PATH=f"{path_with(tmp_path, **{'docker-compose': COMPOSE})}:{os.environ['PATH']}",
        )
    assert done.returncode == 7, done.stderr
    assert "no permission" in done.stderr


def test_check_and_diff_report_drift(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    assert kit("render", "--port", "9000", "-o", str(file), cwd=tmp_path).returncode == 0
    same = kit("render", "--port", "9000", "--check", "-o", str(file), cwd=tmp_path)
    assert (same.returncode, same.stdout) == (0, "")
    before = file.read_bytes()
    other = kit("render", "--port", "9001", "--diff", str(file), cwd=tmp_path)
    assert other.returncode == 0
    assert '+      - "127.0.0.1:9001:8080"' in other.stdout
    assert kit("render", "--port", "9001", "--check", "-o", str(file), cwd=tmp_path).returncode == 1
    assert file.read_bytes() == before


def test_a_second_up_names_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    from glm4_deploy.deploy.state import hold_lock

    with hold_lock(tmp_path / ".glm4", "up"):
        done = kit("up", "--profile", "cpu", "--runner", "process", "--model-dir", str(model(tmp_path)), cwd=tmp_path)
    assert done.returncode == 14, done.stderr
    assert f"pid {os.getpid()}" in done.stderr


def test_every_command_has_help_with_an_example() -> None:
    names = {name for rows in COMMANDS.values() for name in rows}
    groups = {"key", "image", "bundle", "checkpoint", "fleet"}
    for name in sorted(names - groups - {"profiles", "version"}):  # these two have no options to show
        assert "Example" in help_of(name), name


@pytest.mark.parametrize("module", sorted({module for rows in COMMANDS.values() for module, _ in rows.values()}))
def test_each_command_imports_what_it_needs(module: str) -> None:
    """Nothing else was imported before, as at a real start."""
    code = f"import glm4_deploy.cli.app, glm4_deploy.cli.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_light_commands_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text("INFO 11-28 08:00:00 [api_server.py:1] vLLM API server version 0.13.0\n")
    reports = (["plan", "--gpu", "h100"], ["diagnose", "engine.log"], ["detect", "engine.log"])
    for words in (["--help"], ["render"], ["version"], *reports):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "glm4_deploy", *words],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert not imported & {"torch", "vllm", "docker", "httpx", "numpy", "transformers"}, words
        assert words in reports or "glm4_deploy.report_model" not in imported, words


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in which `kit` is the command line; its exit code is that of the first command of a pipe."""
    text = f'kit() {{ "{sys.executable}" -m glm4_deploy "$@"; }}; {script}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", text], cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("kit render --profile gb10 >/dev/full", 18, "cannot write the output: No space left on device"),
        ("kit --help >/dev/full", 18, "No space left on device"),
        ("kit plan --gpu h100 >/dev/full", 18, "No space left on device"),
        ("kit plan --gpu h100 | true", 141, ""),
        ("kit render --profile gb10 | true", 141, ""),
        ("kit --help | true", 141, ""),
        ("kit plan --gpu h100 1>&-", 0, ""),
        ("kit --help 1>&-", 0, ""),
        ("kit render --port none 2>&-", 2, ""),
    ],
)
def test_an_output_that_cannot_be_written_ends_in_one_line(
    tmp_path: Path, script: str, code: int, message: str
) -> None:
    done = shell(script, tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == (2 if message else 0), done.stderr


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_defect_is_one_line_and_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: str
) -> None:
    from glm4_deploy.cli import app
    from glm4_deploy.cli.app import main

    def broken(**_: object) -> None:
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setenv("GLM4_DEBUG", debug)
    monkeypatch.setattr(app, "app", broken)
    with pytest.raises(SystemExit) as caught:
        main()
    err = capsys.readouterr().err
    assert caught.value.code == 70
    assert "a defect: ZeroDivisionError: by nothing\n" in err
    assert ("Traceback" in err) == bool(debug)
    assert debug or len(err.splitlines()) == 2


def test_version_and_help_are_where_people_look(tmp_path: Path) -> None:
    assert kit("--version", cwd=tmp_path).stdout == kit("version", cwd=tmp_path).stdout
    assert kit("render", "-h", cwd=tmp_path).stdout == kit("render", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(("where", "target", "made"), [
    ("new", "kubernetes", ["new/kubernetes.yaml", "new/smoke-job.yaml"]),
    ("k8s.d/", "quadlet", ["k8s.d/glm4-cache.volume", "k8s.d/glm4.container"]),
    ("there", "kubernetes", ["smoke-job.yaml", "there"]),
    ("engine.yaml", "kubernetes", ["engine.yaml", "smoke-job.yaml", "there"]),
    ("one/", "compose", ["one/compose.yaml"]),
])  # fmt: skip
def test_several_files_make_a_directory(tmp_path: Path, where: str, target: str, made: list[str]) -> None:
    (tmp_path / "there").touch()
    done = kit("render", "--target", target, "-o", where, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted({*made, "there"})
    assert kit("render", "--target", target, "--check", "-o", where, cwd=tmp_path).returncode == 0


def test_several_files_do_not_go_into_one_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = kit("render", "--target", "kubernetes", "-o", "pipe", cwd=tmp_path)
    assert (done.returncode, "name a directory" in done.stderr) == (2, True)


def test_smoke_and_watch_accept_the_same_durations(tmp_path: Path) -> None:
    done = kit("watch", "--base-url", "http://127.0.0.1:9", "--port", free_port(), "--for", "0.01m", cwd=tmp_path)
    assert (done.returncode, "not known to be well" in done.stderr) == (1, True), done.stderr


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def test_status_and_logs_report_that_nothing_was_deployed(tmp_path: Path) -> None:
    from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
    from glm4_deploy.deploy.state import Record, save_record

    endpoint = Endpoint(
        runner=EngineKind.PROCESS, project="glm4-none", service="engine", profile="cpu", base_url="http://127.0.0.1:9",
        bind="127.0.0.1", port=9, model="m", model_dir="/m", max_model_len=512, start_period=1,
    )  # fmt: skip
    save_record(Record(endpoint=endpoint), tmp_path / ".glm4")
    seen = kit("status", cwd=tmp_path)
    assert (seen.returncode, "\nhealth             -\n" in seen.stdout) == (1, True), seen.stdout
    logs = kit("logs", cwd=tmp_path)
    assert (logs.returncode, logs.stdout) == (1, "")
    assert "project 'glm4-none' has no engine on this host" in logs.stderr


def test_rendering_a_secret_in_the_environment_warns(tmp_path: Path) -> None:
    words = [f"--set=env.{name}=x" for name in ("HF_TOKEN", "MY_SECRET_1", "TOKENIZERS_PARALLELISM", "X_TOKEN_FILE")]
    done = kit("render", *words, cwd=tmp_path)
    warned = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("warning: env.")]
    assert (done.returncode, warned) == (0, ["env.HF_TOKEN:", "env.MY_SECRET_1:"])
    assert "its value is visible in the file" in done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_what_the_terminal_cannot_show_is_escaped(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "engine.log").write_text("INFO 11-23 14:43:40 [a.py:1] 模型\n", encoding="utf-8")
    done = kit("diagnose", "engine.log", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert r"\u6a21\u578b" in done.stdout + done.stderr


@pytest.mark.parametrize("url", ["http://ada:s3cr3t-pw@h:99999", "http://ada:s3cr3t-pw@[::1", "s3cr3t-pw@h/v1?x"])
def test_a_refused_address_does_not_show_its_password(tmp_path: Path, url: str) -> None:
    done = kit("smoke", "--base-url", url, cwd=tmp_path)
    assert done.returncode == 2
    assert "s3cr3t-pw" not in done.stdout + done.stderr
