"""What a release publishes: built and checked as `make dist` does, installed into empty environments, and run there."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from glm4_deploy.deploy.kit_image import write_context

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "uv"
# As in a user's shell: no source tree on the path, and no settings.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("GLM4_", "PYTHON", "VIRTUAL_ENV"))}
EVERYTHING = ("--with", "gateway,monitoring,ui,watch,guard", "--set", "api_key_file=/opt/glm4/key")
RUN_THERE: dict[str, tuple[str, ...]] = {
    "profiles": ("profiles",),
    "plan": ("plan", "--gpu", "gb10", "--json"),
    "smoke": ("smoke", "--help"),
    "audit": ("audit", "compose/compose.yaml", "--fail-on", "critical"),
    "kubernetes": ("render", "--profile", "b200", "--target", "kubernetes", "-o", "kubernetes/"),
    "quadlet": ("render", "--profile", "gb10", "--set", "tools=true", "--target", "quadlet", "-o", "quadlet/"),
    "images": ("images",),
    "scale": ("scale", "--help"),
    "guard": ("guard", "--help"),
    "detect": ("detect", "--json", "-"),
    "diagnose": ("diagnose", "--symptom", "the answers loop"),
}  # fmt: skip


def run(*argv: str | Path, cwd: Path, stdin: str = "", env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, argv)), cwd=cwd, input=stdin, capture_output=True, text=True, check=False, env=env or CLEAN
    )
    assert done.returncode in (0, 1), f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def interpreters() -> list[Path]:
    """One Python of each minor version from 3.11 on that this machine has, oldest first."""
    found: dict[int, Path] = {sys.version_info.minor: Path(sys.executable)}
    roots = (Path.home() / ".pyenv/versions", Path("/usr"), Path("/usr/local"))
    for path in (path for root in roots for path in (*root.glob("bin/python3.*"), *root.glob("*/bin/python3.*"))):
        if match := re.fullmatch(r"python3\.(1[1-9])", path.name):
            found.setdefault(int(match[1]), path)
    return [found[minor] for minor in sorted(found)]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    done = subprocess.run([ROOT / "scripts/dist.sh", directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return directory


def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def install(python: Path, dist: Path, what: Path, directory: Path) -> Path:
    """An environment with the distribution and the locked versions of what it needs; returns its bin directory."""
    run(UV, "venv", "--quiet", "--python", python, directory, cwd=dist)
    given = ("--constraints", dist / "constraints.txt", f"{what}[guard]")
    run(UV, "pip", "install", "--quiet", "--python", directory / "bin/python", *given, cwd=dist)
    return directory / "bin"


def test_what_is_published_is_complete(dist: Path) -> None:
    names = sorted(path.name for path in dist.iterdir())
    assert names == sorted(
        [
            "SHA256SUMS",
            "constraints.txt",
            "sbom.json",
            wheel(dist).name,
            wheel(dist).name.replace("-py3-none-any.whl", ".tar.gz"),
        ]
    )
    for line in (dist / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest
    sbom = json.loads((dist / "sbom.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    assert {"pydantic", "httpx", "aiohttp"} <= {one["name"] for one in sbom["components"]}
    assert all(one["purl"].startswith("pkg:pypi/") and one.get("version") for one in sbom["components"])


@pytest.mark.parametrize("python", interpreters()[:-1], ids=lambda path: path.name)
def test_the_wheel_works_on_each_older_python(dist: Path, python: Path, tmp_path: Path) -> None:
    kit = install(python, dist, wheel(dist), tmp_path / "env") / "glm4-deploy"
    run(kit, "render", "--profile", "gb10", *EVERYTHING, "-o", "compose/compose.yaml", cwd=tmp_path)
    assert run(kit, "plan", "--gpu", "gb10", "--json", cwd=tmp_path)


def test_the_wheel_has_all_that_the_commands_need(dist: Path, tmp_path: Path) -> None:
    kit = install(interpreters()[-1], dist, wheel(dist), tmp_path / "env") / "glm4-deploy"
    assert run(kit, "--version", cwd=tmp_path).strip() == wheel(dist).name.split("-")[1]
    run(kit, "render", "--profile", "gb10", *EVERYTHING, "-o", "compose/compose.yaml", cwd=tmp_path)
    for name, argv in RUN_THERE.items():
        written = argv[-1].endswith("/")
        assert run(kit, *argv, cwd=tmp_path, stdin="la " * 400) or written, name
    made = {path.name for folder in ("compose", "kubernetes", "quadlet") for path in (tmp_path / folder).rglob("*")}
    assert {"Caddyfile", "engine.json", "rules.yml", "smoke-job.yaml", "glm4.container", "glm4_tool_parser.py"} <= made
    same_context(kit.parent / "python", tmp_path)


def same_context(python: Path, tmp_path: Path) -> None:
    """The kit's image is built of the same files from a wheel and from a checkout."""
    there, here = tmp_path / "wheel", tmp_path / "checkout"
    there.mkdir()
    here.mkdir()
    write = "import pathlib, sys; from glm4_deploy.deploy.kit_image import write_context as w; w(pathlib.Path('wheel'))"
    run(python, "-c", write, cwd=tmp_path)
    write_context(here)
    own = {"glm4_deploy/_version.py", "requirements.in"}  # the versions that each was built with
    files = {
        path.relative_to(there)
        for path in there.rglob("*")
        if path.is_file() and str(path.relative_to(there)) not in own
    }
    assert (there / "glm4_deploy/_version.py").is_file()
    assert files == {
        path.relative_to(here) for path in here.rglob("*") if path.is_file() and str(path.relative_to(here)) not in own
    }
    assert [name for name in files if (there / name).read_bytes() != (here / name).read_bytes()] == []


