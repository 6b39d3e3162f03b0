"""The record of several engines, and the commands that refuse them."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner

from glm4_deploy.cli.app import app
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.endpoint import Started
from glm4_deploy.deploy.engines import RunState
from glm4_deploy.deploy.replicas import Replica, ReplicaSet
from glm4_deploy.deploy.state import Record, expected_record, load_record, save_record
from glm4_deploy.deploy.status import log_tail
from glm4_deploy.errors import UsageError

NAMES = ("glm4-9b-nvfp4-1", "glm4-9b-nvfp4-2")


def record(*sets: str) -> Record:
    return expected_record(resolve_spec({"profile": "cpu"}, sets=sets))


def test_a_record_keeps_the_engines(tmp_path: Path) -> None:
    save_record(record("replicas=2"), tmp_path)
    kept = load_record(tmp_path)
    assert kept == record("replicas=2")
    assert kept is not None
    assert kept.endpoint.engines == NAMES


def test_one_engine_has_its_own_name() -> None:
    assert record().endpoint.replicas == ()
    assert record().endpoint.engines == ("glm4-9b-nvfp4",)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--base-url", "http://127.0.0.1:9", "--restart"], "--restart and --base-url"),
        (["--guard", "http://127.0.0.1:9"], "--guard is for one engine"),
        (["--rollback"], "--rollback is for one engine"),
        (["--restart", "--container", "x"], "--container is for one engine"),
        (["--router", "http://127.0.0.1:9"], "belong together"),
        (["--replica", "a=http://127.0.0.1:9"], "belong together"),
        (["--replica", "a", "--router", "http://127.0.0.1:9"], "not NAME=URL"),
        (["--replica", "a=http://x", "--replica", "a=http://y", "--router", "http://127.0.0.1:9"], "given twice"),
        (["--replica", "a=http://x", "--router", "http://127.0.0.1:9", "--restart"], "not --replica"),
    ],
)
def test_what_a_watch_of_several_engines_cannot_do_is_refused(words: list[str], named: str, tmp_path: Path) -> None:
    save_record(record("replicas=2"), tmp_path)
    done = CliRunner().invoke(app, ["watch", "--state-dir", str(tmp_path), "--for", "1s", *words])
    assert isinstance(done.exception, UsageError), done.output
    assert named in done.exception.message
    assert done.exception.hint


def test_a_plain_process_serves_one_engine(tmp_path: Path) -> None:
    words = ["up", "--profile", "cpu", "--replicas", "2", "--runner", "process", "--state-dir", str(tmp_path / "s")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UsageError)
    assert "replicas 2" in done.exception.message


class Talking(ReplicaSet):
    """Imitates two containers with logs, without Docker."""

    def __init__(self) -> None:
        self.replicas = dict.fromkeys(NAMES, cast("Replica", None))

    def state(self) -> RunState:
        return RunState(running=True, started=Started(id="a", started_at=0))

    def lines(self, since: float, *, follow: bool = True) -> Iterator[str]:
        del since, follow
        yield from (f"{name} | line {number}" for name in (*NAMES, "router") for number in range(5))


def test_the_tail_of_several_logs_is_of_each() -> None:
    tail = list(log_tail(Talking(), 2, follow=False))
    assert tail == [f"{name} | line {number}" for name in (*NAMES, "router") for number in (3, 4)]
