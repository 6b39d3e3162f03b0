"""What survives a watch that is killed, and what a changed date does not change."""

from pathlib import Path

import pytest

from glm4_deploy.errors import StorageError
from glm4_deploy.watch.judge import State
from glm4_deploy.watch.kept import KeptPolicy
from glm4_deploy.watch.restart import Policy, Rules


def test_the_limit_of_restarts_holds_for_the_next_watch(tmp_path: Path) -> None:
    file = tmp_path / "restarts.json"
    for at in (0.0, 100.0, 300.0):
        KeptPolicy(Rules(ceiling=3, rollbacks=1), file).done(at, State.BABBLING)
    again = KeptPolicy(Rules(ceiling=3, rollbacks=1), file)
    assert again.recent(400.0) == 3
    assert again.rolls_back(State.BABBLING, 400.0)
    again.rolled_back(400.0)
    assert not KeptPolicy(Rules(ceiling=3, rollbacks=1), file).rolls_back(State.BABBLING, 500.0), "one a day"
    assert again.recent(3950.0) == 0


def test_after_a_start_of_the_host_it_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "restarts.json"
    KeptPolicy(Rules(), file).done(5.0, State.HUNG)
    file.write_text(file.read_text().replace('"boot": "', '"boot": "another'))
    assert KeptPolicy(Rules(), file).recent(10.0) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"done": ["x"]}', '{"done": [NaN]}'])
def test_an_unreadable_file_is_forgotten(text: str, tmp_path: Path) -> None:
    file = tmp_path / "restarts.json"
    file.write_text(text)
    assert KeptPolicy(Rules(), file).recent(10.0) == 0


def test_what_cannot_be_written_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "watch").write_text("in the way")
    policy = KeptPolicy(Rules(), tmp_path / "watch/restarts.json")
    with pytest.raises(StorageError):
        policy.done(0.0, State.BABBLING)
    with pytest.raises(StorageError):
        policy.rolled_back(0.0)
    assert policy.recent(1.0) == 0


def test_a_changed_date_makes_no_container_older_or_younger() -> None:
    policy = Policy(Rules())
    assert policy.uptime(1000.0, 1060.0, 10.0) == 60
    assert policy.uptime(1000.0, 9000.0, 20.0) == 70, "the date went ahead"
    assert policy.uptime(1000.0, 500.0, 30.0) == 80, "and back"
    assert policy.uptime(100.0, 505.0, 40.0) == 10, "it was restarted since the last look, whatever the date"
    assert policy.uptime(100.0, 505.0, 45.0) == 15