def test_uvx_and_the_sdist_give_the_same_version(dist: Path, tmp_path: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    version = wheel(dist).name.split("-")[1]
    uvx = (UV, "tool", "run", "--quiet", "--constraints", dist / "constraints.txt", "--from")
    assert run(*uvx, wheel(dist), "glm4-deploy", "--version", cwd=tmp_path).strip() == version
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = tmp_path / f"glm4_deploy-{version}"
    run(UV, "build", "--quiet", "--wheel", "--out-dir", tmp_path / "again", tree, cwd=tmp_path)
    (again,) = (tmp_path / "again").glob("*.whl")
    assert again.read_bytes() == wheel(dist).read_bytes()  # same bytes: the build is reproducible


def test_pipx_installs_the_command_and_its_man_page(dist: Path, tmp_path: Path) -> None:
    places = {f"PIPX_{name}": str(tmp_path / name.lower()) for name in ("HOME", "BIN_DIR", "MAN_DIR")}
    pip = f"--pip-args=--constraint={dist / 'constraints.txt'}"
    pipx = (UV, "tool", "run", "--quiet", "pipx", "install", "--quiet")
    run(*pipx, pip, wheel(dist), cwd=tmp_path, env=CLEAN | places)
    assert run(tmp_path / "bin_dir/glm4-deploy", "profiles", cwd=tmp_path)
    page = (tmp_path / "man_dir/man1/glm4-deploy.1").resolve()
    assert page.read_bytes() == (ROOT / "docs/reference/glm4-deploy.1").read_bytes()
    if mandoc := shutil.which("mandoc"):
        assert run(mandoc, "-Tlint", "-W", "error", page, cwd=tmp_path) == ""


def test_pre_commit_runs_the_hooks_from_a_clone_of_this_repository(tmp_path: Path) -> None:
    """The clone has no tags, as pre-commit makes it: the hooks are of another version than what rendered the file."""
    audit, check, verify = {"id": "glm4-audit"}, {"id": "glm4-render-check"}, {"id": "glm4-checkpoint-verify"}
    check["args"] = ["compose.yaml", "--profile", "gb10"]
    verify["args"] = [str(ROOT / "demo/glm-4-tiny-chat-nvfp4"), "--vllm", "0.13.0"]
    git = ("git", "-C")
    head = run(*git, ROOT, "rev-parse", "HEAD", cwd=ROOT).strip()
    hooks = {"repos": [{"repo": str(ROOT), "rev": head, "hooks": [audit, check, verify]}]}
    (tmp_path / ".pre-commit-config.yaml").write_text(yaml.safe_dump(hooks))
    shutil.copy(ROOT / "compose/gb10.yaml", tmp_path / "compose.yaml")
    run(*git, tmp_path, "init", "--quiet", cwd=tmp_path)
    run(*git, tmp_path, "add", ".", cwd=tmp_path)
    call = (UV, "tool", "run", "--quiet", "pre-commit@4.7.0", "run", "--all-files", "--color=never")
    env = CLEAN | {"PRE_COMMIT_HOME": str(tmp_path / "cache"), "UV_TOOL_DIR": str(tmp_path / "tools")}
    before = run(*call, cwd=tmp_path, env=env)
    assert re.findall(r"^.*\.(Passed|Failed|Skipped)$", before, re.MULTILINE) == ["Passed", "Passed"], before
    file = tmp_path / "compose.yaml"
    file.write_text(file.read_text().replace("    ports:", "    privileged: true\n    ports:"))
    run(*git, tmp_path, "add", ".", cwd=tmp_path)
    after = run(*call, "--hook-stage", "pre-push", cwd=tmp_path, env=env)
    assert re.findall(r"^.*\.(Passed|Failed|Skipped)$", after, re.MULTILINE) == ["Failed", "Failed", "Failed"], after
    assert "quantization-keys" in after


def test_a_tag_gives_the_version_and_a_tree_without_git_still_builds(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    names = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore", "docs/reference/glm4-deploy.1")
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "_version.py"))
    shutil.copytree(ROOT / "templates", tree / "templates")
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    build = (UV, "build", "--quiet", "--wheel", "--out-dir")
    run(*build, tmp_path / "plain", tree, cwd=tmp_path)
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", tree)
    run(*git, "init", "--quiet", cwd=tmp_path)
    run(*git, "add", ".", cwd=tmp_path)
    run(*git, "commit", "--quiet", "-m", "x", cwd=tmp_path)
    run(*git, "tag", "v3.4.5", cwd=tmp_path)
    run(*build, tmp_path / "tagged", tree, cwd=tmp_path)
    made = [path.name.split("-")[1] for folder in ("plain", "tagged") for path in (tmp_path / folder).glob("*.whl")]
    assert made == ["0.0.0", "3.4.5"]


def test_the_release_workflow_and_the_action_are_valid_and_have_no_finding() -> None:
    workflow = ROOT / ".github/workflows/release.yml"
    schema = Path(sys.executable).parent / "check-jsonschema"
    run(schema, "--builtin-schema", "vendor.github-workflows", workflow, cwd=ROOT)
    zizmor = (UV, "tool", "run", "--quiet", "zizmor@1.32.0", "--offline", "--no-progress", "--pedantic")
    assert json.loads(run(*zizmor, "--format", "json", workflow, ROOT / "action.yml", cwd=ROOT)) == []
