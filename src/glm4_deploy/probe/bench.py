"""Load from vLLM's own generator (`vllm bench serve`): choose the load, run it, read the results.

The generator runs where vLLM is installed: inside the engine's container, or with the Python of a local engine. It is
called as a module, because some builds lack the `vllm` command.
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
LEVEL_SECONDS = 900  # time limit of one level
# One process for all levels: importing vLLM takes ten seconds. Results come through stdout, because the generator's
# files may be inside a container.
LAUNCH = f"""
import argparse, json, pathlib, sys, tempfile
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
for arguments in json.loads(sys.argv[1]):
    with tempfile.TemporaryDirectory() as directory:
        main(parser.parse_args(arguments + ["--save-result", "--result-dir", directory, "--result-filename", "r.json"]))
        print("\\n{MARK}" + json.dumps(json.loads(pathlib.Path(directory, "r.json").read_text())), flush=True)
"""


class LoadTimeout(Judged):
    """The load was not sent within its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLoad:
    """The load to send.

    Attributes:
        base_url, tokenizer: as the generator sees them (inside the container, if it runs there).
        concurrency: requests at once, one level each.
        input_len, output_len: tokens per request; end tokens are ignored, so that every answer has this length.
    """

    base_url: str
    model: str
    tokenizer: str
    concurrency: tuple[int, ...] = (1, 4, 16, 64)
    input_len: int = 512
    output_len: int = 128

    def arguments(self, slo: Slo | None) -> list[list[str]]:
        """The generator's arguments: one list for a warm-up at the highest level, then one list per level.

        A level sends four requests per slot, but at least eight. The first requests after a start pay for
        compilation, so the warm-up does not count.
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
    """The command for Python in an engine's container; the key goes through the environment, never through argv."""
    return ["docker", "exec", "-i", "-e", "OPENAI_API_KEY", container, "python3"]


def bench_levels(
    python: Sequence[str],
    load: BenchLoad,
    *,
    slo: Slo | None,
    key: str | None,
    on_level: Callable[[BenchLevel], None],
    limit_s: float | None = None,
) -> tuple[BenchLevel, ...]:
    """Send every level, in order.

    Args:
        limit_s: seconds for all of it; None: LEVEL_SECONDS for each level.

    Raises:
        LoadTimeout: it took longer.
        ExtraMissing: no such Python, or one without vLLM.
        Judged: the generator failed; the message contains its last error.
    """
    command = [*python, "-c", LAUNCH, json.dumps(load.arguments(slo))]
    levels: list[BenchLevel] = []
    warm = False
    tail: deque[str] = deque(maxlen=40)

    def read(line: str) -> None:
        nonlocal warm
        if line.startswith(MARK) and not warm:
            warm = True
        elif line.startswith(MARK):
            levels.append(read_level(json.loads(line.removeprefix(MARK)), slo))
            on_level(levels[-1])
        elif line.strip():
            tail.append(line.strip())

    environment = {"HF_HUB_OFFLINE": "1", **({"OPENAI_API_KEY": key} if key else {})}
    limit = LEVEL_SECONDS * (1 + len(load.concurrency)) if limit_s is None else limit_s
    done = run_program(*command, timeout=limit, environment=environment, on_line=read)
    if done.failure is RunFailure.TIMEOUT:
        raise LoadTimeout(
            f"the load generator did not finish: {done.trouble}", hint="send less: --concurrency, --output-len"
        )
    if done.failure:
        raise ExtraMissing(done.trouble, hint="choose a Python with vLLM: --python")
    if len(levels) < len(load.concurrency):
        raise _failed(tail)
    return tuple(levels)


def read_level(raw: dict[str, Any], slo: Slo | None) -> BenchLevel:
    """One result file of the generator (key names are stable from 0.10 to 0.32)."""
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
    return replace(level, broken=tuple(_broken_limits(level, slo)))


def _broken_limits(level: BenchLevel, slo: Slo | None) -> Iterator[str]:
    """Each limit that a level breaks, with the value seen."""
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


def _failed(tail: Sequence[str]) -> DeployError:
    if "No module named 'vllm" in " ".join(tail):
        return ExtraMissing("no load generator: this Python has no vLLM", hint="choose a Python with vLLM: --python")
    cause = next((line for line in reversed(tail) if "rror" in line), tail[-1] if tail else "no output")
    hint = ("run `glm4-deploy smoke` first", "read the engine's log")
    return Judged(f"the load generator failed: {cause[:300]}", hint=hint)
