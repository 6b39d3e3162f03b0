"""Which YAML is accepted, and what writing a file leaves unchanged."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.files import ensure_writable, parse_yaml, remove_leftovers, write_text

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 1 is not valid YAML"),
        ("a: 1\nb: {{\n", "is not valid YAML"),
        ("port: !!python/object/apply:os.system ['true']", "line 1 is not valid YAML"),
        ("port: " + "9" * 5000, "is not valid YAML"),
        ("port: " + "[" * 5000 + "]" * 5000, "is not valid YAML"),
        ("a: &a [*a]", "is not valid YAML"),
        ("port: 1\nbind: x\nport: 2", "line 3: 'port' is given twice"),
        ("env:\n  A: 1\n  A: 1", "line 3: 'A' is given twice"),
        (BOMB, "values through its aliases"),
        ("a: " + "x" * 1_000_001, "too large"),
        ("a: [" + "x," * 400_000 + "]", "too large"),
        ("a: &a [x, x]\n? [*a, *a]\n: 1", "line 2: a list or a mapping cannot be a key"),
    ],
)
def test_a_hostile_file_is_one_error(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "glm4.yaml")
    assert caught.value.message.startswith("glm4.yaml")
    assert message in caught.value.message
    assert caught.value.hint


def test_aliases_that_only_repeat_are_accepted() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "f") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }
    merged = parse_yaml("b: &b {<<: &a {x: 1}, x: 2}\nc: {<<: *b, x: 3}\nd: {1: x, '1': y}", "f")
    assert merged == {"b": {"x": 2}, "c": {"x": 3}, "d": {1: "x", "1": "y"}}


def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    old, new, private = tmp_path / "old", tmp_path / "new", tmp_path / "private"
    old.write_text("x")
    old.chmod(0o600)
    umask = os.umask(0o077)
    try:
        for path in (old, new):
            write_text(path, "y")
        write_text(private, "y", mode=0o640)
    finally:
        os.umask(umask)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, new, private)] == [0o600, 0o600, 0o640]
    write_text(tmp_path / "open", "y")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o666 & ~umask


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from glm4_deploy import files\n"
        "files.os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "files.write_text(Path(sys.argv[1]), 'x')"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "state.json"], check=False)
    (tmp_path / ".mine").write_text("kept")
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    ensure_writable(pipe)
    write_text(pipe, "all of it")
    reader.join(timeout=10)
    assert read == ["all of it"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    null = tmp_path / "null"  # never the real one: this runs as root
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        null.open("wb").close()
    except OSError:
        pytest.skip("needs root and a file system that allows devices")
    write_text(null, "away")
    assert stat.S_ISCHR(null.stat().st_mode)
    assert list(tmp_path.iterdir()) == [null]


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there/file"
    link.symlink_to("there/file")
    for text in ("made", "replaced"):
        write_text(link, text)
        assert (link.is_symlink(), target.read_text()) == (True, text)


def test_a_directory_and_a_link_to_itself_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path, message in ((tmp_path, "it is a directory"), (tmp_path / "loop", "symbolic links")):
        for act in (lambda path: write_text(path, "x"), ensure_writable):
            with pytest.raises(StorageError, match=message):
                act(path)
