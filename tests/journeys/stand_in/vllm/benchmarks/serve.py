"""A stand-in for vLLM's load generator, as `glm4_deploy.probe.bench` calls it. It sends nothing.

Its figures stand for an engine whose speed grows with max_num_seqs up to the requests at once: 100 tokens per second
each. It reads max_num_seqs from the command line of the engine that listens on the port.
"""

import argparse
import json
from pathlib import Path

VALUES = ("backend", "endpoint", "base-url", "model", "tokenizer", "dataset-name", "random-input-len")
VALUES += ("random-output-len", "percentile-metrics", "metric-percentiles", "goodput", "max-concurrency")
VALUES += ("num-prompts", "seed", "result-dir", "result-filename")


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    for name in VALUES:
        parser.add_argument(f"--{name}", nargs="+" if name == "goodput" else None)
    for name in ("ignore-eos", "disable-tqdm", "save-result"):
        parser.add_argument(f"--{name}", action="store_true")


def main(args: argparse.Namespace) -> None:
    users, prompts = int(args.max_concurrency), int(args.num_prompts)
    rate = 100.0 * min(users, max_num_seqs(args.base_url.rpartition(":")[2]))
    length = int(args.random_output_len)
    figures = {f"p{share}_{name}_ms": 10.0 for share in (50, 95, 99) for name in ("ttft", "tpot")}
    rates = {"output_throughput": rate, "request_throughput": rate / length, "duration": prompts * length / rate}
    counts = {"max_concurrency": users, "num_prompts": prompts, "completed": prompts}
    Path(args.result_dir, args.result_filename).write_text(json.dumps(figures | rates | counts))


def max_num_seqs(port: str) -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "vllm.entrypoints.openai.api_server" in words and port in words:
            return int(words[words.index("--max-num-seqs") + 1])
    raise RuntimeError(f"no engine listens on port {port}")
