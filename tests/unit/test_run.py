"""`run.py` with real programs; no other module starts one."""

import ast
import os
import sys
import time
from pathlib import Path

import pytest

import glm4_deploy
from glm4_deploy.run import RunFailure, run_program

PACKAGE = Path(glm4_deploy.__file__).parent
PROCESS_OBJECTS = {"deploy/engines.py", "probe/fleet.py"}  # the engine itself; an SSH tunnel
STARTS = {"subprocess.", "os.system", "os.popen", "os.spawn", "os.exec", "os.posix_spawn", "pty.", "asyncio.subprocess"}


def test_stdout_and_stderr_are_separate_and_invalid_bytes_are_replaced() -> None:
    done = run_program("sh", "-c", "printf 'a\\377b'; echo one >&2; echo two >&2; exit 3", timeout=20)
    assert (done.code, done.ok, done.stdout, done.stderr, done.failure) == (3, False, "a\ufffdb", "one\ntwo\n", None)
    assert done.last_line == "two"


def test_a_program_gets_stdin_and_additional_environment() -> None:
    done = run_program("sh", "-c", 'cat; echo "$WORD:$PATH"', timeout=20, stdin="ä\n", environment={"WORD": "w"})
    assert done.stdout == f"ä\nw:{os.environ['PATH']}\n"


def test_a_program_cannot_prompt() -> None:
    assert run_program("cat", timeout=20).stdout == ""
    assert run_program("sh", "-c", "exec 2>/dev/null; read answer </dev/tty && echo asked", timeout=20).stdout == ""


@pytest.mark.parametrize(
    ("words", "failure"),
    [
        (("no-such-program",), RunFailure.MISSING),
        (("/etc/passwd",), RunFailure.REFUSED),
        (("/",), RunFailure.REFUSED),
        (("true", "a\0b"), RunFailure.REFUSED),
        (("true", "x" * 9_000_000), RunFailure.REFUSED),
        (("sleep", "600"), RunFailure.TIMEOUT),
    ],
)
def test_a_program_that_cannot_run_or_does_not_end_is_a_value_not_an_exception(
    words: tuple[str, ...], failure: RunFailure
) -> None:
    done = run_program(*words, timeout=0.3)
    assert (done.code, done.failure, done.ok) == (None, failure, False)
    assert done.trouble.startswith(words[0])
    assert done.last_line == done.trouble


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("trap", ["", "trap '' TERM; "])
def test_the_time_limit_also_ends_child_processes(lines: bool, trap: str, tmp_path: Path) -> None:
    """A grandchild that holds the pipe open would otherwise keep the caller waiting, even one that ignores SIGTERM."""
    script = f"({trap}sleep 600) & echo $! > {tmp_path}/pid; wait"
    done = run_program("sh", "-c", script, timeout=0.5, on_line=print if lines else None)
    assert done.failure is RunFailure.TIMEOUT
    assert not _runs(int((tmp_path / "pid").read_text()))


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"
    assert run_program("sh", "-c", script, timeout=0.3).failure is RunFailure.TIMEOUT
    assert not _runs(int((tmp_path / "pid").read_text()))


def test_lines_come_one_by_one_from_both_streams() -> None:
    lines: list[str] = []
    done = run_program("sh", "-c", "echo a; echo b >&2; printf c; exit 4", timeout=20, on_line=lines.append)
    assert (lines, done.code, done.stdout) == (["a\n", "b\n", "c"], 4, "")


def test_a_reader_that_stops_ends_the_program(tmp_path: Path) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_program("sh", "-c", f"echo $$ > {tmp_path}/pid; echo a; sleep 600", timeout=60, on_line=stop)
    assert not _runs(int((tmp_path / "pid").read_text()))


def test_shown_output_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    done = run_program(sys.executable, "-c", "print('seen')", timeout=60, show=True)
    assert (done.ok, done.stdout) == (True, "")
    assert capfd.readouterr() == ("", "seen\n")


def test_no_other_module_starts_a_program() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        names = _names(ast.parse(path.read_text(encoding="utf-8")))
        hits = sorted(name for name in names if any(f"{name}.".startswith(start) for start in STARTS))
        if hits:
            found[str(path.relative_to(PACKAGE))] = hits
    assert set(found) == {"run.py", *PROCESS_OBJECTS}, found


def _names(tree: ast.AST) -> set[str]:
    """Dotted names of the attributes that a module reads from its imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
            if node.attr.startswith("create_subprocess"):
                names.add("asyncio.subprocess")
    return names


def _runs(pid: int) -> bool:
    """Whether it is still there after 10 s: the kernel ends a killed process when that gets its turn, not at once."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        time.sleep(0.02)
    return True
