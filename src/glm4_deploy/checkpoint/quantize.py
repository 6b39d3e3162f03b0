"""GLM-4 in bf16 → NVFP4 by the model card's recipe, through llm-compressor (extra `quantize`); then repaired.

Recipe: QuantizationModifier, scheme NVFP4 (weights and activations in 4 bits, groups of 16), all Linear layers but
`lm_head`, one shot. llm-compressor runs layer by layer and on a CPU too, where a 9B model takes hours.
"""

import contextlib
import json
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glm4_deploy.catalog.images import Version
from glm4_deploy.checkpoint import calibration
from glm4_deploy.checkpoint.repair import check_output, repair
from glm4_deploy.checkpoint.rules_chat import LICENCE_FILES, PREFIX
from glm4_deploy.checkpoint.shape import quantization_format
from glm4_deploy.checkpoint.target import default_version, target
from glm4_deploy.checkpoint.verify import OF_THE_BYTES, Report, verify
from glm4_deploy.checkpoint.writer import storage_error
from glm4_deploy.errors import CheckpointRefused, ExtraMissing, PlanRefused, UsageError
from glm4_deploy.facts.checkpoint import Checkpoint, read_checkpoint
from glm4_deploy.files import write_text
from glm4_deploy.result import Status

PACKAGES = ("llmcompressor", "datasets", "transformers", "torch")
IGNORE = ("lm_head",)
# Carried over byte for byte: what save_pretrained makes of the tokenizer, older Transformers cannot read.
FROM_BASE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was made. `report` judges the output for the engine that it is for."""

    output: str
    drawn: calibration.Drawn
    report: Report


def quantize(
    base: Path,
    output: Path,
    *,
    sources: Sequence[str] = calibration.DEFAULT_SOURCES,
    samples: int = 512,
    seed: int = 0,
    vllm: Version | None = None,
    raw: bool = False,
    note: Note = lambda _text: None,
) -> Made:
    """Quantise `base` and write a checkpoint that the engine loads to `output`, which appears whole or not at all.

    Args:
        vllm: the engine it is for; default: that of the kit's default image.
        raw: leave what llm-compressor wrote; the report then tells of its traps.
        note: told of each step; llm-compressor's own progress goes to stderr.

    Raises:
        UsageError: a name, an output or a dataset that cannot be.
        ExtraMissing: llm-compressor is not installed.
        ModelMissing, CheckpointRefused: no base model there, or not a whole one in bf16.
        PlanRefused: the GPU has not the memory.
        StorageError: it cannot be written; nothing is left behind.
    """
    if not output.name.lower().startswith(PREFIX):
        raise UsageError(
            f"the output's name is {output.name!r}",
            hint=f"the glm-4-9b licence asks for a name that starts with {PREFIX}, for example glm-4-9b-chat-hf-nvfp4",
        )
    check_output(base, output)
    checkpoint = read_checkpoint(base)
    _check_base(checkpoint)
    _check_extra()
    work = output.parent / f"{output.name}.partial-{secrets.token_hex(4)}"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the report
            drawn = _compress(base, work / output.name, sources, samples=samples, seed=seed, note=note)
        _complete(checkpoint, work / output.name, drawn, output.name)
        if raw:
            (work / output.name).rename(output)
            report = verify(output, vllm=vllm)
        else:
            note("mending what the engine would stumble over")
            report = repair(work / output.name, output, vllm=vllm).report
    except OSError as error:
        raise storage_error(output, error) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Made(output=str(output), drawn=drawn, report=report)


def _check_extra() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ExtraMissing(
            f"quantize needs {', '.join(missing)}", hint="pip install 'glm4-deploy[quantize]' (several GB with torch)"
        )


def _check_base(checkpoint: Checkpoint) -> None:
    """Whole, a GLM, and not quantised yet."""
    engine = target(default_version())
    failed = [found for rule in OF_THE_BYTES if (found := rule(checkpoint, engine)).status is Status.FAIL]
    if failed:
        told = "; ".join(f"{found.check}: {found.observed}" for found in failed)
        raise CheckpointRefused(f"{checkpoint.directory} cannot be quantised: {told}", hint=failed[0].remedy)
    format_ = quantization_format(checkpoint)
    if format_ is not None:
        raise CheckpointRefused(
            f"{checkpoint.directory} is quantised already ({format_})", hint="give the base model in bf16"
        )


def _compress(
    base: Path, output: Path, sources: Sequence[str], *, samples: int, seed: int, note: Note
) -> calibration.Drawn:
    """Draw, calibrate, compress and save what llm-compressor makes of it."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    note(f"drawing {samples} calibration samples")
    drawn_ids, drawn = calibration.draw(sources, _tokenize(tokenizer), samples=samples, seed=seed)
    note(drawn.table())
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in drawn_ids]
    note("calibrating and compressing, layer by layer")
    try:
        made = oneshot(
            model=model,
            processor=tokenizer,
            dataset=Dataset.from_list(rows),
            recipe=QuantizationModifier(targets="Linear", scheme="NVFP4", ignore=list(IGNORE)),
            max_seq_length=calibration.LONG[1] - 1,
            num_calibration_samples=samples,
            shuffle_calibration_samples=False,
        )
        made.save_pretrained(output, save_compressed=True)
    except torch.OutOfMemoryError as error:
        raise PlanRefused(
            f"the GPU's memory was not enough: {str(error).splitlines()[0][:200]}",
            hint="free the GPU, or hide it with CUDA_VISIBLE_DEVICES= to use the CPU",
        ) from None
    return drawn


