"""`tune`: the fastest settings win only if they answer sanely, and what served before serves again at the end."""

import json
import signal
from pathlib import Path
from typing import Any

from e2e.kit import MODEL, Done
from journeys.kit import GOOD, Kit

SETTINGS = """\
# ours
profile: cpu
max_num_seqs: 4  # for the small machine
max_model_len: 2048
env: {A: "1"}
"""


def configured(kit: Kit) -> Path:
    file = kit.directory / "glm4.yaml"
    file.write_text(f"{SETTINGS}port: {kit.port}\nmodel_dir: {MODEL}\n")
    return file


def tune(kit: Kit, *words: str, **env: str) -> Done:
    return kit.run(*tune_words(), *words, **env)


def tune_words() -> tuple[str, ...]:
    return ("tune", "--runner", "process", "--for", "8 users, 64 in, 32 out")


def trials(kit: Kit) -> list[dict[str, Any]]:
    text = (kit.directory / ".glm4/tune/trials.jsonl").read_text()
    return [json.loads(line)["trial"] for line in text.splitlines()]


def up(kit: Kit) -> str:
    done = kit.run("up", "--runner", "process", "--json")
    assert done.code == 0, done.err
    return str(done.json["release"])


def test_the_fastest_settings_win_and_are_written_and_the_release_comes_back(kit: Kit) -> None:
    file = configured(kit)
    good = up(kit)
    done = tune(kit, "--plot", "plot.svg")
    assert done.code == 0, done.err
    assert "8 users, 64 in, 32 out on cpu 0.32.0: the plan for this load, 800 tokens/s, +100.0%" in done.out
    text = file.read_text()
    assert "max_num_seqs: 8  # was 4\n" in text
    assert "max_num_seqs: 4" not in text
    assert all(line in text for line in ("# ours\n", "max_model_len: 2048\n", 'env: {A: "1"}\n'))
    measured = [trial for trial in trials(kit) if trial["level"]]
    assert (kit.directory / "plot.svg").read_text().count("<circle") == len(measured) > 2
    status = kit.status()
    assert status["up"] is True
    back = next(row for row in kit.releases() if row["in_service"])
    assert back["restores"] == good
    assert '"--max-num-seqs"\n      - "8"' in kit.run("render").out


def test_what_does_not_pass_its_gate_never_wins(kit: Kit) -> None:
    configured(kit)
    done = tune(kit, "--json", STAND_IN_SICK_AT="8")
    assert done.code == 0, done.err
    report = done.json
    sick = [trial for trial in report["trials"] if trial["settings"].get("max_num_seqs") == 8]
    assert {trial["outcome"] for trial in sick} == {"failed"}
    assert "loop-greedy" in sick[0]["reason"]
    assert report["winner"] == "as configured"
    assert kit.run("status").code != 0, "nothing served before, so nothing does now"


def test_an_interrupted_run_puts_the_engine_back_and_goes_on_later(kit: Kit) -> None:
    configured(kit)
    good = up(kit)
    one = kit.start(*tune_words())
    one.wait_for("trial 2: ")
    done = one.end(signal.SIGINT)
    assert done.code == 130
    assert "interrupted: what was measured is kept" in done.err
    assert next(row for row in kit.releases() if row["in_service"])["restores"] == good
    assert kit.status()["up"] is True
    later = tune(kit)
    assert later.code == 0, later.err
    assert "trial 1: as configured, from an earlier run" in later.err


def test_the_winner_serves_with_apply(kit: Kit) -> None:
    configured(kit)
    up(kit)
    done = tune(kit, "--apply")
    assert done.code == 0, done.err
    serving = next(row for row in kit.releases() if row["in_service"])
    assert serving["settings"]["max_num_seqs"] == 8
    assert serving["verdict"] in GOOD


def test_wrong_requests_are_refused_before_anything_is_stopped(kit: Kit) -> None:
    configured(kit)
    for load, said in (
        ("8 users", "does not name users, tokens in and tokens out"),
        ("8 users, 4k in, 1k out", "needs a context of"),
    ):
        done = kit.run("tune", "--runner", "process", "--for", load)
        assert done.code == 2, done.err
        assert said in done.err
    dry = tune(kit, "--dry-run")
    assert dry.code == 0
    assert "as configured" in dry.out
    assert not (kit.directory / ".glm4").exists()
