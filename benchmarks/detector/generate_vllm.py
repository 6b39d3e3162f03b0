"""Runs with the CPU engine's Python: asks the demo model, or a sick twin of it, through vLLM.

    PYTHON generate_vllm.py KIND SEED MODEL_DIR PROMPTS.json OUT.jsonl

Rows: kind, seed, prompt, text, token_ids, logprobs (null for NaN), finish_reason, temperature.
"""

import json
import math
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

from vllm import LLM, SamplingParams


def main(kind: str, seed: str, model: str, prompts_file: str, out_file: str) -> None:
    prompts = json.loads(Path(prompts_file).read_text(encoding="utf-8"))
    llm = LLM(model=model, enforce_eager=True, max_model_len=1024, max_num_seqs=64)
    jobs = [(prompt, temperature) for prompt in prompts for temperature in (0.0, 0.7, 1.0, 1.3)]
    answers = llm.chat(
        [[{"role": "user", "content": prompt}] for prompt, _ in jobs],
        [SamplingParams(temperature=heat, seed=at, max_tokens=384, logprobs=0) for at, (_, heat) in enumerate(jobs)],
        use_tqdm=False,
    )
    with Path(out_file).open("w", encoding="utf-8") as out:
        for (prompt, temperature), answer in zip(jobs, answers, strict=True):
            first = answer.outputs[0]
            logprobs = [
                found[token].logprob if token in found else None
                for token, found in zip(first.token_ids, first.logprobs or [], strict=True)
            ]
            row = {
                "kind": kind,
                "seed": int(seed),
                "prompt": prompt,
                "text": first.text,
                "token_ids": list(first.token_ids),
                "logprobs": [None if value is None or math.isnan(value) else round(value, 4) for value in logprobs],
                "finish_reason": first.finish_reason,
                "temperature": temperature,
            }
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
