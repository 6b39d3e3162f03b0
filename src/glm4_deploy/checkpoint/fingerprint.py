"""Make the fingerprint of a checkpoint: fixed texts, and the right log probabilities of their tokens."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from glm4_deploy import __version__
from glm4_deploy.catalog.rows import load_catalog
from glm4_deploy.checkpoint.model import (
    NVFP4_FORMAT,
    BadConfigError,
    default_version,
    model_shape,
    quantization_format,
    target_engine,
)
from glm4_deploy.checkpoint.read import Checkpoint, read_checkpoint
from glm4_deploy.checkpoint.reference import Floats, Reference, Text, Top, reference
from glm4_deploy.checkpoint.verify import INTEGRITY_RULES, apply_rules, failures_of, faults_line
from glm4_deploy.errors import CheckpointRefused, ExtraMissing
from glm4_deploy.files import read_bytes, write_bytes
from glm4_deploy.fingerprint.distance import measure
from glm4_deploy.fingerprint.model import Arithmetic, Bucket, Fingerprint, PrintedText, Tops, dump_fingerprint

SHORT = 192  # tokens: an engine computes the logits of a whole prompt at once, 4 bytes × vocabulary each
LONG = {Bucket.LONG_1K: 1024, Bucket.LONG_2K: 2048, Bucket.LONG_4K: 4096, Bucket.LONG_8K: 8192}
LONG_POINTS = 24  # at the end of each length, every second token
ROOM = 16  # tokens of the context that stay free
DRAWS = 3  # of W4A4: their mean is the reference
GLM = ("GlmForCausalLM",)
Note = Callable[[str], None]

_SHIPS = ("Aurora", "Marlin", "Petrel", "Saturn", "Juniper", "Kestrel", "Cormorant", "Harvest", "Mistral", "Osprey")
_LOADS = ("timber", "salt", "wheat", "iron", "wool", "letters", "lamp oil", "cider", "slate", "rope", "apples")


def long_text(lines: int) -> str:
    """A harbour's log: every line is different, and in part determined by lines far above it."""
    return "\n".join(
        f"Day {day}: the {_SHIPS[day * day % 10]} brought {day * 7 % 1000} sacks of {_LOADS[day % 11]} from pier "
        f"{day % 13}."
        for day in range(1, lines + 1)
    )


def make_fingerprint(
    directories: Sequence[Path], output: Path, *, context: int = 2048, note: Note = lambda _text: None
) -> Fingerprint:
    """Compute the fingerprint of a model in bf16, in NVFP4 or in both forms, and write it to `output`.

    Args:
        context: tokens of the longest text, if the model's own limit allows them.
        note: called with a line for each step.

    Raises:
        ModelMissing: a directory does not exist or is empty.
        CheckpointRefused: one is damaged, not a GLM-4, in another format, or not the same model.
        ExtraMissing: the package `tokenizers` is not installed.
        StorageError: the file cannot be written.
    """
    if find_spec("tokenizers") is None:
        raise ExtraMissing(
            "fingerprint needs the package tokenizers", hint="pip install 'glm4-deploy[fingerprint]' (4 MB)"
        )
    checkpoints = [_checked(directory) for directory in directories]
    tokenizers = {_tokenizer_digest(checkpoint) for checkpoint in checkpoints}
    if len(tokenizers) != 1:
        raise CheckpointRefused("the checkpoints have different tokenizers", hint="give two forms of one model")
    limit = min(context, *(model_shape(checkpoint.config or {}).max_position for checkpoint in checkpoints)) - ROOM
    texts = _texts(checkpoints[-1], limit)
    found: dict[Arithmetic, _Answers] = {}
    for checkpoint in checkpoints:
        for model in _references(checkpoint):
            note(f"{model.arithmetic}: {checkpoint.directory.name}, {sum(len(text.ids) for text in texts)} tokens")
            found[model.arithmetic] = _answers(model, texts)
    printed = Fingerprint(
        kit=__version__,
        checkpoints={_kind(checkpoint): str(checkpoint.fingerprint) for checkpoint in checkpoints},
        tokenizer=tokenizers.pop(),
        texts=tuple(_with_tops(text, number, found) for number, text in enumerate(texts)),
        expected={},
    )
    printed = _with_expected(printed, found)
    write_bytes(output, dump_fingerprint(printed))
    return printed


def _checked(directory: Path) -> Checkpoint:
    checkpoint = read_checkpoint(directory)
    failed = failures_of(apply_rules(checkpoint, target_engine(default_version()), INTEGRITY_RULES))
    if failed:
        raise CheckpointRefused(f"{directory} has no fingerprint: {faults_line(failed)}", hint=failed[0].remedy)
    config = checkpoint.config or {}
    format_ = quantization_format(checkpoint)
    if config.get("architectures") != list(GLM) or format_ not in (None, NVFP4_FORMAT):
        named = f"{config.get('architectures')}, {format_ or 'not quantised'}"
        raise CheckpointRefused(
            f"{directory} is {named[:120]}: no reference computes it", hint="give GLM-4 in bf16 or NVFP4"
        )
    try:
        model_shape(config)
    except BadConfigError as error:
        raise CheckpointRefused(f"{directory}: config.json: {error}", hint="verify it: checkpoint verify") from None
    return checkpoint


