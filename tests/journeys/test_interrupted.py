"""A deployment that is cut off says what it leaves, and the next one goes on; two at once there are not."""

import signal

import pytest

from journeys.kit import Kit, alive


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_says_what_it_leaves_and_the_next_up_goes_on(kit: Kit, sign: signal.Signals) -> None:
    up = kit.start_up().end(sign)
    assert up.code == 130
    assert "interrupted: the engine is left as it is" in up.err
    left = kit.pids()
    assert all(alive(pid) for pid in left.values())
    status = kit.run("status")
    assert status.code == 1
    assert "up was cut off in the stage `start`" in status.err
    assert "the engine was not judged" in status.err

    again = kit.up()
    assert again.code == 0, again.err
    assert "an earlier up was cut off in the stage `start`" in again.err
    assert "this up continues from that state" in again.err
    assert not any(alive(pid) for pid in left.values())
    after = kit.status()
    assert (after["up"], after["deployment"]) == (True, "")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_gate_leaves_an_engine_that_is_not_up(kit: Kit, sign: signal.Signals) -> None:
    up = kit.start(*kit.up_words(engine="Hangs"))
    up.wait_for("ok       identity")
    done = up.end(sign)
    assert done.code == 130
    assert "up was cut off in the stage `gate`" in done.err
    status = kit.status()
    assert (status["up"], status["models"]) == (False, ["glm-4-9b-chat"]), "it answers, and nobody judged it"
    assert "up was cut off in the stage `gate`" in status["why"]
    assert kit.recorded == []


def test_a_kit_that_was_killed_is_reported_with_the_way_back(kit: Kit) -> None:
    good = kit.good_release()
    assert kit.start_up().end(signal.SIGKILL).code == -signal.SIGKILL
    status = kit.run("status")
    assert status.code == 1
    assert "up was cut off in the stage `start`" in status.err
    assert f"the last good release is {good}: glm4-deploy rollback {good}" in status.err

    back = kit.run("rollback", good)
    assert back.code == 0, back.err
    assert "an earlier up was cut off in the stage `start`" in back.err
    after = kit.status()
    assert (after["up"], after["deployment"]) == (True, "")
    assert [row["good"] for row in kit.releases()] == [True, True], "what was cut off left no release"


def test_down_settles_what_was_cut_off(kit: Kit) -> None:
    kit.start_up().end(signal.SIGKILL)
    left = kit.pids()
    assert kit.run("down").code == 0
    assert not any(alive(pid) for pid in left.values())
    assert kit.status()["deployment"] == ""


def test_two_at_once_are_refused(kit: Kit) -> None:
    first = kit.start_up()
    for words in (kit.up_words(), ("down",), ("rollback",)):
        second = kit.run(*words)
        assert second.code == 14, second.err
        assert f"`glm4-deploy up` (pid {first.process.pid}) is already running" in second.err
    assert f"up is running in the stage `start` (pid {first.process.pid}" in kit.status()["deployment"]
    assert all(alive(pid) for pid in kit.pids().values()), "the first goes on"
