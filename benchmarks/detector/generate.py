"""Generate text with tiny GLMs (GlmForCausalLM) whose weights are random or broken. Needs the CPU engine's Python:

    "$(scripts/cpu-engine.sh)" benchmarks/detector/generate.py OUT.jsonl

The weights are random and the vocabulary is a list of words, so the text is not language; its loops and its logprobs
are those of a real model. Rows: kind (greedy, sampled, nan), text, token_ids, logprobs (null for NaN), pieces.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from transformers import GlmConfig, GlmForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.detector.wordstock import ADJECTIVES, CITIES, NAMES, NOUNS, SAINTS, VERBS

HAN = "灯塔立在长的石堤尽头每天傍晚守人爬上楼梯点亮火本子写下气船只夜里经过没有一艘知道他名字"
CYRILLIC = [" маяк", " стоит", " конце", " длинного", " каменного", "ный", "ого", " дом"]
WORDS = [" " + word for word in NOUNS + VERBS + ADJECTIVES + NAMES + CITIES + SAINTS]
MARKS = [
    *".,;:?()\n",
    " the",
    " of",
    " and",
    " a",
    " in",
    " is",
    " to",
    "ing",
    "ed",
    "s",
    "\n\n",
    "1",
    "2",
    "7",
    " =",
    "{",
    "}",
]
VOCABULARY = list(dict.fromkeys(["!", *MARKS, *WORDS, *HAN, *CYRILLIC]))


def model(seed: int, scale: float) -> GlmForCausalLM:
    torch.manual_seed(seed)
    config = GlmConfig(
        vocab_size=len(VOCABULARY), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=None, eos_token_id=None, bos_token_id=None,
        initializer_range=scale, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    return GlmForCausalLM(config).eval()


@torch.inference_mode()
def generate(
    net: GlmForCausalLM, prompts: torch.Tensor, length: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their logprobs, each [batch, length]; the argmax of NaN logits is id 0, as in the engine."""
    cache, step, ids, logs = None, prompts, [], []
    for _ in range(length):
        out = net(input_ids=step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logp = torch.log_softmax(out.logits[:, -1].float(), -1)
        if temperature and not logp.isnan().any():
            step = torch.multinomial((logp / temperature).softmax(-1), 1)
        else:
            step = logp.nan_to_num(-1e9).argmax(-1, keepdim=True)
        ids.append(step)
        logs.append(logp.gather(1, step))
    return torch.cat(ids, 1), torch.cat(logs, 1)


def rows(kind: str, seed: int, scale: float, temperature: float, length: int, batch: int) -> list[dict[str, object]]:
    net = model(seed, scale)
    if kind == "nan":
        with torch.no_grad():
            net.model.layers[1].mlp.down_proj.weight[3] = float("nan")
    prompts = torch.randint(1, len(VOCABULARY), (batch, 8), generator=torch.Generator().manual_seed(seed))
    ids, logs = generate(net, prompts, length, temperature)
    return [
        {
            "kind": kind,
            "text": "".join(VOCABULARY[token] for token in tokens),
            "token_ids": tokens,
            "logprobs": [None if value != value else round(value, 4) for value in values],
            "pieces": [len(VOCABULARY[token]) for token in tokens],
            "seed": seed,
            "temperature": temperature,
        }
        for tokens, values in zip(ids.tolist(), logs.tolist(), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    rng = random.Random(4)
    torch.set_num_threads(1)  # the models are so small that more threads are slower
    with parser.parse_args().out.open("w", encoding="utf-8") as out:
        for seed in range(12):
            for kind, temperature in (("greedy", 0.0), ("sampled", rng.choice([0.7, 1.0, 1.3])), ("nan", 0.0)):
                length = rng.choice([128, 256, 512])
                for row in rows(kind, seed, rng.choice([0.02, 0.1, 0.3]), temperature, length, 8):
                    out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
