"""Exit 1 if the engine hangs: it holds requests, but none of its counters has moved for a while. A busy engine moves
them, an idle one holds no requests. /health does not help: a hung engine keeps answering it.

    python3 liveness.py PORT SECONDS STATE_FILE

Standard library only: it runs with the Python of the engine's image.
"""

import http.client
import json
import sys
import time
from pathlib import Path

HELD = ("vllm:num_requests_running", "vllm:num_requests_waiting")
MOVING = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:iteration_tokens_total_count",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
)


def read(port: int) -> tuple[float, float]:
    """(requests in the engine, sum of all counters that grow while it works)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=8)
    connection.request("GET", "/metrics")
    held = moved = 0.0
    for line in connection.getresponse().read().decode("utf-8", "replace").splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name in HELD:
            held += float(value)
        elif name in MOVING:
            moved += float(value)
    return held, moved


def main() -> int:
    port, limit, file = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    try:
        held, moved = read(port)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"no metrics: {error!r}")
        return 1
    now = time.monotonic()  # counts from the host's boot, so all calls share one clock
    try:
        before, since = json.loads(file.read_text())
    except (OSError, ValueError):
        before, since = None, now
    if not held or moved != before:
        since = now
    file.write_text(json.dumps([moved, since]))
    if now - since > limit:
        print(f"{held:.0f} requests in the engine, and no counter moved for {now - since:.0f} s")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
