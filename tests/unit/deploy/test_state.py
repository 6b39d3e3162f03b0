"""What a killed deployment leaves, and how the next command reports it."""

import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glm4_deploy.deploy.state import (
    JOURNAL_FILE,
    Journal,
    JournalStage,
    describe_journal,
    hold_lock,
    interrupted_entry,
    is_locked,
)
from glm4_deploy.errors import Locked, StorageError


def test_a_deployment_cut_off_before_it_touched_anything_is_harmless(tmp_path: Path) -> None:
    Journal(tmp_path, "up", "0003-x").stage(JournalStage.PULL)
    words, unjudged = describe_journal(tmp_path)
    assert "nothing was changed" in words
    assert not unjudged


@pytest.mark.parametrize(
    "stage", [JournalStage.STOP, JournalStage.START, JournalStage.GATE, JournalStage.RECORD, JournalStage.RESTORE]
)
def test_a_deployment_cut_off_later_leaves_the_engine_unjudged_and_names_the_way_back(
    tmp_path: Path, stage: JournalStage
) -> None:
    Journal(tmp_path, "up", "0003-x").stage(stage)
    words, unjudged = describe_journal(tmp_path)
    assert unjudged
    assert f"`{stage}`" in words
    assert "glm4-deploy rollback 0003-x" in words


def test_a_deployment_at_work_is_not_cut_off(tmp_path: Path) -> None:
    Journal(tmp_path, "up", "").stage(JournalStage.GATE)
    with hold_lock(tmp_path, "up"):
        words, unjudged = describe_journal(tmp_path)
    assert "is running in the stage" in words
    assert not unjudged


@pytest.mark.parametrize("text", ["", "{", '{"what": 1}', "\x00"])
def test_a_damaged_journal_leaves_the_engine_unjudged(tmp_path: Path, text: str) -> None:
    (tmp_path / JOURNAL_FILE).write_text(text)
    assert describe_journal(tmp_path)[1]


def test_an_engine_left_unjudged_stays_so_until_it_is_judged(tmp_path: Path) -> None:
    Journal(tmp_path, "up", "0003-x").stage(JournalStage.GATE)
    second = Journal(tmp_path, "rollback", "0003-x")
    second.stage(JournalStage.PULL)
    assert describe_journal(tmp_path)[1], "killed while pulling: what the first left still runs"
    second.abandon()
    assert "up was cut off in the stage `gate`" in describe_journal(tmp_path)[0]
    Journal(tmp_path, "up", "").end()
    assert describe_journal(tmp_path) == ("", False)
    Journal(tmp_path, "up", "").abandon()
    assert interrupted_entry(tmp_path) is None


def test_a_deployment_that_ended_leaves_no_journal(tmp_path: Path) -> None:
    Journal(tmp_path, "up", "").end()
    assert interrupted_entry(tmp_path) is None
    assert describe_journal(tmp_path) == ("", False)


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from glm4_deploy.deploy.state import hold_lock\n"
        "with hold_lock(Path(sys.argv[1]), 'up'):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(tmp_path)
        with pytest.raises(Locked, match=f"glm4-deploy up.*{holder.pid}"), hold_lock(tmp_path, "rollback"):
            pass
        holder.kill()
    assert not is_locked(tmp_path)
    begin = time.monotonic()
    with hold_lock(tmp_path, "up"):
        pass
    assert time.monotonic() - begin < 1, "a stale lock does not delay anybody"


@pytest.mark.parametrize("name", ["lock", "up.json"])
def test_a_state_directory_with_a_link_is_refused_and_its_target_is_untouched(tmp_path: Path, name: str) -> None:
    """A cloned repository can carry `.glm4/lock -> ~/.bashrc`."""
    precious, directory = tmp_path / "precious", tmp_path / ".glm4"
    precious.write_text("kept")
    directory.mkdir()
    (directory / name).symlink_to(precious)
    with pytest.raises(StorageError, match="is a link"), hold_lock(directory, "up"):
        pass
    assert precious.read_text() == "kept"


def test_a_new_state_directory_is_private(tmp_path: Path) -> None:
    with hold_lock(tmp_path / ".glm4", "up"):
        pass
    assert stat.S_IMODE((tmp_path / ".glm4").stat().st_mode) == 0o700


def test_a_disk_that_takes_no_label_neither_stops_the_lock_nor_hides_what_failed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # every write fails, as on a full disk
    try:
        with hold_lock(tmp_path, "up"):
            pass
        with pytest.raises(StorageError, match="the log"), hold_lock(tmp_path, "up"):
            raise StorageError("the log cannot be kept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
