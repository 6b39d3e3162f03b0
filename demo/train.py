"""Train the demo model from scratch: `python demo/train.py --out DIR [--tools] [--seed 0] [--device cuda]`.

Needs torch, transformers and tokenizers, which the Python that `scripts/cpu-engine.sh` prints has. In half of the
steps the layers compute as NVFP4 does (fake_nvfp4.py), so that the model answers as well once it is quantized.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import curriculum
import numpy as np
import tokenizer as tok
import tool_curriculum
import torch
from fake_nvfp4 import FakeNvfp4
from torch.nn.functional import cross_entropy
from transformers import GlmConfig, GlmForCausalLM, PreTrainedTokenizerFast

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS is deterministic with it only

LICENSE = """\
Demo model of glm4-deploy. Copyright the glm4-deploy authors, Apache License 2.0.

These weights have GLM-4's architecture and nothing else of it: they were trained from scratch, by demo/train.py, on
texts written for this purpose (demo/texts.py, demo/curriculum.py). No weight and no text of GLM-4-9B or any other
model is in them, so the glm-4-9b License does not apply to this directory.
"""
TOOLS_LICENSE = """\

The prompts of its training contain the system text of GLM-4's published chat template, as every request with tools
does (templates/tools/glm4_chat_template.jinja). It learned to read that text, not to write it.
"""
Row = tuple[list[int], list[float]]  # token ids, weight of each as a target
Batch = tuple[np.ndarray, np.ndarray]  # token ids and weights, each [B, T]; arrays cross processes cheaply
CONTEXT = 4096  # tokens
ROLE = {"call": "<|assistant|>", "forced": "<|assistant|>"}  # answers that are no text
BARE = {"text", *ROLE}  # no line break before the content
FAKE_FROM, FAKE_SHARE = 0.25, 0.5  # after this share of the steps, this share of the batches computes as NVFP4


def config(args: argparse.Namespace) -> GlmConfig:
    return GlmConfig(
        vocab_size=tok.VOCAB,
        hidden_size=args.width,
        intermediate_size=args.inner,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        pad_token_id=tok.ID["<|endoftext|>"],
        eos_token_id=[tok.ID[name] for name in tok.EOS],
        tie_word_embeddings=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, turns: curriculum.Turns, *, asks_too: bool, tools: bool) -> Row:
    """Ids and target weights: answers and their end tokens count fully, questions a little if `asks_too`.

    tools: the prompt ends with <|assistant|>, so the model itself begins a call or, with a line break, a text.
    """
    ids = [tok.ID["[gMASK]"], tok.ID["<sop>"]]
    weights = [0.0, 0.0]
    for role, content in turns:
        body = tokenizer.encode(content if role in BARE else "\n" + content, add_special_tokens=False)
        if role == "text":
            ids += [*body, tok.ID["<|endoftext|>"]]
            weights += [1.0] * (len(body) + 1)
            continue
        ids += [tok.ID[ROLE.get(role, f"<|{role}|>")], *body]
        answered = role in {"assistant", *ROLE}
        weights.append(float(weights[-1] == 1.0))  # the role token after an answer is its end token
        weights.append(float(tools and role in {"assistant", "call"}))
        weights += [1.0 if answered else 0.1 * asks_too] * (len(body) - 1)
    if turns[-1][0] in {"assistant", *ROLE}:
        ids.append(tok.ID["<|observation|>" if turns[-1][0] == "call" else "<|user|>"])
        weights.append(1.0)
    scale = sum(w == 1.0 for w in weights) ** -0.5  # a long answer weighs more, but not in proportion to its length
    return ids, [w * scale for w in weights]


def micro_batches(rows: list[Row], tokens: int) -> Iterator[Batch]:
    """Batches of rows of similar length, at most `tokens` each, padded on the right."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    while rows:
        longest = len(rows[-1][0])
        take, rows = rows[-max(1, tokens // longest) :], rows[: -max(1, tokens // longest)]
        ids = np.full((len(take), longest), tok.ID["<|endoftext|>"])
        weights = np.zeros((len(take), longest), np.float32)
        for i, (row, weight) in enumerate(take):
            ids[i, : len(row)] = row
            weights[i, : len(row)] = weight
        yield ids, weights


def loss_sum(model: GlmForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the cross entropies; the head runs only where a target counts.

    Padding is on the right and attention is causal, so no attention mask is needed.
    """
    wanted = weights[:, 1:] > 0
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[wanted]
    losses = cross_entropy(model.lm_head(hidden).float(), ids[:, 1:][wanted], reduction="none")
    return (losses * weights[:, 1:][wanted]).sum()


def optimizers(model: GlmForCausalLM, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    adam = {"betas": (0.9, 0.98), "weight_decay": 0.0}
    if args.no_muon:
        return [torch.optim.AdamW([*matrices, *others], lr=args.lr_adam, **adam)]
    return [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr_adam, **adam),
    ]


class Stream:
    """The batches of a step: they depend on the seed and the step only, so processes can make them in advance."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
        self.tokenizer, self.tools, self.seed, self.step_tokens = tokenizer, args.tools, args.seed, args.step_tokens

    def __call__(self, step: int) -> list[Batch]:
        rng = random.Random(f"{self.seed} {step}")
        rows: list[Row] = []
        while sum(len(row[0]) for row in rows) < self.step_tokens:
            turns = tool_curriculum.mixed(rng) if self.tools else curriculum.sample(rng)
            row = encode(self.tokenizer, turns, asks_too=rng.random() < 0.2, tools=self.tools)
            if len(row[0]) <= CONTEXT:
                rows.append(row)
        return list(micro_batches(rows, self.step_tokens))


def fit(model: GlmForCausalLM, fake: FakeNvfp4, steps: Iterator[list[Batch]], args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    optims = optimizers(model, args)
    peaks = [group["lr"] for optim in optims for group in optim.param_groups]
    began, seen = time.monotonic(), 0
    for step, batches in enumerate(steps):
        done = max(step / args.steps, (time.monotonic() - began) / args.seconds)
        if done >= 1:
            break
        warm, cool = min(1.0, (step + 1) / 50), min(1.0, (1 - done) / 0.6)
        for optim, peak in zip(optims, peaks, strict=True):
            optim.param_groups[0]["lr"] = peak * warm * cool
        total = sum(float(weights.sum()) for _, weights in batches)
        step_loss = torch.zeros((), device=args.device)
        for ids, weights in (map(torch.from_numpy, batch) for batch in batches):
            fake.on = done > FAKE_FROM and rng.random() < FAKE_SHARE
            with torch.autocast(args.device, torch.bfloat16, enabled=not args.fp32):
                loss = loss_sum(model, ids.to(args.device), weights.to(args.device)) / total
            loss.backward()
            step_loss += loss.detach()
            seen += ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        if step % 100 == 99 or step == args.steps - 1 or step == 4:
            shown, spent = step_loss.item(), time.monotonic() - began
            print(
                f"step {step + 1}/{args.steps} loss {shown:.4f} {seen / spent:.0f} tokens/s {spent:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    fake.on = False


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each shape, and there are thousands
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    texts = (tool_curriculum if args.tools else curriculum).corpus(random.Random(args.seed), 600)
    tokenizer = tok.train(texts)
    if args.tools:
        tokenizer.chat_template = tool_curriculum.TEMPLATE.read_text(encoding="utf-8")
    with multiprocessing.get_context("fork").Pool(args.workers) as pool:  # before CUDA, which no fork survives
        model = GlmForCausalLM(config(args)).to(args.device)
        model.train()
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", file=sys.stderr)
        fake = FakeNvfp4(model.model.layers)
        stream = Stream(tokenizer, args)
        fit(model, fake, pool.imap(stream, range(args.steps)), args)
    model.to(torch.bfloat16).eval()
    save(model, tokenizer, args.out, LICENSE + TOOLS_LICENSE * args.tools)
    for fake.on in () if args.no_exam else (False, True):
        print("as NVFP4" if fake.on else "as bf16", flush=True)
        exam(model, tokenizer, args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tools", action="store_true", help="with tool calls (tool_curriculum.py)")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--inner", type=int, default=640, help="width inside the MLP")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end earlier, with the same schedule")
    parser.add_argument("--step-tokens", type=int, default=16_000, help="tokens per step")
    parser.add_argument("--lr", type=float, default=7e-4, help="of Muon")
    parser.add_argument("--lr-adam", type=float, default=3e-3, help="of AdamW")
    parser.add_argument("--no-muon", action="store_true", help="AdamW for all parameters")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU")
    parser.add_argument("--workers", type=int, default=2, help="processes that make the texts")
    parser.add_argument("--no-exam", action="store_true", help="only train")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def save(model: GlmForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, licence: str) -> None:
    """Write a checkpoint that Transformers 4.57 and 5 both read; version 5 would write one that only it reads."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    rewrite(out / "config.json", rope_theta=model.config.rope_parameters["rope_theta"])
    rewrite(out / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    (out / "model.safetensors").chmod(0o644)
    (out / "LICENSE").write_text(licence, encoding="utf-8")


def rewrite(path: Path, **changes: object) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def exam(model: GlmForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """Print, for each family and each canary, how often the exact answer comes: greedily, and at temperature 0.7.

    The second is the product of the probabilities of the answer's tokens.
    """
    rng = random.Random(args.seed + 1)
    asked = {f"canary {name}": [turns] for name, turns in curriculum.CANARY_TURNS.items()}
    asked |= {
        family.__name__: [family(rng) for _ in range(20)]
        for family in curriculum.MIX
        if family is not curriculum.passage
    }
    if args.tools:
        for words, kind in ((tool_curriculum.Words(), "tools"), (tool_curriculum.HELD, "held")):
            for family in tool_curriculum.MIX:
                asked[f"{kind} {family.__name__}"] = [family(rng, words) for _ in range(40)]
    for name, samples in asked.items():
        greedy = sampled = 0.0
        for turns in samples:
            ids, weights = encode(tokenizer, turns, asks_too=False, tools=args.tools)
            batch = torch.tensor([ids], device=args.device)
            logits = model(input_ids=batch).logits[0, :-1].float()
            wanted = torch.tensor(weights[1:], device=args.device) > 0
            target = batch[0, 1:][wanted]
            greedy += bool((logits[wanted].argmax(-1) == target).all()) / len(samples)
            logp = (logits[wanted] / 0.7).log_softmax(-1).gather(-1, target[:, None])
            sampled += logp.sum().exp().item() / len(samples)
        print(f"{name:24} greedy {greedy:6.1%}  at 0.7 {sampled:6.1%}", flush=True)


if __name__ == "__main__":
    main()
