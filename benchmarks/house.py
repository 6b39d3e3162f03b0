"""Measure the code: files, lines, short modules, duplicate names, and the files that a reader of a journey must open.

    .venv/bin/python -m benchmarks.house [--src DIR]

A journey is a command run under `sys.setprofile`. A file counts if one of its functions ran (class bodies and module
code excluded); its room is the folder below the package; a hop is a call from one file to another. The third journey
runs `up` twice against the stand-in engine of tests/journeys: a good release, then one that fails its gate and is
rolled back; the second is counted. `--src` measures another checkout's `src` directory, with its test servers.
"""

import argparse
import ast
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRACER = """
import atexit, json, os, sys
source, out = sys.argv.pop(1), sys.argv.pop(1)
files, hops, last = set(), set(), [""]
def profile(frame, event, _):
    code = frame.f_code
    path = code.co_filename
    if event != "call" or not path.startswith(source) or code.co_name == "<module>" or not code.co_flags & 2:
        return
    files.add(path)
    if last[0] and last[0] != path:
        hops.add((last[0], path))
    last[0] = path
def write():
    sys.setprofile(None)
    with open(out, "w") as file:
        json.dump([sorted(files), sorted(hops)], file)
atexit.register(write)
import threading
from glm4_deploy.cli import main
sys.argv[0] = "glm4-deploy"
threading.setprofile(profile)
sys.setprofile(profile)
main()
"""


def counts(package: Path) -> dict[str, object]:
    """Files, lines, and the class and public function names that are defined more than once."""
    lines: dict[Path, int] = {}
    classes: dict[str, int] = defaultdict(int)
    functions: dict[str, int] = defaultdict(int)
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        lines[path] = len(text.splitlines())
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name] += 1
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                functions[node.name] += 1
    short = [path for path, count in lines.items() if count < 60 and path.name not in ("__init__.py", "__main__.py")]
    total = sum(lines.values())
    return {
        "files": len(lines),
        "lines": total,
        "files per 1,000 lines": round(1000 * len(lines) / total, 1),
        "files under 60 lines": len(short),
        "longest file": max(lines.values()),
        "class names defined twice": sum(count > 1 for count in classes.values()),
        "public function names defined twice": sum(count > 1 for count in functions.values()),
    }


def trace(source: Path, words: list[str], directory: Path, *, code: int = 0, **environment: str) -> dict[str, int]:
    """One journey: files executed, lines in them, rooms, hops between files, and hops that cross rooms."""
    out = directory / "trace.json"
    done = subprocess.run(
        [sys.executable, "-c", TRACER, str(source), str(out), *words],
        env={**os.environ, "PYTHONPATH": str(source), **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode != code:
        raise SystemExit(f"{words}: exit {done.returncode}, expected {code}\n{done.stderr}")
    files, hops = json.loads(out.read_text(encoding="utf-8"))
    package = source / "glm4_deploy"

    def room(path: str) -> str:
        relative = Path(path).relative_to(package)
        return relative.parts[0] if len(relative.parts) > 1 else relative.stem

    return {
        "files": len(files),
        "lines": sum(len(Path(path).read_text(encoding="utf-8").splitlines()) for path in files),
        "rooms": len({room(path) for path in files}),
        "hops": len(hops),
        "room crossings": sum(room(a) != room(b) for a, b in hops),
    }


def trace_rollback(source: Path, directory: Path) -> dict[str, int]:
    """`up` of an engine that loops, after a good release. The engines exit when the lock on their lease is released."""
    with socket.socket() as free, (directory / "lease").open("w") as lease:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        fcntl.flock(lease, fcntl.LOCK_EX)
        paths = (source, source.parent / "tests", ROOT / "tests/journeys/stand_in")
        environment = {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "GLM4_CPU_PYTHON": sys.executable,
            "STAND_IN_LEASE": lease.name,
            "DOCKER_HOST": "unix:///nowhere",
        }
        up = ["up", "--runner", "process", "--profile", "cpu", "--port", port]
        up += ["--model-dir", str(ROOT / "demo/glm-4-tiny-chat")]
        trace(source, up, directory, **environment)
        return trace(source, [*up, "--set", "env.STAND_IN=LoopsGreedy"], directory, code=15, **environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, default=ROOT / "src", help="the `src` directory to measure (this one)")
    source = parser.parse_args().src.resolve()
    for name, value in counts(source / "glm4_deploy").items():
        print(f"{name:38} {value}")
    logs = ROOT / "tests/data/logs"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        print(f"{'render --port 9000':38} {trace(source, ['render', '--port', '9000'], directory)}")
        diagnose = ["diagnose", str(min(logs.rglob("*.log")))]
        print(f"{'diagnose FILE':38} {trace(source, diagnose, directory, code=1)}")
        print(f"{'up, gate fails, rollback':38} {trace_rollback(source, directory)}")


if __name__ == "__main__":
    main()
