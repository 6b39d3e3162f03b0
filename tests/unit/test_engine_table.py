"""The table of CPU engines, and what its builder refuses."""

import os
import subprocess
from pathlib import Path

import pytest
from scripts import engines

from glm4_deploy.catalog.images import default_tag, images, versions_tested
from glm4_deploy.catalog.rows import profiles

ROOT = Path(__file__).parents[2]


def build(cache: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "scripts/cpu-engine.sh", *words]
    return subprocess.run(
        command, env=os.environ | {"GLM4_CACHE": str(cache)} | env, capture_output=True, text=True, check=False
    )


def finished(cache: Path, vllm: str) -> Path:
    venv = cache / f"cpu-engine-{vllm}"
    (venv / "bin").mkdir(parents=True)
    (venv / "lib/python3.12/site-packages").mkdir(parents=True)
    (venv / ".complete").touch()
    return venv / "bin/python"


def test_every_image_tag_that_can_be_stood_for_has_its_engine() -> None:
    of = {tag: row.vllm for row in engines.rows().values() for tag in row.tags}
    assert of[default_tag()] == engines.default()
    assert profiles()["cpu"].settings["image_tag"] == engines.newest(), "what `up --profile cpu` is judged for"
    oldest = min(row.version for row in engines.rows().values())
    catalogued = {tag: image.vllm for tag, image in images().items()}
    recent = {tag: ".".join(map(str, vllm)) for tag, vllm in catalogued.items() if vllm and vllm >= oldest}
    assert of.items() <= recent.items()
    assert set(recent) - set(of) <= {"25.12-py3", "26.05.post1-py3", "26.09-py3"}, "a tag without an engine"


def test_the_versions_called_tested_are_those_with_an_engine() -> None:
    assert versions_tested() == {row.version for row in engines.rows().values()}


def test_a_complete_engine_is_used_as_it_is_and_the_newest_is_the_default(tmp_path: Path) -> None:
    python = finished(tmp_path, engines.newest())
    assert build(tmp_path).stdout == f"{python}\n"
    old = finished(tmp_path, engines.default())
    assert build(tmp_path, "default").stdout == build(tmp_path, engines.default()).stdout == f"{old}\n"


def test_an_unknown_version_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    done = build(tmp_path, "9.9.9")
    assert (done.returncode, done.stdout) == (2, "")
    assert "9.9.9 is not in engines.toml" in done.stderr
    assert engines.newest() in done.stderr


def test_what_cannot_be_built_says_why_and_leaves_no_engine(tmp_path: Path) -> None:
    """Here: no index answers. The remains of an earlier build are not used either."""
    half = finished(tmp_path, engines.newest())
    (half.parents[1] / ".complete").unlink()
    done = build(tmp_path, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0", PIP_CONFIG_FILE=os.devnull)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"vLLM {engines.newest()} cannot be built here: cannot install uv" in done.stderr
    assert not (half.parents[1] / ".complete").exists()


def test_too_little_room_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_CACHE", str(tmp_path))
    monkeypatch.setattr(engines, "NEEDED_MIB", 1 << 40)
    with pytest.raises(engines.CannotBuildError, match=r"MiB free, \d+ are needed"):
        engines.python(engines.rows()[engines.newest()])
    assert not engines.is_complete(engines.newest())


def test_a_second_build_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_CACHE", str(tmp_path))
    with engines.lock(engines.newest()):
        second = subprocess.Popen([ROOT / "scripts/cpu-engine.sh"], env=os.environ, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1)
        python = finished(tmp_path, engines.newest())
    assert second.communicate(timeout=60)[0] == f"{python}\n"


def test_an_engine_is_removed_and_only_that(tmp_path: Path) -> None:
    new, old = finished(tmp_path, engines.newest()), finished(tmp_path, engines.default())
    assert build(tmp_path, engines.default(), "--remove").returncode == 0
    assert new.parent.exists()
    assert not old.parent.exists()
