"""The settings file keeps every line that is not tuned, and the plot is well-formed whatever a setting is called."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from glm4_deploy.errors import UsageError
from glm4_deploy.settings import load_settings
from glm4_deploy.tune.report import SHORT_S, doubt, plot, without_blocks, write_settings
from glm4_deploy.tune.search import Outcome, Trial
from unit.tune.test_search import level

BEFORE = """\
# our engine
profile: gb10
max_num_seqs: 16 # few
args:
  # for the logs
  disable-log-stats: null
# a remark
port: 9000
"""


def won(**settings: object) -> Trial:
    return Trial(label="x", settings=settings, outcome=Outcome.MEASURED, level=level(100))


def test_tuned_settings_replace_their_lines_and_keep_all_others(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text(BEFORE)
    before, _ = load_settings(file=file, environ={})
    winner = won(max_num_seqs=64, args={"performance-mode": "throughput"})
    for _ in range(2):  # a second run replaces what the first wrote
        write_settings(file, before, winner, "64 users")
        text = file.read_text()
        assert text.count("max_num_seqs") == text.count("args:") == text.count("glm4-deploy tune") == 1
        assert all(line in text for line in ("# our engine\n", "profile: gb10\n", "# a remark\n", "port: 9000\n"))
        after, _ = load_settings(file=file, environ={})
        assert after.max_num_seqs == 64
        assert after.args == {"disable-log-stats": None, "performance-mode": "throughput"}


@pytest.mark.parametrize(("seconds", "said"), [(1.75, "lasted 1.8 s"), (SHORT_S, "")])
def test_a_load_that_is_too_short_to_tell_settings_apart_is_said(seconds: float, said: str) -> None:
    winner = replace(won(), level=replace(level(100), seconds=seconds))
    assert doubt(winner).startswith(f"the load {said}" if said else "")
    assert bool(doubt(winner)) is bool(said)


def test_a_file_that_would_not_be_valid_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text(BEFORE)
    before, _ = load_settings(file=file, environ={})
    with pytest.raises(UsageError):
        write_settings(file, before, won(max_num_seqs=0), "x")
    assert file.read_text() == BEFORE
    assert [path.name for path in tmp_path.iterdir()] == ["glm4.yaml"]


def test_blocks_end_where_the_next_key_begins() -> None:
    text = "a:\n  - 1\n\n  - 2\nb: 3\n'a': 4\n"
    assert without_blocks(text, frozenset({"a"})) == "b: 3\n"


def test_the_plot_escapes_labels_and_stands_without_points() -> None:
    trial = Trial(label="<b> & 'x'", settings={}, outcome=Outcome.MEASURED, level=level(100))
    for trials in ((), (trial,)):
        root = ElementTree.fromstring(plot(trials, None, "64 users & more"))  # noqa: S314 (our own text)
        assert root.tag.endswith("svg")
