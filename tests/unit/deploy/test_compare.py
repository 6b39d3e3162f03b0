"""`diff` shows what changed between two releases, nothing else, and no secret."""

from dataclasses import replace

from glm4_deploy.deploy.releases import ReleaseImage, compare_releases
from glm4_deploy.result import Status
from unit.deploy.test_store import release

A, B = release("0001-20260101T000000Z"), release("0002-20260101T000000Z")
TEXTS = {"compose.yaml": "services:\n  s:\n    image: x\n"}


def test_equal_releases_do_not_differ() -> None:
    found = compare_releases(A, B, TEXTS, TEXTS)
    assert found.same
    assert found.changes == ()
    assert found.files == ()


def test_each_kind_of_change_is_named_with_both_values() -> None:
    other = replace(
        B,
        settings={"port": 2, "env": {"A": "1"}},
        fingerprint="g",
        image=ReleaseImage(reference="i:2", id="sha256:2"),
        engine={"kernel": "MARLIN"},
        verdict=Status.FAIL,
        reason="loop-greedy: a loop",
    )
    found = compare_releases(A, other, TEXTS, TEXTS | {"override-1.yaml": "x: 1\n"})
    rows = {(change.group, change.name): (change.a, change.b) for change in found.changes}
    assert rows[("settings", "port")] == (1, 2)
    assert rows[("settings", "env.A")] == (None, "1")
    assert rows[("checkpoint", "fingerprint")] == ("f", "g")
    assert rows[("image", "id")] == (None, "sha256:2")
    assert rows[("engine", "kernel")] == (None, "MARLIN")
    assert rows[("gate", "verdict")] == ("ok", "fail")
    assert not found.same
    (file,) = found.files
    assert file.name == "override-1.yaml"
    assert "+x: 1" in file.diff


def test_a_changed_secret_is_reported_but_not_shown() -> None:
    old, new = (
        {"o.yaml": f"environment: {{HF_TOKEN: {value}}}\n"} for value in ("hf_oldoldoldold1", "hf_newnewnewnew2")
    )
    (file,) = compare_releases(A, B, old, new).files
    assert file.diff == "only secret values differ"