def _tokenize(tokenizer: Any) -> calibration.Tokenize:
    def tokenize(text: calibration.Conversation | str) -> calibration.Sample:
        if isinstance(text, str):
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        rendered = tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=False)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])

    return tokenize


def _complete(base: Checkpoint, output: Path, drawn: calibration.Drawn, name: str) -> None:
    """The base's tokenizer and licence, a model card, how it was calibrated; readable by every user."""
    for file in base.files:
        if file.name in FROM_BASE or file.name.lower().startswith(LICENCE_FILES):
            shutil.copyfile(file.path.resolve(), output / file.name)
    if (output / "chat_template.jinja").exists() and base.file("chat_template.jinja") is None:
        (output / "chat_template.jinja").unlink()  # the base keeps it in tokenizer_config.json
    has_licence = any(file.name.lower().startswith(LICENCE_FILES) for file in base.files)
    write_text(output / "README.md", _card(name, base.directory.resolve().name, drawn, has_licence=has_licence))
    report = {name: getattr(drawn, name) for name in drawn.__dataclass_fields__}
    write_text(output / "calibration.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    for path in output.iterdir():
        path.chmod(0o644)  # llm-compressor leaves the weights at 0600


CARD = """\
---
base_model: {base}
library_name: vllm
license: other
license_name: glm-4-9b
tags: [nvfp4, compressed-tensors]
---
# {name}

Built with glm-4

{base} in NVFP4: weights and activations of 4 bits (W4A4), groups of 16, `lm_head` in bf16.

Made with llm-compressor {llmcompressor}, one shot, by `glm4-deploy checkpoint quantize`.

```
{drawn}
```

`calibration.json` has these figures; the same base, data and seed draw the same samples.

## Licence

The glm-4-9b License. {licence} A derived model's name starts with "glm-4". Commercial use
needs a registration with the publisher of GLM-4. Military and illegal use are forbidden.
"""


def _card(name: str, base: str, drawn: calibration.Drawn, *, has_licence: bool) -> str:
    licence = "Its text is in this directory." if has_licence else "Its text was not with the base model: add it."
    return CARD.format(
        name=name, base=base, llmcompressor=version("llmcompressor"), drawn=drawn.table(), licence=licence
    )
