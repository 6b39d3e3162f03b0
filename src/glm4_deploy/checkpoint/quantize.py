"""Quantise GLM-4 from bf16 to NVFP4 by the model card's recipe, with llm-compressor (extra `quantize`); then repair it.

Recipe: QuantizationModifier, scheme NVFP4 (weights and activations in 4 bits, groups of 16), all Linear layers except
`lm_head`, one shot. llm-compressor works layer by layer, also on a CPU, where a 9B model takes hours.
"""

import contextlib
import hashlib
import itertools
import json
import random
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from glm4_deploy.catalog.rows import Version
from glm4_deploy.checkpoint.model import default_version, quantization_format, target_engine
from glm4_deploy.checkpoint.read import Checkpoint, read_checkpoint
from glm4_deploy.checkpoint.repair import check_output, repair_checkpoint
from glm4_deploy.checkpoint.rewrite import storage_error
from glm4_deploy.checkpoint.rules_chat import LICENCE_FILES, PREFIX
from glm4_deploy.checkpoint.verify import (
    INTEGRITY_RULES,
    VerifyReport,
    apply_rules,
    failures_of,
    faults_line,
    verify_checkpoint,
)
from glm4_deploy.errors import CheckpointRefused, ExtraMissing, PlanRefused, UsageError
from glm4_deploy.files import write_text

PACKAGES = ("llmcompressor", "datasets", "transformers", "torch")
IGNORE = ("lm_head",)
# Copied from the base byte for byte: older Transformers cannot read the tokenizer that save_pretrained writes.
FROM_BASE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
# The data sets that the model card names, on the Hugging Face hub.
DEFAULT_SOURCES = ("hub:HuggingFaceH4/ultrachat_200k:train_sft", "hub:THUDM/LongAlign-10k:train")
SUFFIXES = (".jsonl", ".json", ".txt", ".parquet")
SHORT, LONG = (256, 1024), (1024, 2049)  # tokens: at least, and fewer than
LONG_SHARE = 0.1
MAX_SKIPPED = 100_000  # texts skipped before the sources count as exhausted

