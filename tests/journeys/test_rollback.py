"""A second deployment that fails is replaced by the last good one; a rollback goes back to the one that was named."""

import pytest

from glm4_deploy.errors import RollbackFailed
from glm4_deploy.watch.restart import roll_back
from journeys.kit import GOOD, Kit, alive


def test_what_fails_its_gate_is_replaced_by_the_last_good_release(kit: Kit) -> None:
    good = kit.good_release()
    up = kit.up(engine="LoopsGreedy")
    assert up.code == 15
    assert "the engine came up but did not pass: loop-greedy" in up.err
    assert f"release {good} runs again, gated" in up.err

    kept, failed, back = kit.releases()
    assert [row["good"] for row in (kept, failed, back)] == [True, False, True]
    assert [row["in_service"] for row in (kept, failed, back)] == [False, False, True]
    assert (back["restores"], back["content"]) == (good, kept["content"])
    assert [line for line in up.out.splitlines() if "glm-4-9b-chat'" in line] == [
        f"'glm-4-9b-chat' did not pass its gate: fail, release {failed['id']}",
        f"http://127.0.0.1:{kit.port}/v1 serves 'glm-4-9b-chat': {back['verdict']}, release {back['id']}",
    ]
    assert f"puts {good} back" in kit.run("releases").out
    assert kit.status()["release"] == back["id"]
    assert kit.run("smoke").code == 0

    diff = kit.run("diff", good, failed["id"], "--json").json
    changes = {(change["group"], change["name"]): (change["a"], change["b"]) for change in diff["changes"]}
    assert diff["same"] is False
    assert changes["settings", "env.STAND_IN"] == (None, "LoopsGreedy")
    assert changes["gate", "verdict"][1] == "fail"
    assert "env.STAND_IN: - → LoopsGreedy" in kit.run("diff", good, failed["id"]).out
    assert kit.run("diff", good, back["id"], "--json").json["same"] is True

    log = kit.directory / ".glm4/releases" / failed["id"] / "boot.log"
    assert f"glm4-deploy diagnose {log.relative_to(kit.directory)}" in up.err
    assert "no failure found; it came up" in kit.run("diagnose", log).out

    page = log.with_name("report.html").read_text(encoding="utf-8")
    assert f"report: {log.with_name('report.html').relative_to(kit.directory)}" in up.err
    assert "Do not use this engine" in page
    assert '<mark class="unit">' in page
    assert good in page
    assert back["id"] not in page, "it was written before the restoration"
    assert (log.parents[1] / back["id"] / "report.html").is_file()


def test_what_dies_while_it_starts_is_replaced_too_and_programs_are_told_both(kit: Kit) -> None:
    good = kit.good_release()
    up = kit.up("--json", engine="dies")
    assert up.code == 15
    report = up.json
    assert (report["verdict"], report["error"]["exit_code"]) == ("fail", 11)
    assert report["restored"]["verdict"] in GOOD
    assert report["restored"]["error"] is None
    assert kit.status()["release"] == report["restored"]["release"] != good
    diagnosis = kit.run("diagnose", kit.directory / ".glm4/releases" / report["release"] / "boot.log")
    assert diagnosis.code == 1
    assert "root cause: no-kv-room" in diagnosis.out


def test_where_the_last_good_release_fails_too_nothing_serves(kit: Kit) -> None:
    good = kit.good_release()
    up = kit.up("--set", "max_num_seqs=8", STAND_IN="WrongDigits")  # of this host: every engine on it has it now
    assert up.code == 16
    (why,) = (line for line in up.err.splitlines() if line.startswith("glm4-deploy: "))
    assert why.startswith("glm4-deploy: the engine came up but did not pass: arithmetic")
    assert f"and release {good} could not be put back: the engine came up but did not pass: arithmetic" in why
    assert why.endswith("nothing serves now")
    assert up.err.splitlines()[-1] == f"  → then: glm4-deploy rollback {good}", "one line for each thing to do"
    assert kit.status()["up"] is False
    assert [row["good"] for row in kit.releases()] == [True, False, False]

    back = kit.run("rollback", good)
    assert back.code == 0, back.err
    assert kit.status()["up"] is True


def test_without_a_rollback_the_failed_engine_is_stopped_and_the_way_back_is_named(kit: Kit) -> None:
    good = kit.good_release()
    up = kit.up("--no-rollback", engine="Mute")
    assert up.code == 1
    assert f"put the last good release back with `glm4-deploy rollback {good}`" in up.err
    assert kit.status()["up"] is False


def test_a_rollback_puts_the_named_release_back_and_gates_it(kit: Kit) -> None:
    first = kit.good_release()
    second = kit.good_release("--set", "max_num_seqs=8")
    before = kit.pids()
    back = kit.run("rollback", first)
    assert back.code == 0, back.err
    assert [row["restores"] for row in kit.releases()] == ["", "", first]
    assert not any(alive(pid) for pid in before.values())
    default = kit.run("rollback")
    assert default.code == 0, default.err
    assert kit.releases()[-1]["restores"] == second, "the last good one that differs"
    assert kit.status()["release"] == kit.releases()[-1]["id"]


def test_a_rollback_with_nothing_to_go_back_to_changes_nothing(kit: Kit) -> None:
    empty = kit.run("rollback")
    assert empty.code == 2
    assert "there is no good release to go back to" in empty.err
    good = kit.good_release()
    before = kit.steady(kit.status())
    for words in ((), ("7",), ("0001-1999",)):
        assert kit.run("rollback", *words).code == 2
    assert kit.steady(kit.status()) == before
    assert kit.recorded == [good]


def test_the_watch_puts_the_last_good_release_back_through_its_gate(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in kit.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(kit.directory)
    state = kit.directory / ".glm4"
    kit.good_release()
    with pytest.raises(RollbackFailed, match="there is no good release to go back to"):
        roll_back(state)
    good = kit.recorded[0]
    kit.good_release("--set", "max_num_seqs=8")
    back = roll_back(state)
    assert kit.releases()[-1]["id"] == kit.status()["release"] == back
    assert kit.releases()[-1]["restores"] == good
    assert kit.run("smoke").code == 0


def test_a_wrong_answer_to_ones_own_question_brings_the_last_good_release_back(kit: Kit) -> None:
    good = kit.good_release()
    file = kit.directory / "mine.yaml"
    file.write_text("questions:\n- name: mine\n  prompt: What is 17 + 25?\n  must: {contains: no such words}\n")
    up = kit.up("--set", "questions=mine.yaml")
    assert up.code == 15
    assert "the engine came up but did not pass: question-mine: 1 of 1 wrong" in up.err
    assert f"release {good} runs again, gated" in up.err

    file.write_text("questions:\n- nam: mine\n")
    refused = kit.up("--set", "questions=mine.yaml")
    assert refused.code == 2
    assert "mine.yaml line 2" in refused.err
    assert kit.status()["up"], "a mistake in the file touches nothing"
