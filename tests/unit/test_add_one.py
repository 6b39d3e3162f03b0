"""Everything that people add has one place: docs/architecture.md, "Where do I add …".

Each test adds one thing to a copy of the source tree, edits nothing else, and runs the copy's command line.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

GPU = """
  rtx-7090:
    label: GeForce RTX 7090
    names: [rtx 7090]
    compute_capability: "12.0"
    total_mib: 48000
    smi_mib: 48500
    source: "made up for this test"
"""
PROFILE = """
  attic:
    summary: "a profile for this test"
    gpu: gb10
    settings: {shm_size: 3gb, max_num_seqs: 7}
    reasons:
      max_num_seqs: "seven fit in the attic"
"""
SIGNATURE = """
  - id: cat-on-keyboard
    severity: fatal
    has: ["cat on keyboard"]
    regex: 'cat on keyboard'
    cause: a cat sits on the keyboard
    fix: remove the cat
    source: made up for this test
    example: 'RuntimeError: cat on keyboard'
"""
CHECK = '''
"""A check that is always green."""

from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.suite import QUICK, CheckStage, check
from glm4_deploy.result import Result, ok


@check("sunrise", stage=CheckStage.SENSE, proves="the sun rises", suites=QUICK, seconds=1)
async def sunrise(probe: Probe) -> Result:
    return ok("sunrise", "it did")
'''
TARGET = """
TARGETS["note"] = RenderTarget(
    render=lambda deployment, settings: {"note.txt": f"engine on port {deployment.port}"},
    refuses={"devices": "a note has no GPUs"},
)
"""
COMMAND = '''
"""`glm4-deploy hello`."""

import typer


def hello() -> None:
    """Say hello."""
    typer.echo("hello from the copy")
'''


class SourceTree:
    """A copy of the sources; `run` runs its command line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = root / "src/glm4_deploy"
        shutil.copytree(ROOT / "src", root / "src")  # with the bytecode, which saves compiling it again
        shutil.copytree(ROOT / "templates", root / "templates")

    def append(self, name: str, text: str) -> None:
        path = self.package / name
        path.write_text(path.read_text(encoding="utf-8").rstrip("\n") + "\n" + text.lstrip("\n"), encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        path = self.package / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    def insert_before(self, name: str, anchor: str, text: str) -> None:
        self.replace(name, anchor, text + anchor)

    def create(self, name: str, text: str) -> None:
        path = self.root / name
        assert not path.exists()
        path.write_text(text.lstrip("\n"), encoding="utf-8")

    def python(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": f"{self.root / 'src'}{os.pathsep}{ROOT}"},
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def run(self, *words: str, code: int = 0) -> str:
        return self.python("-m", "glm4_deploy", *words, code=code)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> SourceTree:
    return SourceTree(tmp_path_factory.mktemp("copy"))


def test_a_gpu_is_a_row(copy: SourceTree) -> None:
    copy.append("catalog/gpus.yaml", GPU)
    assert "GeForce RTX 7090" in copy.run("plan", "--gpu", "rtx-7090")


def test_an_image_is_a_row(copy: SourceTree) -> None:
    words = ("render", "--profile", "gb10", "--image-tag", "29.99-py3")
    assert "not in the catalog" in copy.run(*words)
    last = "      26.10-py3: {"
    copy.replace("catalog/images.yaml", last, f"      29.99-py3: {{vllm: 0.99.0}}\n{last}")
    shown = copy.run(*words)
    assert "nvcr.io/nvidia/vllm:29.99-py3" in shown
    assert "not in the catalog" not in shown
    assert "vLLM 0.99.0" in copy.run("plan", "--gpu", "gb10", "--image-tag", "29.99-py3")


def test_a_flag_that_vllm_lost_is_a_row(copy: SourceTree) -> None:
    words = ("render", "--profile", "gb10", "--set", "args.old-flag=1")
    assert "old-flag: vLLM" not in copy.run(*words)
    copy.replace("catalog/changes.yaml", "flags:\n", "flags:\n  - gone: 0.17.1\n    names: [old-flag]\n")
    assert "args.old-flag: vLLM 0.27.1 no longer knows it" in copy.run(*words)


def test_the_default_image_is_a_line(copy: SourceTree) -> None:
    copy.replace(
        "catalog/images.yaml", "default: nvcr.io/nvidia/vllm:26.08-py3", "default: nvcr.io/nvidia/vllm:26.02-py3"
    )
    assert "nvcr.io/nvidia/vllm:26.02-py3" in copy.run("render")
    assert "26.02-py3" in copy.run("version", "--json")
    copy.replace(
        "catalog/images.yaml", "default: nvcr.io/nvidia/vllm:26.02-py3", "default: nvcr.io/nvidia/vllm:26.08-py3"
    )


def test_a_profile_is_a_row(copy: SourceTree) -> None:
    copy.append("catalog/profiles.yaml", PROFILE)
    assert "a profile for this test" in copy.run("profiles")
    shown = copy.run("render", "--profile", "attic")
    assert "seven fit in the attic" in shown
    assert "3gb" in shown
    assert "kubernetes.io/arch: arm64" in copy.run("render", "--profile", "attic", "--target", "kubernetes")


def test_a_signature_is_a_row(copy: SourceTree) -> None:
    log = copy.root / "engine.log"
    log.write_text("(EngineCore pid=7) ERROR 11-28 10:00:00 [core.py:1] RuntimeError: cat on keyboard\n")
    assert "cat-on-keyboard" not in copy.run("diagnose", str(log), code=1)
    copy.append("catalog/signatures.yaml", SIGNATURE)
    assert "remove the cat" in copy.run("diagnose", str(log), code=1)
    page = copy.python("-c", "from scripts.reference import signatures; print(signatures())")
    assert "| `cat-on-keyboard` | fatal | a cat sits on the keyboard | remove the cat |" in page


def test_a_check_is_a_file(copy: SourceTree) -> None:
    copy.create("src/glm4_deploy/probe/checks/sunrise.py", CHECK)
    assert "the sun rises" in copy.run("smoke", "--list")


def test_a_setting_is_a_field(copy: SourceTree) -> None:
    copy.insert_before(
        "settings.py",
        "    profile: str = Field(",
        '    shelf: int = Field(1, ge=1, le=9, description="where it stands")\n',
    )
    copy.run("render", "--set", "shelf=3")
    assert "where it stands" in copy.run("render", "--set", "shelf=10", code=2)
    page = copy.python("-c", "from scripts.reference import settings; print(settings())")
    assert "| `shelf` | where it stands | 1 to 9 | `1` |" in page


def test_a_target_is_a_row(copy: SourceTree) -> None:
    copy.append("render/targets.py", TARGET)
    assert "engine on port 9000" in copy.run("render", "--target", "note", "--port", "9000")
    assert "a note has no GPUs" in copy.run("render", "--target", "note", "--set", "devices=0", code=2)
    assert "note" in copy.run("render", "--help")


def test_a_service_beside_the_engine_is_a_file(copy: SourceTree) -> None:
    copy.create("templates/services/bell.yaml.j2", "bell:\n  image: bell:1\n")
    assert "image: bell:1" in copy.run("render", "--with", "bell")


def test_a_command_is_a_function_and_its_row(copy: SourceTree) -> None:
    copy.create("src/glm4_deploy/cli/hello.py", COMMAND)
    copy.insert_before(
        "cli/app.py", '        "version": ("render"', '        "hello": ("hello", "Say hello from this test."),\n'
    )
    assert "Say hello from this test." in copy.run("--help")
    assert "hello from the copy" in copy.run("hello")
    assert "## hello" in copy.python("-c", "from scripts.reference import commands; print(commands())")
