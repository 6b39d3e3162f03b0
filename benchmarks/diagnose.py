"""Throughput of `glm4-deploy diagnose` on a large log, compared with wc and grep on the same file in the same run.

.venv/bin/python -m benchmarks.diagnose [MEGABYTES]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

BOOT = Path(__file__).parents[1] / "tests/data/logs/h100-0.24-seed.log"
NEEDLE = b"(EngineCore pid=7) torch.AcceleratorError: CUDA error: an illegal memory access was encountered\n"
MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one command took. wall, cpu: seconds. rss: peak resident memory in MB."""

    wall: float
    cpu: float
    rss: float
    out: bytes


def serving(dice: random.Random) -> bytes:
    """Eleven requests and one line of statistics: what an engine with its access log on writes for days."""
    lines = [
        b'(APIServer pid=3377) INFO:     10.%d.0.%d:%d - "POST /v1/chat/completions HTTP/1.1" 200 OK'
        % (dice.randrange(256), dice.randrange(256), dice.randrange(1024, 65536))
        for _ in range(11)
    ]
    lines.append(
        b"(APIServer pid=3377) INFO 11-23 14:43:47 [loggers.py:273] Engine 000: Avg prompt throughput: %d.%d tokens/s, "
        b"Avg generation throughput: %d.%d tokens/s, Running: %d reqs, Waiting: %d reqs, GPU KV cache usage: %d.%d%%, "
        b"Prefix cache hit rate: %d.%d%%"
        % tuple(dice.randrange(top) for top in (20000, 10, 3000, 10, 64, 64, 100, 10, 100, 10))
    )
    return b"\n".join(lines) + b"\n"


def stamped(dice: random.Random) -> bytes:
    """The same lines with Docker's timestamps."""
    lines = serving(dice).splitlines(keepends=True)
    return b"".join(b"2026-11-23T14:43:47.%09dZ " % dice.randrange(10**9) + line for line in lines)


def prompts(dice: random.Random) -> bytes:
    """Requests logged with their prompts: no two lines are alike."""
    words = " ".join(dice.choice(WORDS) for _ in range(40)).encode()
    return b"(APIServer pid=3377) INFO 11-23 14:43:47 [logger.py:40] Received request cmpl-1: prompt: '%b'\n" % words


def tracebacks(dice: random.Random) -> bytes:
    """The worst case: nothing but failing requests."""
    body = b"".join(
        b'(APIServer pid=3377) ERROR 11-23 14:43:47 [x.py:9]   File "/usr/lib/python3/x.py", line %d, in f\n' % at
        for at in range(20)
    )
    head = b"(APIServer pid=3377) ERROR 11-23 14:43:47 [x.py:9] Traceback (most recent call last):\n"
    return (
        head + body + b"(APIServer pid=3377) ERROR 11-23 14:43:47 [x.py:9] ValueError: request %d\n" % dice.randrange(9)
    )


def prose(dice: random.Random) -> bytes:
    """Lines of words without a known beginning."""
    words = " ".join(dice.choice(WORDS) for _ in range(40)).encode()
    return b"(APIServer pid=3377) INFO 11-23 14:43:47 [plugin.py:40] %d %b\n" % (dice.randrange(10**9), words)


WORDS = Path(__file__).read_text(encoding="utf-8").split()
KINDS: dict[str, tuple[Callable[[random.Random], bytes], float]] = {
    "access log and statistics": (serving, 1.0),
    "the same with Docker's timestamps": (stamped, 1.0),
    "requests logged with their prompts": (prompts, 0.25),
    "prose": (prose, 0.1),
    "nothing but tracebacks": (tracebacks, 0.25),
}


def write(path: Path, make: Callable[[random.Random], bytes], size: int) -> None:
    """A real start-up log, then lines from `make` up to `size` bytes, with one failure in the middle."""
    dice = random.Random(1)
    pieces = [make(dice) for _ in range(4000)]
    with path.open("wb") as file:
        file.write(BOOT.read_bytes())
        done = failed = 0
        for piece in _forever(pieces):
            if done >= size:
                return
            if not failed and done > size / 2:
                failed = file.write(NEEDLE)
            done += file.write(piece)


def _forever(pieces: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from pieces


def run(words: list[str]) -> Run:
    begin = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    out = process.stdout.read()
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    return Run(
        wall=time.perf_counter() - begin, cpu=used.ru_utime + used.ru_stime, rss=used.ru_maxrss * 1024 / MB, out=out
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", type=int, nargs="?", default=200, help="size of the largest log (200)")
    size = parser.parse_args().megabytes * MB
    kit = str(Path(sys.executable).parent / "glm4-deploy")
    print("| log | MB | diagnose, MB/s of CPU time | wall | × wc -l | × grep -c Error | peak RSS, MB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "engine.log"
        for name, (make, share) in {"a tenth of the next": (serving, 0.1), **KINDS}.items():
            write(path, make, int(size * share))
            megabytes = path.stat().st_size / MB
            wc, grep = run(["wc", "-l", str(path)]), run(["grep", "-c", "Error", str(path)])
            ours = run([kit, "diagnose", str(path), "--json"])
            findings = json.loads(ours.out)["findings"]
            assert any(row["id"] == "illegal-access" for row in findings), "the failure in the middle was not found"
            print(
                f"| {name} | {megabytes:.0f} | {megabytes / ours.cpu:.0f} | {megabytes / ours.wall:.0f} "
                f"| {ours.cpu / wc.cpu:.0f} | {ours.cpu / grep.cpu:.1f} | {ours.rss:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
