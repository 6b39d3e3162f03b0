"""Requests lost when an engine dies behind vLLM's router: the router's defaults against the options the kit renders.

    python -m benchmarks.router

Two servers that imitate vLLM (tests/servers), the real router, and one client that repeats one request, so that a
cache-aware router sends it to the same engine. Each server is killed in one run, since either may be that engine.
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
QUICK = ["--worker-startup-check-interval", "1"]  # start-up time is not measured


def rendered() -> list[str]:
    """The router options in the rendered file, without its addresses, ports and start-up times."""
    text = compose_file(resolve_spec({"profile": "cpu"}, sets=["replicas=2"]))
    words = [str(word) for word in yaml.safe_load(text)["services"]["router"]["command"]]
    return words[words.index("--policy") : words.index("--worker-startup-timeout-secs")]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{'options':12} {'killed':7} {'sent':>5} {'lost':>5} {'seconds':>8}")
    for name, options in (("defaults", []), ("rendered", rendered())):
        for victim in (0, 1):
            lost, seconds = kill_one(options, victim)
            print(f"{name:12} {'AB'[victim]:7} {REQUESTS:5} {lost:5} {seconds:8.1f}", flush=True)


def kill_one(options: list[str], victim: int) -> tuple[int, float]:
    """Kill one of two engines, then send requests: how many were not answered, and seconds for all of them."""
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
    """Wait until the URL answers 200."""
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
