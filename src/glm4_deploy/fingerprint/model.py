"""The file `fingerprint.json`: texts as token ids, and the most likely next tokens under each reference."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from glm4_deploy.errors import UsageError
from glm4_deploy.files import read_bytes

FILE = "fingerprint.json"  # its usual name, beside the weights
SCHEMA = 1
TOP = 5  # tokens per point: what /v1/completions offers everywhere
UNIT = 1e-4  # nats: log probabilities are stored as whole numbers of it
MAX_BYTES = 5 << 20
FLOOR = -30.0  # nats: the lowest log probability that is stored


class Arithmetic(StrEnum):
    """What computed the log probabilities.

    W4A16 dequantizes NVFP4 weights only, as Marlin does on a GPU without FP4; W4A4 also quantizes activations.
    """

    BF16 = "bf16"
    W4A16 = "w4a16"
    W4A4 = "w4a4"


class Bucket(StrEnum):
    """What a text is a sample of."""

    ENGLISH = "english"
    CHINESE = "chinese"
    LANGUAGES = "languages"
    CODE = "code"
    DIGITS = "digits"
    CHAT = "chat"
    LONG_1K = "context 1k"
    LONG_2K = "context 2k"
    LONG_4K = "context 4k"
    LONG_8K = "context 8k"

    @property
    def long(self) -> bool:
        return self.value.startswith("context")


Expected: TypeAlias = dict[Arithmetic, dict[Arithmetic, dict[Bucket, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tops:
    """The most likely next tokens at each point of a text: TOP token ids and log probabilities (nats), best first."""

    ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedText:
    """One text.

    Attributes:
        text: what the tokenizer must turn into `ids`; empty for a long one.
        messages: of a chat, what the template and the tokenizer must turn into `ids`.
        points: lengths of the prefixes whose next token was computed; every one from 1 in a short text.
        tops: by arithmetic.
    """

    bucket: Bucket
    text: str
    messages: tuple[dict[str, str], ...]
    ids: tuple[int, ...]
    points: tuple[int, ...]
    tops: dict[Arithmetic, Tops]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The right answers of one checkpoint.

    Attributes:
        checkpoints: fingerprints of the checkpoints that were read, by weight format (`bf16`, `nvfp4`).
        tokenizer: SHA-256 of tokenizer.json.
        expected: arithmetic of a sound engine → reference → bucket → mean KL divergence (nats).
    """

    kit: str
    checkpoints: dict[str, str]
    tokenizer: str
    texts: tuple[PrintedText, ...]
    expected: Expected

    @property
    def arithmetics(self) -> tuple[Arithmetic, ...]:
        return tuple(self.texts[0].tops)


def dump_fingerprint(found: Fingerprint) -> bytes:
    """As compact JSON."""
    import json

    texts = [_dump_text(text) for text in found.texts]
    head = {"schema": SCHEMA, "kind": "fingerprint", "kit": found.kit, "checkpoints": found.checkpoints}
    expected = {
        engine: {
            name: {bucket: round(value, 6) for bucket, value in buckets.items()} for name, buckets in references.items()
        }
        for engine, references in found.expected.items()
    }
    document = head | {"tokenizer": found.tokenizer, "top": TOP, "unit": UNIT, "expected": expected, "texts": texts}
    return (json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def _dump_text(text: PrintedText) -> dict[str, Any]:
    return {
        "bucket": text.bucket,
        "text": text.text,
        "messages": text.messages,
        "ids": text.ids,
        "points": [] if text.points == every_point(text.ids) else text.points,
        "tops": {name: {"ids": tops.ids, "logprobs": _units(tops.logprobs)} for name, tops in text.tops.items()},
    }


def every_point(ids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(1, len(ids)))


def _units(rows: tuple[tuple[float, ...], ...]) -> list[list[int]]:
    return [[round(max(value, FLOOR) / UNIT) for value in row] for row in rows]


def read_fingerprint(path: Path) -> Fingerprint:
    """Read and check a fingerprint file.

    Raises:
        UsageError: it is missing, too large, or not a fingerprint that this version reads.
    """
    data = read_bytes(path)
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} has {len(data)} bytes (limit {MAX_BYTES})", hint="it is not a fingerprint")
    try:
        return parse_fingerprint(data)
    except ValueError as error:
        first = str(error).splitlines()[0][:160]
        hint = "make it again: glm4-deploy checkpoint fingerprint DIR"
        raise UsageError(f"{path} is not a fingerprint that this version reads: {first}", hint=hint) from None


def fingerprint_beside(model_dir: str) -> Fingerprint | None:
    """The fingerprint in a model's directory; None if it has none, or if the directory is not known ('').

    Raises:
        UsageError: it is there, but cannot be read.
    """
    path = Path(model_dir) / FILE
    return read_fingerprint(path) if model_dir and path.is_file() else None


def parse_fingerprint(data: bytes) -> Fingerprint:
    """Raises ValueError (pydantic's too) for anything else than a fingerprint of this schema."""
    from pydantic import BaseModel, ConfigDict, Field, model_validator

    class Model(BaseModel):
        model_config = ConfigDict(strict=False, extra="ignore")

    class TopsModel(Model):
        ids: list[list[int]]
        logprobs: list[list[int]]

    class TextModel(Model):
        bucket: Bucket
        text: str
        messages: list[dict[str, str]]
        ids: list[int] = Field(min_length=2, max_length=1 << 17)
        points: list[int]
        tops: dict[Arithmetic, TopsModel] = Field(min_length=1)

        @model_validator(mode="after")
        def consistent(self) -> "TextModel":
            self.points = self.points or list(every_point(tuple(self.ids)))
            for tops in self.tops.values():
                rows = [*tops.ids, *tops.logprobs]
                if len(tops.ids) != len(self.points) or len(tops.logprobs) != len(self.points):
                    raise ValueError("a row is missing")
                if any(len(row) != TOP for row in rows) or any(value > 0 for row in tops.logprobs for value in row):
                    raise ValueError("a row is malformed")
            if min(self.points) < 1 or max(self.points) > len(self.ids):
                raise ValueError("a point is outside its text")
            return self

    class FileModel(Model):
        schema_: int = Field(alias="schema", ge=SCHEMA, le=SCHEMA)
        kind: str = Field(pattern="^fingerprint$")
        kit: str
        checkpoints: dict[str, str]
        tokenizer: str
        expected: dict[Arithmetic, dict[Arithmetic, dict[Bucket, float]]]
        texts: list[TextModel] = Field(min_length=1)

        @model_validator(mode="after")
        def alike(self) -> "FileModel":
            if len({tuple(text.tops) for text in self.texts}) != 1:
                raise ValueError("its texts have different references")
            if any(kind not in self.expected.get(kind, {}) for kind in self.texts[0].tops):
                raise ValueError("it does not say what to expect")
            return self

    read = FileModel.model_validate_json(data)
    texts = tuple(
        PrintedText(
            bucket=text.bucket,
            text=text.text,
            messages=tuple(text.messages),
            ids=tuple(text.ids),
            points=tuple(text.points),
            tops={
                name: Tops(
                    ids=tuple(map(tuple, tops.ids)),
                    logprobs=tuple(tuple(round(value * UNIT, 4) for value in row) for row in tops.logprobs),
                )
                for name, tops in text.tops.items()
            },
        )
        for text in read.texts
    )
    return Fingerprint(
        kit=read.kit,
        checkpoints=read.checkpoints,
        tokenizer=read.tokenizer,
        texts=texts,
        expected=read.expected,
    )
