"""What is lost when an engine dies behind vLLM's router: its own values against those that the kit renders.

Two servers shaped after vLLM (tests/servers), the real router, one client that asks the same thing again and again, so
that a cache-aware router sends it to the same engine. Each of the two is killed once, since either may be that one.

python -m benchmarks.router
"""

import argparse
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import yaml

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.render.compose import ROUTER, compose_file

TESTS = str(Path(__file__).parents[1] / "tests")
ENGINE = (
    f"import sys; sys.path.insert(0, {TESTS!r}); import uvicorn; from servers.reference import Reference; "
    "uvicorn.run(Reference(), port=int(sys.argv[1]), log_level='critical', lifespan='off')"
)
BODY = {"model": "glm-4-9b-chat", "messages": [{"role": "user", "content": "What is 6 times 7? " * 20}]}
REQUESTS = 15
QUICK = ["--worker-startup-check-interval", "1"]  # the start is not what is measured


def rendered() -> list[str]:
    """The options of the rendered file, from the policy to the last one before its addresses and ports."""
    text = compose_file(resolve_spec({"profile": "cpu"}, sets=["replicas=2"]))
    words = [str(word) for word in yaml.safe_load(text)["services"]["router"]["command"]]
    return words[words.index("--policy") : words.index("--worker-startup-timeout-secs")]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"{'options':12} {'killed':7} {'sent':>5} {'lost':>5} {'seconds':>8}")
    for name, options in (("its own", []), ("rendered", rendered())):
        for victim in (0, 1):
            lost, seconds = one(options, victim)
            print(f"{name:12} {'AB'[victim]:7} {REQUESTS:5} {lost:5} {seconds:8.1f}", flush=True)


def one(options: list[str], victim: int) -> tuple[int, float]:
    """Kill one of two engines, then ask: requests without an answer, seconds for all of them."""
    ports = [free_port() for _ in range(4)]
    base_url = f"http://127.0.0.1:{ports[2]}"
    addresses = [f"http://127.0.0.1:{port}" for port in ports[:2]]
    with ExitStack() as stack:
        engines = [start(stack, ENGINE, str(port)) for port in ports[:2]]
        for address in addresses:
            wait(f"{address}/health")
        metrics = ["--prometheus-port", str(ports[3])]
        start(stack, ROUTER, "--port", str(ports[2]), *metrics, *QUICK, *options, "--worker-urls", *addresses)
        wait(f"{base_url}/readiness")
        assert [ask(base_url) for _ in range(5)] == [200] * 5
        engines[victim].kill()
        engines[victim].wait()
        began = time.monotonic()
        answers = [ask(base_url) for _ in range(REQUESTS)]
        return sum(status != 200 for status in answers), time.monotonic() - began


def start(stack: ExitStack, code: str, *words: str) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=quiet, stderr=quiet)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def wait(url: str) -> None:
    """Until it answers 200."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError(url)


def ask(base_url: str) -> int:
    return httpx.post(f"{base_url}/v1/chat/completions", json=BODY, timeout=60, trust_env=False).status_code


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