def _kind(checkpoint: Checkpoint) -> str:
    return "nvfp4" if quantization_format(checkpoint) else "bf16"


def _references(checkpoint: Checkpoint) -> list[Reference]:
    if quantization_format(checkpoint) is None:
        return [reference(checkpoint, Arithmetic.BF16)]
    scaled = any(tensor.name.endswith(".input_global_scale") for tensor in checkpoint.tensors)
    kinds = (Arithmetic.W4A16, Arithmetic.W4A4) if scaled else (Arithmetic.W4A16,)
    return [reference(checkpoint, kind) for kind in kinds]


def _tokenizer_digest(checkpoint: Checkpoint) -> str:
    file = checkpoint.file("tokenizer.json")
    if file is None:
        raise CheckpointRefused(f"{checkpoint.directory} has no tokenizer.json", hint="download it")
    return hashlib.sha256(read_bytes(file.path)).hexdigest()


def _texts(checkpoint: Checkpoint, limit: int) -> list[PrintedText]:
    """The texts of the catalog, then the prefixes of the long one; without tops."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint.directory / "tokenizer.json"))

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    texts = []
    for row in load_catalog("fingerprint")["texts"]:
        messages = row.get("messages", ())
        ids = encode(_render(checkpoint, messages) if messages else row["text"])[:SHORT]
        texts.append(
            PrintedText(
                bucket=Bucket(row["bucket"]),
                text=row.get("text", ""),
                messages=tuple(messages),
                ids=ids,
                points=tuple(range(1, len(ids))),
                tops={},
            )
        )
    long = encode(long_text(max(LONG.values()) // 8))
    for bucket, length in LONG.items():
        size = min(length, limit)
        if size > length // 2:
            points = tuple(range(size - 2 * LONG_POINTS + 2, size + 1, 2))
            texts.append(PrintedText(bucket=bucket, text="", messages=(), ids=long[:size], points=points, tops={}))
    return texts


def _render(checkpoint: Checkpoint, messages: Sequence[dict[str, str]]) -> str:
    """The chat as Transformers renders it: its options for Jinja, with the prompt for an answer at the end."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if checkpoint.chat_template is None:
        raise CheckpointRefused(f"{checkpoint.directory} has no chat template", hint="see `checkpoint verify`")
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(checkpoint.chat_template)
    return template.render(messages=messages, add_generation_prompt=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """Of each text: the tops of the mean, and those of a draw that is not part of the mean (None: there is one run)."""

    mean: list[Top]
    other: list[Top] | None


def _answers(model: Reference, texts: Sequence[PrintedText]) -> _Answers:
    asked, spread = merge_texts(texts)
    draws = DRAWS if model.arithmetic is Arithmetic.W4A4 else 0
    mean = sum(model.run(asked, draw=draw) for draw in range(draws or 1)) / np.float32(draws or 1)
    other = spread(model, model.run(asked, draw=draws)) if draws else None
    return _Answers(mean=spread(model, mean), other=other)


def merge_texts(texts: Sequence[PrintedText]) -> tuple[list[Text], Callable[[Reference, Any], list[Top]]]:
    """The texts to run, in which the long ones are one, and what gives each text its part of the result."""
    short = [text for text in texts if not text.bucket.long]
    long = [text for text in texts if text.bucket.long]
    asked = [Text(ids=text.ids, points=text.points) for text in short]
    if long:
        asked.append(Text(ids=long[-1].ids, points=tuple(point for text in long for point in text.points)))
    ends = np.cumsum([len(text.points) for text in texts])[:-1]

    def spread(model: Reference, x: Floats) -> list[Top]:
        top = model.head(x)
        pairs = zip(np.split(top.ids, ends), np.split(top.logprobs, ends), strict=True)
        return [Top(ids=ids, logprobs=logprobs) for ids, logprobs in pairs]

    return asked, spread


def _with_tops(text: PrintedText, number: int, found: dict[Arithmetic, _Answers]) -> PrintedText:
    tops = {kind: _tops(answers.mean[number]) for kind, answers in found.items()}
    return PrintedText(
        bucket=text.bucket, text=text.text, messages=text.messages, ids=text.ids, points=text.points, tops=tops
    )


def _tops(top: Top) -> Tops:
    return Tops(
        ids=tuple(map(tuple, top.ids.tolist())),
        logprobs=tuple(tuple(round(min(value, 0.0), 4) for value in row) for row in top.logprobs.tolist()),
    )


def _with_expected(printed: Fingerprint, found: dict[Arithmetic, _Answers]) -> Fingerprint:
    """How far a sound engine is from each reference, as a draw shows it that the reference does not contain."""
    from dataclasses import replace

    expected = {}
    for kind, answers in found.items():
        sound = [_tops(top) for top in answers.other or answers.mean]
        rows = [
            [dict(zip(ids, logprobs, strict=True)) for ids, logprobs in zip(tops.ids, tops.logprobs, strict=True)]
            for tops in sound
        ]
        expected[kind] = {
            distances.arithmetic: {bucket: round(one.kl, 6) for bucket, one in distances.buckets.items()}
            for distances in measure(printed, rows)
        }
    return replace(printed, expected=expected)
