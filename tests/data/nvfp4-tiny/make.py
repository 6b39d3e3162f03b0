"""Make this directory's checkpoint anew: a random 2-layer GLM, quantised by llm-compressor, as it was written.

PYTHON make.py DIR, where PYTHON has torch, transformers 5 and llmcompressor 0.14 (the extra `quantize`).
"""

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, GlmConfig, GlmForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
SPECIAL += ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
TEMPLATE = "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}<|assistant|>"
VOCAB = 272


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and GLM's special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    made.chat_template = TEMPLATE
    return made


def model(eos: list[int]) -> GlmForCausalLM:
    config = GlmConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 5e6, "partial_rotary_factor": 0.5, "rope_type": "default"},
        eos_token_id=eos,
        pad_token_id=eos[0],
    )
    made = GlmForCausalLM(config).to(torch.bfloat16)
    made.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=eos[0])
    return made


def main() -> None:
    torch.manual_seed(0)
    words = tokenizer()
    eos = [words.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    base = tempfile.mkdtemp()  # llm-compressor asks the model for the directory that it came from
    model(eos).save_pretrained(base)
    words.save_pretrained(base)
    rows = [{"input_ids": torch.randint(0, 256, (128,)).tolist(), "attention_mask": [1] * 128} for _ in range(4)]
    done = oneshot(
        model=base,
        dataset=Dataset.from_list(rows),
        recipe=QuantizationModifier(targets="Linear", scheme="NVFP4", ignore=["lm_head"]),
        max_seq_length=128,
        num_calibration_samples=len(rows),
    )
    out = Path(sys.argv[1])
    done.save_pretrained(out, save_compressed=True)
    words.save_pretrained(out)


if __name__ == "__main__":
    main()
