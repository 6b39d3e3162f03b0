"""Wait until an engine has no running requests, before it is stopped. Kubernetes calls this as a preStop hook.

    python3 drain.py PORT SECONDS PROPAGATION

SECONDS limits the wait. PROPAGATION is its unconditional part: until no Service sends requests here any more.

vLLM aborts running requests as soon as it is asked to stop. Standard library only: it runs with the Python of the
engine's image.
"""

import http.client
import sys
import time

AT_WORK = ("vllm:num_requests_running", "vllm:num_requests_waiting")


def at_work(port: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=8)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode("utf-8", "replace").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0] in AT_WORK)


def main() -> int:
    port, limit, propagation = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    deadline = time.monotonic() + limit
    time.sleep(min(propagation, limit))
    while time.monotonic() < deadline:
        try:
            if not at_work(port):
                return 0
        except (OSError, http.client.HTTPException, ValueError) as error:
            print(f"no metrics, nothing to wait for: {error!r}")
            return 0
        time.sleep(1)
    print(f"requests are still running after {limit:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
