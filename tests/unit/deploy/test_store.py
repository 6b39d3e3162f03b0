"""The store of releases on a real file system: killed at every step, full, damaged, with a clock that goes back."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from glm4_deploy.deploy import releases as module
from glm4_deploy.deploy.endpoint import Endpoint
from glm4_deploy.deploy.releases import KEPT, RECORD, Damaged, Files, Release, Store
from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.result import Status
from glm4_deploy.text import head_and_tail

FILES = Files(texts={"compose.yaml": "services: {}\n", "override-1.yaml": "a: 1\n"}, compose=("compose.yaml",))


def endpoint(**changes: object) -> Endpoint:
    values = {
        "runner": "compose", "project": "p", "service": "s", "profile": "cpu", "base_url": "http://127.0.0.1:1",
        "bind": "127.0.0.1", "port": 1, "model": "m", "model_dir": "/m", "max_model_len": 1, "start_period": 10,
        "logs_requests": True,
    }  # fmt: skip
    return Endpoint(**{**values, **changes})  # type: ignore[arg-type]


def release(name: str, *, verdict: Status = Status.OK, port: int = 1) -> Release:
    return Release(
        id=name, created_at="2026-01-01T00:00:00+00:00", kit="0", verdict=verdict, endpoint=endpoint(port=port),
        image=None, fingerprint="f", stamp="s", files=FILES.kept(), settings={"port": port}, engine={},
    )  # fmt: skip


def publish(store: Store, *, verdict: Status = Status.OK, texts: str = "services: {}\n") -> str:
    files = Files(texts={"compose.yaml": texts}, compose=("compose.yaml",))
    draft = store.draft(files)
    name = store.next_id()
    draft.publish(replace(release(name, verdict=verdict), files=draft.files), {"boot.log": "line\n"})
    store.prune()
    return name


def test_a_release_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draft = store.draft(FILES)
    written = release(store.next_id())
    draft.publish(written, {"boot.log": "one\n", "smoke.json": "{}"})
    assert store.releases() == (written,)
    assert store.files_of(written) == FILES
    directory = store.root / written.id
    assert (directory / "boot.log").read_text() == "one\n"
    assert {path.name for path in store.root.iterdir()} == {written.id}
    assert directory.stat().st_mode & 0o077 == 0, "an override may hold a secret"
    assert {path.stat().st_mode & 0o077 for path in directory.iterdir()} == {0}


CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from unit.deploy.test_store import publish
from glm4_deploy.deploy.releases import Store
root, step = Path(sys.argv[1]), int(sys.argv[2])
count = 0
CHANGES = ("open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir")
def hook(event, args):
    global count
    if event in CHANGES and str(root) in repr(args):
        count += 1
        if count == step:
            os._exit(9)
store = Store(root)
sys.addaudithook(hook)
publish(store, texts="new: 1\\n")
"""


def test_a_kill_at_any_step_loses_nothing_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A real process that exits just before its n-th change of the file system, for every n."""
    store = Store(tmp_path)
    first = publish(store)
    code = CRASH.format(tests=str(Path(__file__).parents[2]))
    steps = new = 0
    while steps < 100:
        steps += 1
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(steps)], capture_output=True, check=False)
        found = store.all()
        assert all(isinstance(one, Release) for one in found)
        assert found[0].id == first
        for one in store.releases():
            assert store.files_of(one).texts, "every listed release can be put back"
        new = len(found) - 1
        assert new in (0, 1)
        if new or done.returncode != 9:
            break
    assert steps > 10, "the hook must have seen the writes"
    assert new == 1
    store.sweep()
    assert {path.name for path in store.root.iterdir()} == {one.id for one in store.all()}


def test_a_half_written_directory_is_ignored_and_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    good = publish(store)
    (store.root / "0007-20260101T000000Z").mkdir()
    (store.root / "0007-20260101T000000Z/compose.yaml").write_text("half")
    (store.root / ".draft-1-ab").mkdir()
    assert [one.id for one in store.all()] == [good]
    assert store.next_id().startswith("0008-"), "its number is not used again"
    store.draft(FILES).discard()
    assert [path.name for path in store.root.iterdir()] == [good]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": "x"}', "\x00\x01"])
def test_a_damaged_record_is_shown_and_never_good(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    name = publish(store)
    (store.root / name / RECORD).write_text(text)
    (only,) = store.all()
    assert isinstance(only, Damaged)
    assert only.reason
    assert store.last_good() is None
    with pytest.raises(UsageError, match="damaged"):
        store.find(name)
    store.sweep()
    assert len(store.all()) == 1, "a record is evidence and is not swept"


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.root / publish(store) / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 3, "more": 1}))
    (only,) = store.all()
    assert isinstance(only, Damaged)
    assert "newer" in only.reason


def test_a_copy_that_was_changed_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    name = publish(store)
    (store.root / name / "compose.yaml").write_text("services: {evil: {}}\n")
    with pytest.raises(StorageError, match="changed after"):
        store.files_of(store.find(name))


def test_ids_sort_as_they_were_made_though_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    years = iter((2026, 2026, 1999, 2026))

    class Clock(module.datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def]
            return cls(next(years), 1, 1, tzinfo=tz)

    monkeypatch.setattr(module, "datetime", Clock)
    names = [publish(store) for _ in range(4)]
    assert names == sorted(names)
    assert len(set(names)) == 4
    assert [one.id for one in store.all()] == names
    assert store.last_good() == store.find(names[-1])


def test_find_takes_an_id_a_number_or_a_beginning(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = publish(store), publish(store)
    assert store.find(one).id == one
    assert store.find("2").id == store.find("0002").id == two
    assert store.find("0002-").id == two
    for name, message in (
        ("9", "no release"),
        ("000", "no release|more than one"),
        ("", "no release"),
        ("../x", "no release"),
    ):
        with pytest.raises(UsageError, match=message):
            store.find(name)


def test_the_newest_are_kept_and_a_way_back_with_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, good = publish(store, texts="old: 1\n"), publish(store, texts="good: 1\n")
    bad = [publish(store, verdict=Status.FAIL, texts=f"bad: {n}\n") for n in range(KEPT + 3)]
    assert [one.id for one in store.all()] == [old, good, *bad[-KEPT:]]
    newest = store.last_good()
    assert newest is not None
    assert newest.id == good
    other = store.last_good(but=newest.content)
    assert other is not None
    assert other.id == old


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system takes root to mount")
def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", mount], check=True)
    try:
        store = Store(mount)
        name = publish(store)
        (mount / "filler").write_bytes(b"x" * (2 << 20))
        with pytest.raises(StorageError, match="No space left"):
            store.draft(FILES)
        assert [one.id for one in store.all()] == [name]
        assert [path.name for path in store.root.iterdir()] == [name]

        (mount / "filler").unlink()
        draft = store.draft(FILES)  # space is reserved now, while the disk has some
        with pytest.raises(OSError, match="No space"):
            (mount / "filler").write_bytes(b"x" * (4 << 20))
        draft.publish(release(store.next_id()), {"boot.log": "x" * (1 << 20)})
        assert len(store.releases()) == 2
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_log_is_capped_with_its_beginning_and_its_end() -> None:
    lines = [f"line {number}" for number in range(10_000)]
    text = head_and_tail("\n".join(lines), 2000)
    assert len(text.encode()) <= 2000
    assert text.startswith("line 0\n")
    assert text.endswith("line 9999")
    assert "left out" in text
    assert head_and_tail("a\n", 2000) == "a\n"
