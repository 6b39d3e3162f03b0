"""The demo model's checkpoints in vLLM: the log-probability of every token of known texts, and greedy answers."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from engines import Record, clock, end, ended, fork, read, seen

TINY = (
    *("nvfp4-raw", "nvfp4-for-0.13", "nvfp4-for-0.24", "nvfp4-for-0.24@emulation"),
    *("nvfp4-damaged", "nvfp4-damaged-all", "bf16"),
)
PROMPTS = Path(__file__).with_name("texts.json")
POISON = 1e6
"""A value that no global scale of these checkpoints has (they are in the thousands)."""


def poison() -> None:
    """Leave POISON in the GPU memory that small tensors get next: a repeatable form of another program's leftovers."""
    import torch

    held = [torch.full((2,), POISON, device="cuda") for _ in range(50_000)]
    del held


def tiny_work(
    model: Path, result: Path, *, backend: str | None, linear: str | None, poisoned: bool
) -> Callable[[], object]:
    def work() -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM, SamplingParams

        if poisoned:
            poison()
        began = time.monotonic()
        llm = LLM(
            model=str(model),
            enforce_eager=True,
            gpu_memory_utilization=0.08,
            kv_cache_memory_bytes=2**28,
            max_model_len=2048,
            max_num_seqs=16,
            **({"attention_backend": backend} if backend else {}),
            **({"linear_backend": linear} if linear else {}),
        )
        loaded = time.monotonic() - began
        texts = json.loads(PROMPTS.read_text())
        tokenizer = llm.get_tokenizer()
        scored = [{"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)} for text in texts["score"]]
        outputs = llm.generate(scored, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0), use_tqdm=False)
        logprobs = [
            [row[token].logprob for token, row in zip(o.prompt_token_ids[1:], o.prompt_logprobs[1:], strict=True)]
            for o in outputs
        ]
        asked = [{"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)} for text in texts["ask"]]
        answers = llm.generate(asked, SamplingParams(max_tokens=48, temperature=0), use_tqdm=False)
        found = {"loaded_s": loaded, "logprobs": logprobs, "answers": [a.outputs[0].text for a in answers]}
        result.write_text(json.dumps(found))

    return work


def tiny_stage(record: Record, models: Path, names: tuple[str, ...], backend: str | None) -> None:
    """All checkpoints at once; `NAME+poison` is NAME loaded into memory that holds POISON, `NAME@BACKEND` with the
    linear backend that is named (`emulation` reads `input_global_scale`, which Marlin does not).

    Log-probabilities are compared with those of the first name.
    """
    results = {name: record.logs / f"tiny-{name}.json" for name in names}
    pids = {}
    for name in names:
        model, _, how = name.partition("+")
        model, _, linear = model.partition("@")
        work = tiny_work(
            models / model, results[name], backend=backend, linear=linear or None, poisoned=how == "poison"
        )
        pids[name] = fork(record.logs / f"tiny-{name}.log", work)
    until = clock() + 100
    while clock() < until and not all(ended(pid) for pid in pids.values()):
        time.sleep(0.2)
    for pid in pids.values():
        end(pid)
    found = {name: json.loads(path.read_text()) for name, path in results.items() if path.exists()}
    for name in names:
        log = read(record.logs / f"tiny-{name}.log")
        if name not in found:
            record.add("tiny", name, failed=seen(log), tail=log[-800:])
            continue
        flat = [x for row in found[name]["logprobs"] for x in row]
        record.add(
            "tiny",
            name,
            loaded_s=round(found[name]["loaded_s"], 1),
            scored_tokens=len(flat),
            perplexity=math.exp(min(700, -sum(flat) / len(flat))),
            largest_difference_to_first=_difference(flat, found.get(names[0])),
            answers=found[name]["answers"],
            **seen(log),
        )


def _difference(flat: list[float], first: dict[str, list[list[float]]] | None) -> float | None:
    if first is None:
        return None
    return max(abs(a - b) for a, b in zip(flat, (x for row in first["logprobs"] for x in row), strict=True))
