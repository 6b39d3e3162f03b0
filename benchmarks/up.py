"""What `up` costs beyond the engine: wall time of `up` from the command to the verdict, compared with the bare engine.

    GLM4_CPU_PYTHON=$(scripts/cpu-engine.sh) .venv/bin/python -m benchmarks.up

Both start the same vLLM on the CPU in turn, with the same arguments, environment and caches; `bare` ends when /health
answers. The rest of `up` is its own start-up, its checks of the host and the checkpoint, and the gate, which requests
about 2,000 tokens.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.engines import command, environment

ROOT = Path(__file__).parents[1]
LIMIT_S = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def requested(port: int) -> dict[str, object]:
    return {"profile": "cpu", "model_dir": str(ROOT / "demo/glm-4-tiny-chat"), "port": port}


def bare(directory: Path, python: str) -> float:
    """Seconds from the process to /health."""
    port = free_port()
    spec = resolve_spec(requested(port))
    begin = time.perf_counter()
    process = subprocess.Popen(
        command(spec, python),
        env=environment(spec, directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while time.perf_counter() - begin < LIMIT_S:
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=1).status_code == 200:
                    return time.perf_counter() - begin
            assert process.poll() is None, "the engine died"
            time.sleep(0.02)
        raise TimeoutError("the engine was not ready")
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)


def up(directory: Path) -> tuple[float, float, float]:
    """Seconds: wall time of `up`, the part until the engine is ready, the part of the gate."""
    kit = [sys.executable, "-m", "glm4_deploy"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in requested(free_port()).items()]
    begin = time.perf_counter()
    done = subprocess.run(
        [*kit, "up", *flags, "--runner", "process", "--state-dir", str(directory), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - begin
    subprocess.run([*kit, "down", "--state-dir", str(directory)], check=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    return wall, report["ready_seconds"], report["gate_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="starts of each, interleaved (3)")
    rounds = parser.parse_args().rounds
    python = os.environ["GLM4_CPU_PYTHON"]
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        up(directory)  # fills the caches
        engine, whole = [], []
        for _ in range(rounds):
            engine.append(bare(directory, python))
            whole.append(up(directory))
    base = statistics.median(engine)
    wall, ready, gate = (statistics.median(column) for column in zip(*whole, strict=True))
    print("| | median s | × the bare engine |")
    print("|---|---|---|")
    for name, seconds in (("bare engine, until /health", base), ("`up`, until its verdict", wall)):
        print(f"| {name} | {seconds:.1f} | {seconds / base:.2f} |")
    print(
        f"\nBeyond the engine: {wall - base:.1f} s, {gate:.1f} s of it the gate. `up` saw it ready after {ready:.1f} s."
    )


if __name__ == "__main__":
    main()