Sample: TypeAlias = list[int]
Conversation: TypeAlias = list[dict[str, str]]
Tokenize: TypeAlias = Callable[[Conversation | str], Sample]
Note: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """What the calibration samples are. Lengths in tokens.

    Attributes:
        passed_over: texts that were not used.
        digest: SHA-256 of all token ids, the same for the same samples.
    """

    seed: int
    short: int
    long: int
    shortest: int
    median: int
    longest: int
    tokens: int
    passed_over: int
    by_source: dict[str, int]
    digest: str

    def table(self) -> str:
        total = self.short + self.long
        return "\n".join(
            (
                f"calibration: {total} samples, {self.tokens} tokens, seed {self.seed}, digest {self.digest[:12]}",
                f"  {SHORT[0]}–{SHORT[1]} tokens   {self.short:6}  {100 * self.short / total:5.1f} %",
                f"  {LONG[0]}–{LONG[1] - 1} tokens  {self.long:6}  {100 * self.long / total:5.1f} %",
                f"  shortest {self.shortest}, median {self.median}, longest {self.longest}; "
                f"{self.passed_over} texts were too short, or of a length that was complete",
                *(f"  {count:6} from {name}" for name, count in self.by_source.items()),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult:
    """What was written.

    Attributes:
        drawn: the calibration samples.
        report: verification of the output for its engine.
    """

    output: str
    drawn: CalibrationSet
    report: VerifyReport


def quantize_checkpoint(
    base: Path,
    output: Path,
    *,
    sources: Sequence[str] = DEFAULT_SOURCES,
    samples: int = 512,
    seed: int = 0,
    vllm: Version | None = None,
    raw: bool = False,
    note: Note = lambda _text: None,
) -> QuantizeResult:
    """Quantise `base` and write a checkpoint that the engine loads to `output`, which appears complete or not at all.

    Args:
        sources: data sets for calibration: paths, or hub:NAME[:SPLIT].
        vllm: the engine's version; default: that of the kit's default image.
        raw: do not repair what llm-compressor wrote; the report then lists its traps.
        note: called with a line for each step; llm-compressor's own progress goes to stderr.

    Raises:
        UsageError: the name, the output or a data set is not valid.
        ExtraMissing: llm-compressor is not installed.
        ModelMissing: there is no base model.
        CheckpointRefused: the base model is incomplete, or quantised already.
        PlanRefused: the GPU's memory is too small.
        StorageError: it cannot be written; nothing is left behind.
    """
    if not output.name.lower().startswith(PREFIX):
        raise UsageError(
            f"the output's name {output.name!r} does not start with {PREFIX}",
            hint=f"the glm-4-9b licence requires a name that starts with {PREFIX}, for example glm-4-9b-chat-hf-nvfp4",
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
            report = verify_checkpoint(output, vllm=vllm)
        else:
            note("repairing what the engine would not load")
            report = repair_checkpoint(work / output.name, output, vllm=vllm).report
    except OSError as error:
        raise storage_error(output, error) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return QuantizeResult(output=str(output), drawn=drawn, report=report)


def _check_extra() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ExtraMissing(
            f"quantize needs {', '.join(missing)}", hint="pip install 'glm4-deploy[quantize]' (several GB with torch)"
        )


def _check_base(checkpoint: Checkpoint) -> None:
    """The base must be complete, a GLM, and not quantised yet."""
    failed = failures_of(apply_rules(checkpoint, target_engine(default_version()), INTEGRITY_RULES))
    if failed:
        raise CheckpointRefused(
            f"{checkpoint.directory} cannot be quantised: {faults_line(failed)}", hint=failed[0].remedy
        )
    format_ = quantization_format(checkpoint)
    if format_ is not None:
        raise CheckpointRefused(
            f"{checkpoint.directory} is quantised already ({format_})", hint="give the base model in bf16"
        )


def _compress(
    base: Path, output: Path, sources: Sequence[str], *, samples: int, seed: int, note: Note
) -> CalibrationSet:
    """Draw the samples, calibrate, compress, and save the result."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    note(f"drawing {samples} calibration samples")
    ids_of_samples, drawn = draw_samples(sources, _tokenize(tokenizer), samples=samples, seed=seed)
    note(drawn.table())
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in ids_of_samples]
    note("calibrating and compressing, layer by layer")
    try:
        compressed = oneshot(
            model=model,
            processor=tokenizer,
            dataset=Dataset.from_list(rows),
            recipe=QuantizationModifier(targets="Linear", scheme="NVFP4", ignore=list(IGNORE)),
            max_seq_length=LONG[1] - 1,
            num_calibration_samples=samples,
            shuffle_calibration_samples=False,
        )
        compressed.save_pretrained(output, save_compressed=True)
    except torch.OutOfMemoryError as error:
        raise PlanRefused(
            f"the GPU ran out of memory: {str(error).splitlines()[0][:200]}",
            hint="free the GPU, or hide it with CUDA_VISIBLE_DEVICES= to use the CPU",
        ) from None
    return drawn


def _tokenize(tokenizer: Any) -> Tokenize:
    def tokenize(text: Conversation | str) -> Sample:
        if isinstance(text, str):
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        rendered = tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=False)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])

    return tokenize


def _complete(base: Checkpoint, output: Path, drawn: CalibrationSet, name: str) -> None:
    """Add the base's tokenizer and licence, a model card and how it was calibrated; make all files world-readable."""
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
        path.chmod(0o644)  # llm-compressor leaves the weights with mode 0600


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


def _card(name: str, base: str, drawn: CalibrationSet, *, has_licence: bool) -> str:
    licence = "Its text is in this directory." if has_licence else "Its text did not come with the base model: add it."
    return CARD.format(
        name=name, base=base, llmcompressor=version("llmcompressor"), drawn=drawn.table(), licence=licence
    )


# Calibration samples, drawn as the model card says: 90 % of 256–1024 tokens and 10 % of 1024–2048.


def draw_samples(
    sources: Sequence[str], tokenize: Tokenize, *, samples: int, seed: int, directory: Path | None = None
) -> tuple[list[Sample], CalibrationSet]:
    """Draw `samples` texts from the sources in turn, each source in an order that depends on the seed.

    A text is cut to a length drawn from its range.

    Args:
        tokenize: turns a conversation or a text into token ids.
        directory: where relative paths start; default: the current directory.

    Raises:
        UsageError: a source cannot be read, or has too few texts of a length.
    """
    rng = random.Random(seed)  # noqa: S311
    wanted = {LONG: round(samples * LONG_SHARE)}
    wanted[SHORT] = samples - wanted[LONG]
    taken: list[Sample] = []
    counts: Counter[str] = Counter()
    passed_over = 0
    for name, text in _in_turn(sources, rng, directory or Path.cwd()):
        ids = tokenize(text)
        lengths = next((lengths for lengths in (LONG, SHORT) if wanted[lengths] and len(ids) >= lengths[0]), None)
        if lengths is None:
            passed_over += 1
            if passed_over > MAX_SKIPPED + 100 * len(taken):
                break
            continue
        wanted[lengths] -= 1
        counts[name] += 1
        taken.append(ids[: rng.randrange(*lengths)])
        if len(taken) == samples:
            return taken, _summarise(taken, counts, seed=seed, passed_over=passed_over)
    raise UsageError(
        f"only {len(taken)} of {samples} samples: {wanted[SHORT]} of {SHORT[0]} tokens or more and "
        f"{wanted[LONG]} of {LONG[0]} or more are missing ({passed_over} texts skipped)",
        hint="give more data with --dataset, or ask for fewer --samples",
    )


def _summarise(taken: Sequence[Sample], counts: Counter[str], *, seed: int, passed_over: int) -> CalibrationSet:
    lengths = sorted(len(sample) for sample in taken)
    digest = hashlib.sha256(json.dumps(taken).encode()).hexdigest()
    short = sum(length < SHORT[1] for length in lengths)
    return CalibrationSet(
        seed=seed,
        short=short,
        long=len(lengths) - short,
        shortest=lengths[0],
        median=lengths[len(lengths) // 2],
        longest=lengths[-1],
        tokens=sum(lengths),
        passed_over=passed_over,
        by_source=dict(counts),
        digest=digest,
    )


def _in_turn(sources: Sequence[str], rng: random.Random, directory: Path) -> Iterator[tuple[str, Conversation | str]]:
    """(source, text): one from each source in turn, until all are exhausted."""
    streams = [(name, _source(name, rng, directory)) for name in sources]
    for texts in itertools.zip_longest(*(stream for _, stream in streams)):
        for (name, _), text in zip(streams, texts, strict=True):
            if text:
                yield name, text


def _source(name: str, rng: random.Random, directory: Path) -> Iterator[Conversation | str]:
    rows = _from_hub(name, rng.randrange(2**31)) if name.startswith("hub:") else _from_file(directory / name, rng)
    return (text for row in rows if (text := text_of(row)))


def _from_hub(name: str, seed: int) -> Iterable[Any]:
    repository, _, split = name.removeprefix("hub:").partition(":")
    try:
        from datasets import load_dataset

        return load_dataset(repository, split=split or "train").shuffle(seed=seed)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[:1]
        raise UsageError(
            f"cannot get the data set {repository}: {''.join(first)[:200]}",
            hint="check the network, or give local files: --dataset FILE.jsonl",
        ) from None


def _from_file(path: Path, rng: random.Random) -> Iterable[Any]:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path.name} is not a known kind of data set", hint=f"give {', '.join(SUFFIXES)}")
    try:
        rows = list(_parquet(path) if path.suffix == ".parquet" else _rows(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {str(error)[:200]}", hint="check the file") from None
    rng.shuffle(rows)
    return rows


def _parquet(path: Path) -> Iterable[Any]:
    from datasets import load_dataset

    return load_dataset("parquet", data_files=str(path), split="train")  # type: ignore[no-any-return]


def _rows(path: Path) -> Iterator[Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        yield from (json.loads(line) for line in text.splitlines() if line.strip())
    elif path.suffix == ".json":
        document = json.loads(text)
        yield from document if isinstance(document, list) else [document]
    else:
        yield text


def text_of(row: Any) -> Conversation | str | None:
    """A row's conversation (`messages` or `conversations`) or text (`text`, `prompt`); None if it has neither."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        return None
    for key in ("messages", "conversations"):
        if isinstance(row.get(key), list):
            turns = [_turn(entry) for entry in row[key]]
            return [turn for turn in turns if turn] if all(turns) and turns else None
    return next((row[key] for key in ("text", "prompt") if isinstance(row.get(key), str)), None)


def _turn(entry: Any) -> dict[str, str] | None:
    if not isinstance(entry, dict):
        return None
    role, content = entry.get("role"), entry.get("content")
    return {"role": role, "content": content} if isinstance(role, str) and isinstance(content, str) else None
