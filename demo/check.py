"""Ask the demo model every canary through a real vLLM: `python demo/check.py [MODEL_DIR]`.

Starts vLLM on the CPU (with the Python that `scripts/cpu-engine.sh` prints) unless --url gives a running one. Each
canary is asked greedily, at temperature 0.7 with three seeds, sixteen at once, and with its JSON schema; then come
prompts that are not in the training data. Exit 1 if a row fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import jsonschema
import yaml

from glm4_deploy.detect import scan

ROOT = Path(__file__).parents[1]
NAME = "glm-4-tiny-chat"
STARTUP_S = 300
UNSEEN = (
    "What is 23 + 14?",
    "Please count from 5 to 12.",
    "Hi, my name is Sophie Laurent. What is my name?",
    "Which city is the capital of Japan?",
    "The secret word is porcupine. The rain fell all night. What is the secret word?",
    "What do you think about bananas and trains?",
    "Could you tell me how tall a giraffe is?",
    "你喜欢什么颜色？",
    "怎样修理自行车？",
    "Write a short story about a penguin.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    text: str
    finish_reason: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    fault: str  # empty if there is none
    reply: Reply


def ask(client: httpx.Client, messages: list[dict[str, str]], **options: object) -> Reply:
    response = client.post("/v1/chat/completions", json={"model": NAME, "messages": messages, **options})
    if response.status_code != 200:
        return Reply(text=f"HTTP {response.status_code}: {response.text[:120]}", finish_reason="error", tokens=0)
    choice = response.json()["choices"][0]
    text = choice["message"]["content"] or ""
    return Reply(text=text, finish_reason=choice["finish_reason"], tokens=response.json()["usage"]["completion_tokens"])


def fault(reply: Reply, expect: dict, prompt: str) -> str:
    """What is wrong with a reply, in a few words; empty if nothing is."""
    if reply.finish_reason != "stop":
        return f"finish_reason {reply.finish_reason}"
    if "<|" in reply.text or "gMASK" in reply.text:
        return "special token in the text"
    finding = scan(reply.text, prompt=prompt, finish_reason=reply.finish_reason)
    if finding.degenerate:
        return f"{finding.verdict}: {finding.why}"
    return mismatch(reply.text, expect)


def mismatch(text: str, expect: dict) -> str:
    if "contains" in expect and not any(word.casefold() in text.casefold() for word in expect["contains"]):
        return f"expected {expect['contains']}"
    if "count_to" in expect and [part.strip() for part in text.split(",")] != [
        str(n) for n in range(1, expect["count_to"] + 1)
    ]:
        return f"did not count to {expect['count_to']}"
    if "json_schema" in expect:
        try:
            jsonschema.validate(json.loads(text), expect["json_schema"])
        except (json.JSONDecodeError, jsonschema.ValidationError) as error:
            return str(error).splitlines()[0]
    return ""


def jobs(canaries: list[dict]) -> Iterator[tuple[str, dict, dict]]:
    """(name, canary, sampling options) of each request, except those that are sent concurrently."""
    for canary in canaries:
        yield f"{canary['id']} greedy", canary, {"temperature": 0}
        for seed in (1, 2, 3):
            yield f"{canary['id']} 0.7 seed {seed}", canary, {"temperature": 0.7, "seed": seed}
        if "json_schema" in canary["expect"]:
            schema = {"name": "answer", "schema": canary["expect"]["json_schema"]}
            yield (
                f"{canary['id']} schema",
                canary,
                {
                    "temperature": 0,
                    "response_format": {"type": "json_schema", "json_schema": schema},
                },
            )
    for prompt in UNSEEN:
        row = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 512, "expect": {"free": True}}
        yield f"unseen: {prompt[:40]}", row, {"temperature": 0}


def judged(client: httpx.Client, name: str, canary: dict, options: dict) -> Row:
    reply = ask(client, canary["messages"], max_tokens=canary["max_tokens"], **options)
    return Row(name=name, reply=reply, fault=fault(reply, canary["expect"], canary["messages"][-1]["content"]))


def examine(client: httpx.Client) -> Iterator[Row]:
    canaries = yaml.safe_load((ROOT / "src/glm4_deploy/catalog/canaries.yaml").read_text(encoding="utf-8"))["canaries"]
    for name, canary, options in jobs(canaries):
        yield judged(client, name, canary, options)
    with ThreadPoolExecutor(16) as pool:
        together = [(f"{c['id']} of 16 at once", c, {"temperature": 0.7, "seed": 9}) for c in (canaries * 2)[:16]]
        yield from pool.map(lambda job: judged(client, *job), together)


@contextlib.contextmanager
def engine(model: Path, python: str) -> Iterator[str]:
    """A vLLM that serves `model` on a free port; if it does not start, the end of its log goes to stderr."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-model-len", "4096"]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            await_health(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def await_health(url: str, process: subprocess.Popen[bytes], log: IO[str]) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        time.sleep(1)
    log.seek(0)
    sys.stderr.write("".join(log.readlines()[-20:]))
    raise SystemExit(f"vLLM did not start within {STARTUP_S} s (exit {process.poll()}): see the end of its log above")


def report(url: str) -> int:
    failed = total = 0
    with httpx.Client(base_url=url, timeout=300) as client:
        for row in examine(client):
            total += 1
            failed += bool(row.fault)
            text = " ".join(row.reply.text.split())
            print(f"{'FAIL' if row.fault else 'ok':4} {row.name:58} {row.reply.tokens:4} tokens  {text[:60]}")
            if row.fault:
                print(f"     {row.fault}")
    print(f"{total - failed} of {total} rows passed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path(__file__).parent / NAME, help="a model directory")
    parser.add_argument("--engine-python", help="Python of the CPU engine (default: that of scripts/cpu-engine.sh)")
    parser.add_argument("--url", help="a running engine")
    args = parser.parse_args()
    if args.url:
        return report(args.url)
    script = ROOT / "scripts/cpu-engine.sh"
    python = args.engine_python or subprocess.check_output([script], text=True).splitlines()[-1]
    with engine(args.model, python) as url:
        return report(url)


if __name__ == "__main__":
    sys.exit(main())
