"""The documents that the evaluation judges, in families, each with the right verdict and its source."""

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One row of the corpus."""

    family: str
    text: str
    expected: tuple[str, ...]
    """The verdicts that are right for it; "CLEAN" for a legitimate text."""
    source: str
    """The package or generator that it comes from."""
    prompt: str | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float | None, ...] | None = None
    start: int | None = None
    """Character at which the damage begins; None: unknown, or a clean text."""
    period: int | None = None
    """Length of the repeated unit in characters."""

    @property
    def degenerate(self) -> bool:
        return self.expected != ("CLEAN",)


class MissingError(Exception):
    """A source is not on this machine; the report lists the family as skipped."""


Maker = Callable[[random.Random], Iterable[Document]]
LEGITIMATE: dict[str, Maker] = {}
DEGENERATE: dict[str, Maker] = {}


def legitimate(name: str, source: str) -> Callable[[Callable[[random.Random], Iterable["Text"]]], None]:
    """Register a family of good texts; its maker yields plain texts, framed here as answers."""

    def register(maker: Callable[[random.Random], Iterable[Text]]) -> None:
        LEGITIMATE[name] = lambda rng: (frame(name, source, text, rng) for text in maker(rng))

    return register


def degenerate(name: str) -> Callable[[Maker], Maker]:
    """Register a family of bad texts; its maker yields whole documents."""

    def register(maker: Maker) -> Maker:
        DEGENERATE[name] = maker
        return maker

    return register


def legitimate_rows(name: str) -> Callable[[Maker], Maker]:
    """Register a family of good texts whose maker yields whole documents."""

    def register(maker: Maker) -> Maker:
        LEGITIMATE[name] = maker
        return maker

    return register


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A good text. prompt: the request, where it matters. whole: it must not be cut short."""

    text: str
    prompt: str | None = None
    whole: bool = False


def frame(family: str, source: str, text: Text, rng: random.Random) -> Document:
    """A good text as an engine would return it: one in four cut by the token limit, some without finish_reason."""
    body, finish = text.text, rng.choice(["stop", "stop", None])
    if not text.whole and rng.random() < 0.25:
        body = body[: max(int(len(body) * rng.uniform(0.5, 1)), 20)]
        finish = rng.choice(["length", "length", None])
    return Document(
        family=family,
        text=body,
        expected=("CLEAN",),
        source=source,
        prompt=text.prompt,
        finish_reason=finish,
    )


def is_test(family: str, families: Iterable[str]) -> bool:
    """Whether a family belongs to the test half: chosen by a checksum of the names, not by hand."""
    ordered = sorted(families, key=lambda name: crc32(name.encode()))
    return ordered.index(family) % 2 == 1


def pieces(text: str, rng: random.Random, count: int, *, low: int = 500, high: int = 6000) -> Iterator[str]:
    """Pieces of a long text that begin and end at line ends."""
    for _ in range(count):
        size = int(low * (high / low) ** rng.random())
        start = rng.randrange(max(len(text) - size, 1))
        start = text.find("\n", start) + 1
        end = text.find("\n", start + size)
        piece = text[start : end if end > 0 else len(text)]
        if len(piece.strip()) > 100:
            yield piece


def cache() -> Path:
    """The directory for corpora and tiny models, outside the tree."""
    root = os.environ.get("GLM4_CACHE") or Path("~/.cache/glm4-deploy").expanduser()
    path = Path(root) / "detector"
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(path: Path, documents: Iterable[Document]) -> int:
    """Write JSONL through a temporary file; returns the number of documents."""
    count = 0
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as out:
        for document in documents:
            out.write(json.dumps(asdict(document)) + "\n")
            count += 1
    part.replace(path)
    return count


def read(path: Path) -> Iterator[Document]:
    if not path.exists():
        raise SystemExit(f"{path} is not there: build the corpus with python -m benchmarks.detector")
    with path.open(encoding="utf-8") as rows:
        for row in rows:
            fields = json.loads(row)
            for name in ("expected", "token_ids", "logprobs"):
                fields[name] = tuple(fields[name]) if fields[name] is not None else None
            yield Document(**fields)
