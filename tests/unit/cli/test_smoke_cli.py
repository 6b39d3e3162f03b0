"""`glm4-deploy smoke` as a user runs it: files, exit codes, one line for each mistake."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import preloaded
from servers import broken
from servers.reference import HttpError, Reference
from servers.serve import mounted

KEY = "sk-secret-0123456789"


def smoke(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return preloaded.run("smoke", *words, cwd=cwd)


def test_a_pass_writes_every_report(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "slo.yaml").write_text("ttft_p95_ms: 60000\ngoodput: {ttft_ms: 60000, tpot_ms: 1000}\n")
    words = ["--api-key-file", "key", "--slo", "slo.yaml", "--save-baseline", "base.json"]
    words += ["--json", "r.json", "--junit", "r.xml", "--html", "r.html"]
    with mounted(Reference(token_s=0.001, key=KEY)) as url:
        done = smoke("--base-url", f"{url}/v1", *words, cwd=tmp_path)
        again = smoke(
            "--base-url", url, "--api-key-file", "key", "--baseline", "base.json", "--only", "perplexity", cwd=tmp_path
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "ok"
    assert "A pass means" in done.stdout.replace("\n", " ")
    seen = done.stdout + done.stderr + "".join(path.read_text() for path in tmp_path.glob("*.*"))
    assert KEY not in seen
    assert again.returncode == 0, again.stdout
    assert "times its baseline" in " ".join(again.stdout.split())


class Parrot(Reference):
    """Puts the key and control characters into every answer and error."""

    def reply(self, body: dict[str, Any]) -> str:
        return f"{super().reply(body)} {KEY} \x1b[2J\x9b31m\u202e"

    def validate(self, body: dict[str, Any]) -> None:
        if body["model"] != self.model:
            raise HttpError(404, f"no model for {KEY} \x1b[2J\x9b")
        super().validate(body)


@pytest.mark.parametrize("output", ["--json", "--junit", "--html", "table"])
def test_no_output_contains_the_key_or_controls_the_terminal(output: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    words = [] if output == "table" else [output, "-"]
    with mounted(Parrot(key=KEY)) as url:
        only = ("--only", "unknown-model", "--only", "language", "--only", "counting")
        done = smoke("--base-url", url, "--api-key-file", "key", *only, *words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    printed = done.stdout + done.stderr
    assert "[redacted]" in printed
    assert KEY not in printed
    assert not set("\x1b\x9b\u202e") & set(printed)


def test_json_alone_on_stdout(tmp_path: Path) -> None:
    with mounted(broken.WrongDigits()) as url:
        done = smoke("--base-url", url, "--only", "arithmetic", "--json", "-", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["exit_code"] == 1


def test_a_failed_run_stores_no_baseline(tmp_path: Path) -> None:
    with mounted(broken.WrongDigits()) as url:
        words = ("--only", "arithmetic", "--only", "perplexity", "--save-baseline", "base.json")
        done = smoke("--base-url", url, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "no baseline stored" in done.stderr
    assert not (tmp_path / "base.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--base-url", "http://127.0.0.1:1"], 3, "nothing answers"),
        (["--base-url", "nonsense"], 2, "not an http(s) address"),
        (["--base-url", "http://h", "--suite", "quik"], 2, "did you mean 'quick'?"),
        (["--base-url", "http://h", "--only", "chatt"], 2, "did you mean 'chat'?"),
        (["--base-url", "http://h", "--api-key-file", "gone"], 2, "cannot read gone"),
        (["--base-url", "http://h", "--slo", "bad.yaml"], 2, "did you mean 'ttft_p95_ms'?"),
        (["--base-url", "http://h", "--baseline", "bad.yaml"], 2, "baseline bad.yaml"),
        (["--base-url", "http://h", "--suite", "soak", "--for", "long"], 2, "write it like 90s"),
        (["--base-url", "http://h", "--timeout", "0"], 2, "--timeout"),
        (["--base-url", "http://h/v1/chat/completions"], 2, "leave out"),
        # Reported before the first request: nothing answers at http://127.0.0.1:1, which would be exit code 3.
        (["--base-url", "http://127.0.0.1:1", "--json", "-", "--html", "-"], 2, "two reports go to stdout"),
        (["--base-url", "http://127.0.0.1:1", "--json", "r", "--junit", "r"], 2, "two reports go to r"),
        (["--base-url", "http://127.0.0.1:1", "--html", "."], 18, "it is a directory"),
        (["--base-url", "http://127.0.0.1:1", "--json", "/proc/none/r.json"], 18, "cannot write /proc/none/r.json"),
    ],
    ids=lambda value: " ".join(value[-2:]).replace("/", "|") if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_with_its_exit_code(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    (tmp_path / "bad.yaml").write_text("ttft_95_ms: 5\n")
    done = smoke(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_list_shows_every_check(tmp_path: Path) -> None:
    from glm4_deploy.probe.suite import checks

    done = smoke("--list", cwd=tmp_path)
    assert done.returncode == 0
    assert [name for name in checks() if name not in done.stdout] == []
