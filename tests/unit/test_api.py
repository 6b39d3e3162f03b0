"""The public Python API, as a user's script sees it."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

from glm4_deploy import api
from servers.reference import Reference
from servers.serve import mounted

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/data/api/user.py"
FUNCTIONS = ("plan", "render", "smoke", "detect")


def python(*words: object, where: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    source = {"PYTHONPATH": str(ROOT / "src"), "MYPYPATH": str(ROOT / "src")}
    environment = {**os.environ, **source, **environment}
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=500, check=False)


def test_a_users_script_runs_from_any_directory(tmp_path: Path) -> None:
    (tmp_path / "glm4.yaml").write_text("no_such_setting: 1\n", encoding="utf-8")
    with mounted(Reference()) as url:
        done = python(SCRIPT, url, where=tmp_path, GLM4_PORT="not a port")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok\n")
    assert done.stderr == ""


def test_a_users_script_is_fully_typed() -> None:
    """In strict mode a missing py.typed or an untyped name would be an error; so would an `Any` that leaks."""
    strict = ("--strict", "--config-file=", "--disallow-any-expr", "--cache-dir", ROOT / ".mypy_cache/api")
    done = python("-m", "mypy", *strict, SCRIPT)
    assert done.returncode == 0, done.stdout
    assert (ROOT / "src/glm4_deploy/py.typed").is_file()


def test_the_api_is_four_functions_and_their_types() -> None:
    named = {name for name in api.__all__ if inspect.isfunction(getattr(api, name))}
    assert named == set(FUNCTIONS)
    assert all(inspect.getdoc(getattr(api, name)) for name in api.__all__)


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, json; old = set(sys.modules); import glm4_deploy; print(json.dumps([*set(sys.modules) - old]))"
    generated = {"glm4_deploy._version", "__future__"}  # where it was built or installed
    assert set(json.loads(python("-c", code).stdout)) - generated == {"glm4_deploy"}
