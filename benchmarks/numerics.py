"""What W4A4 costs the demo model, and how wrong one `input_global_scale` must be before something notices it.

    PYTHONPATH=src "$(scripts/cpu-engine.sh)" -m benchmarks.numerics [--json] [--steps 12]

The checkpoint runs in Transformers with compressed-tensors, which quantizes activations with `input_global_scale` as
vLLM does (Marlin, on a GPU without FP4, does not read it). Answers are compared token by token with the right ones
before each token, which is what decoding at temperature 0 produces up to its first error.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig, PreTrainedModel
from transformers.utils import logging

from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.probe.checks.logprobs import LIMIT

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "demo"))
import curriculum  # noqa: E402
import train  # noqa: E402
from tests.checkpoints import write_scale  # noqa: E402

BF16, NVFP4 = ROOT / "demo/glm-4-tiny-chat", ROOT / "demo/glm-4-tiny-chat-nvfp4"
VLLM = (0, 32, 0)  # loads the checkpoint as it is
# One layer in the middle; what is wrong there goes through the layers behind it.
PROJECTIONS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
LAYER = 1
HELD_OUT = 3  # chats of each family
Row = tuple[torch.Tensor, torch.Tensor]  # token ids, and which of them are part of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good the answers are.

    Attributes:
        canaries: answered exactly, of all.
        perplexity: of each passage.
        agreement: share of the answers' tokens that bf16 would choose too.
    """

    canaries: int
    perplexity: tuple[float, ...]
    agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The smallest power of two by which a scale must be wrong. None: nothing noticed up to the largest tried."""

    tensor: str
    direction: str
    answers: int | None
    perplexity: int | None
    verify: int | None


def load(directory: Path) -> PreTrainedModel:
    config = CompressedTensorsConfig(run_compressed=False) if directory != BF16 else None
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, quantization_config=config)
    return model.eval()


class Texts:
    """The canaries with their right answers, chats that are not in the training stream, and the passages."""

    def __init__(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(BF16)
        rng = random.Random("held out")
        families = [family for family in curriculum.MIX if family.__name__ not in {"passage", "log_needle_long"}]
        chats = [family(rng) for family in families for _ in range(HELD_OUT)]
        self.canaries = [self._row(tokenizer, turns) for turns in curriculum.CANARY_TURNS.values()]
        self.chats = [self._row(tokenizer, turns) for turns in chats]
        self.passages = [self._passage(tokenizer, text) for text in curriculum.PASSAGES]
        self.chosen: list[torch.Tensor] = []  # by bf16

    @staticmethod
    def _row(tokenizer: object, turns: curriculum.Turns) -> Row:
        ids, weights = train.encode(tokenizer, turns, asks_too=False, tools=False)  # type: ignore[arg-type]
        return torch.tensor([ids]), torch.tensor(weights[1:]) > 0

    @staticmethod
    def _passage(tokenizer: object, text: str) -> Row:
        """As `/v1/completions` is asked for it: nothing but the text."""
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])  # type: ignore[attr-defined]
        return ids, torch.ones(ids.shape[1] - 1, dtype=torch.bool)

    @torch.no_grad()
    def judge(self, model: PreTrainedModel, *, brief: bool = False) -> Quality:
        """brief: the canaries and passages only; the first model judged in full becomes the reference."""
        right = sum(bool((choice == target).all()) for choice, target, _ in self._answers(model, self.canaries))
        perplexity = tuple(math.exp(loss.mean().item()) for _, _, loss in self._answers(model, self.passages))
        if brief:
            return Quality(canaries=right, perplexity=perplexity, agreement=math.nan)
        chosen = [choice for choice, _, _ in self._answers(model, [*self.canaries, *self.chats])]
        self.chosen = self.chosen or chosen
        same = torch.cat([a == b for a, b in zip(chosen, self.chosen, strict=True)])
        return Quality(canaries=right, perplexity=perplexity, agreement=same.float().mean().item())

    @staticmethod
    def _answers(model: PreTrainedModel, rows: Sequence[Row]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each row: the token chosen at each place of the answer, the right one, and its loss."""
        answers = []
        for ids, wanted in rows:
            logits = model(input_ids=ids).logits[0, :-1][wanted].float()
            target = ids[0, 1:][wanted]
            answers.append(
                (logits.argmax(-1), target, torch.nn.functional.cross_entropy(logits, target, reduction="none"))
            )
        return answers


def threshold(model: PreTrainedModel, texts: Texts, healthy: Quality, name: str, up: bool, steps: int) -> Threshold:
    """Make one input scale larger or smaller, power by power, until answers, perplexity and verify have noticed it."""
    layer = model.get_submodule(f"model.layers.{LAYER}.{name}")
    sound = layer.input_global_scale.data.clone()
    seen: dict[str, int] = {}
    for power in range(1, steps + 1):
        layer.input_global_scale.data = sound * 2.0 ** (power if up else -power)
        if not {"answers", "perplexity"} <= seen.keys():
            quality = texts.judge(model, brief=True)
            if quality.canaries < healthy.canaries:
                seen.setdefault("answers", power)
            if any(
                not now <= LIMIT * before for now, before in zip(quality.perplexity, healthy.perplexity, strict=True)
            ):
                seen.setdefault("perplexity", power)
        if "verify" not in seen and verify_fails(name, layer.input_global_scale.item()):
            seen["verify"] = power
    layer.input_global_scale.data = sound
    found = {key: 2 ** seen[key] if key in seen else None for key in ("answers", "perplexity", "verify")}
    return Threshold(tensor=name, direction="too large" if up else "too small", **found)


def verify_fails(name: str, scale: float) -> bool:
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work) / NVFP4.name
        shutil.copytree(NVFP4, copy)
        write_scale(copy, f"model.layers.{LAYER}.{name}.input_global_scale", scale)
        return any(result.check == "global-scales" for result in verify_checkpoint(copy, vllm=VLLM).failures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=0, help="powers of two to try for each scale; 0: none")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts = Texts()
    bf16, model = texts.judge(load(BF16)), load(NVFP4)
    w4a4 = texts.judge(model)
    thresholds = [
        threshold(model, texts, w4a4, name, up, args.steps)
        for name in PROJECTIONS
        for up in (True, False)
        if args.steps
    ]
    result = {"bf16": asdict(bf16), "w4a4": asdict(w4a4), "of": len(texts.canaries)}
    result["thresholds"] = [asdict(one) for one in thresholds]
    if args.json:
        print(json.dumps(result))
        return
    print("| | canaries exact | perplexity of both passages | tokens as bf16 |\n|---|---|---|---|")
    for name, one in (("bf16", bf16), ("W4A4", w4a4)):
        perplexity = ", ".join(f"{value:.3f}" for value in one.perplexity)
        print(f"| {name} | {one.canaries} of {len(texts.canaries)} | {perplexity} | {one.agreement:.2%} |")
    if thresholds:
        print(
            "\n| input_global_scale of | wrong answers from | perplexity check from | verify from |\n|---|---|---|---|"
        )
    for row in thresholds:
        cells = (f"from × {value}" if value else "not seen" for value in (row.answers, row.perplexity, row.verify))
        print(f"| {row.tensor}, {row.direction} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
