"""Generate answers of the demo model, or of a sick twin, through vLLM. Needs the CPU engine's Python:

    "$(scripts/cpu-engine.sh)" benchmarks/detector/generate_vllm.py KIND SEED MODEL_DIR PROMPTS.json OUT.jsonl

Rows: kind, seed, prompt, text, token_ids, logprobs (null for NaN), finish_reason, temperature.
"""

import argparse
import json
import math
import os
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

from vllm import LLM, SamplingParams


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", help="copied into each row")
    parser.add_argument("seed", type=int, help="copied into each row")
    parser.add_argument("model", help="a model directory")
    parser.add_argument("prompts", type=Path, help="a JSON list of user messages")
    parser.add_argument("out", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    prompts = json.loads(options.prompts.read_text(encoding="utf-8"))
    llm = LLM(model=options.model, enforce_eager=True, max_model_len=1024, max_num_seqs=64)
    jobs = [(prompt, temperature) for prompt in prompts for temperature in (0.0, 0.7, 1.0, 1.3)]
    answers = llm.chat(
        [[{"role": "user", "content": prompt}] for prompt, _ in jobs],
        [SamplingParams(temperature=heat, seed=at, max_tokens=384, logprobs=0) for at, (_, heat) in enumerate(jobs)],
        use_tqdm=False,
    )
    with options.out.open("w", encoding="utf-8") as out:
        for (prompt, temperature), answer in zip(jobs, answers, strict=True):
            first = answer.outputs[0]
            logprobs = [
                found[token].logprob if token in found else None
                for token, found in zip(first.token_ids, first.logprobs or [], strict=True)
            ]
            row = {
                "kind": options.kind,
                "seed": options.seed,
                "prompt": prompt,
                "text": first.text,
                "token_ids": list(first.token_ids),
                "logprobs": [None if value is None or math.isnan(value) else round(value, 4) for value in logprobs],
                "finish_reason": first.finish_reason,
                "temperature": temperature,
            }
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
