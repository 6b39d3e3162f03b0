"""Load through vLLM's own generator (`vllm bench serve`), beside the engine: we choose the load and read the result.

The generator runs where vLLM is installed: inside the engine's container, or by the Python of a local engine. It is
called as a module, because the `vllm` command is missing from some builds.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glm4_deploy.errors import DeployError, ExtraMissing, Judged
from glm4_deploy.probe.limits import Slo
from glm4_deploy.report_model import BenchLevel, Quantiles
from glm4_deploy.run import RunFailure, run_program

MARK = "glm4-bench-result "
LEVEL_SECONDS = 900  # the longest that one level may take
# One process for all levels: importing vLLM costs ten seconds. The result goes through stdout, because the generator's
# file lies in a container.
LAUNCH = f"""
import argparse, json, pathlib, sys, tempfile
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
for words in json.loads(sys.argv[1]):
    with tempfile.TemporaryDirectory() as place:
        main(parser.parse_args(words + ["--save-result", "--result-dir", place, "--result-filename", "r.json"]))
        print("\\n{MARK}" + json.dumps(json.loads(pathlib.Path(place, "r.json").read_text())), flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLoad:
    """What to send. base_url and tokenizer are as the generator sees them (inside the container, where it runs there).

    input_len, output_len: tokens of every request; end tokens are passed over, so that every answer is as long.
    """

    base_url: str
    model: str
    tokenizer: str
    concurrency: tuple[int, ...] = (1, 4, 16, 64)
    input_len: int = 512
    output_len: int = 128

    def words(self, slo: Slo | None) -> list[list[str]]:
        """The generator's arguments: a warm-up at the highest level, then a list a level.

        Four requests a place, eight at the least. The first requests after a start pay for compilation, so the
        warm-up is not counted.
        """
        goodput = slo.goodput if slo else None
        limits = [f"ttft:{goodput.ttft_ms:g}", f"tpot:{goodput.tpot_ms:g}"] if goodput else []
        common = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", self.base_url]
        common += ["--model", self.model, "--tokenizer", self.tokenizer, "--dataset-name", "random", "--ignore-eos"]
        common += ["--random-input-len", str(self.input_len), "--random-output-len", str(self.output_len)]
        common += ["--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,95,99", "--disable-tqdm"]
        common += ["--goodput", *limits] if limits else []
        loads = [(max(self.concurrency), max(self.concurrency)), *((n, max(8, 4 * n)) for n in self.concurrency)]
        return [
            [*common, "--max-concurrency", str(level), "--num-prompts", str(requests), "--seed", str(seed)]
            for seed, (level, requests) in enumerate(loads)
        ]


def in_container(container: str) -> list[str]:
    """The words that run Python beside an engine in a container; the key goes through the environment, never argv."""
    return ["docker", "exec", "-i", "-e", "OPENAI_API_KEY", container, "python3"]


def bench_levels(
    python: Sequence[str], load: BenchLoad, *, slo: Slo | None, key: str | None, on_level: Callable[[BenchLevel], None]
) -> tuple[BenchLevel, ...]:
    """Send every level, in order.

    Raises:
        ExtraMissing: no Python, or one without vLLM.
        Judged: the generator failed; the message ends with its last line.
    """
    words = [*python, "-c", LAUNCH, json.dumps(load.words(slo))]
    levels: list[BenchLevel] = []
    warm = False
    last: deque[str] = deque(maxlen=40)

    def read(line: str) -> None:
        nonlocal warm
        if line.startswith(MARK) and not warm:
            warm = True
        elif line.startswith(MARK):
            levels.append(read_level(json.loads(line.removeprefix(MARK)), slo))
            on_level(levels[-1])
        elif line.strip():
            last.append(line.strip())

    environment = {"HF_HUB_OFFLINE": "1", **({"OPENAI_API_KEY": key} if key else {})}
    limit = LEVEL_SECONDS * (1 + len(load.concurrency))
    done = run_program(*words, timeout=limit, environment=environment, on_line=read)
    if done.failure is RunFailure.TIMEOUT:
        raise Judged(f"the load generator did not end: {done.trouble}", hint="send less: --concurrency, --output-len")
    if done.failure:
        raise ExtraMissing(done.trouble, hint="name a Python with vLLM: --python")
    if len(levels) < len(load.concurrency):
        raise _failed(last)
    return tuple(levels)


def read_level(raw: dict[str, Any], slo: Slo | None) -> BenchLevel:
    """One result file of the generator (its names are stable from 0.10 to 0.32)."""
    ttft, tpot = (
        Quantiles(**{f"p{p}": float(raw[f"p{p}_{name}_ms"]) for p in (50, 95, 99)}) for name in ("ttft", "tpot")
    )
    goodput = raw.get("request_goodput")
    level = BenchLevel(
        concurrency=int(raw["max_concurrency"]),
        requests=int(raw["num_prompts"]),
        failed=int(raw["num_prompts"]) - int(raw["completed"]),
        seconds=float(raw["duration"]),
        ttft=ttft,
        tpot=tpot,
        output_tokens_per_s=float(raw["output_throughput"]),
        requests_per_s=float(raw["request_throughput"]),
        goodput=float(goodput) if goodput is not None else None,
    )
    return replace(level, broken=tuple(_broken(level, slo)))


def _broken(level: BenchLevel, slo: Slo | None) -> Iterator[str]:
    """Each limit that a level does not keep, with the value seen."""
    if level.failed:
        yield f"{level.failed} of {level.requests} requests failed"
    if slo is None:
        return
    for name, quantiles in (("ttft", level.ttft), ("tpot", level.tpot)):
        for share in ("p50", "p95", "p99"):
            limit, value = getattr(slo, f"{name}_{share}_ms"), getattr(quantiles, share)
            if limit is not None and value > limit:
                yield f"{name} {share} {value:.0f} ms (limit {limit:g})"
    if slo.output_tokens_per_s is not None and level.output_tokens_per_s < slo.output_tokens_per_s:
        yield f"{level.output_tokens_per_s:.0f} tokens/s (limit {slo.output_tokens_per_s:g})"
    if slo.goodput is not None and level.goodput is not None:
        share_kept = level.goodput / level.requests_per_s if level.requests_per_s else 0.0
        if share_kept < slo.goodput.share:
            yield f"goodput {share_kept:.0%} (limit {slo.goodput.share:.0%})"


def _failed(last: Sequence[str]) -> DeployError:
    words = " ".join(last)
    if "No module named 'vllm" in words:
        return ExtraMissing("the load generator is not there: no vLLM in that Python", hint="name one: --python")
    cause = next(
        (line for line in reversed(last) if "Error" in line or "error" in line), last[-1] if last else "nothing"
    )
    return Judged(
        f"the load generator failed: {cause[:300]}", hint=("run `glm4-deploy smoke` first", "read the engine's log")
    )
