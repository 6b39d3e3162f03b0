"""Draw calibration samples as the model card did: 90 % of 256–1024 tokens and 10 % of 1024–2048, by a seed."""

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from glm4_deploy.errors import UsageError

# The data sets that the model card names, on the Hugging Face hub.
DEFAULT_SOURCES = ("hub:HuggingFaceH4/ultrachat_200k:train_sft", "hub:THUDM/LongAlign-10k:train")
SHORT, LONG = (256, 1024), (1024, 2049)  # tokens, from and below
LONG_SHARE = 0.1
SUFFIXES = (".jsonl", ".json", ".txt", ".parquet")
TOO_SHORT_IN_A_ROW = 100_000  # texts without one that fits: this source has no more to give
Sample: TypeAlias = list[int]
Conversation: TypeAlias = list[dict[str, str]]
Tokenize: TypeAlias = Callable[[Conversation | str], Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What was drawn. Lengths in tokens; `digest` is the SHA-256 of all token ids: the same draw, the same digest."""

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
                f"{self.passed_over} texts were too short or of the other kind",
                *(f"  {count:6} from {name}" for name, count in self.by_source.items()),
            )
        )


def draw(
    sources: Sequence[str], tokenize: Tokenize, *, samples: int, seed: int, directory: Path | None = None
) -> tuple[list[Sample], Drawn]:
    """Draw `samples` texts in turn from the sources, each in an order that the seed decides.

    A text that is longer than its sample is to be is cut to a length drawn from the bucket's range.

    Args:
        tokenize: a conversation or a text to token ids.
        directory: where relative paths start; default: here.

    Raises:
        UsageError: a source that cannot be read, or too few texts of a length.
    """
    rng = random.Random(seed)  # noqa: S311
    wanted = {LONG: round(samples * LONG_SHARE)}
    wanted[SHORT] = samples - wanted[LONG]
    taken: list[Sample] = []
    counts: Counter[str] = Counter()
    passed_over = 0
    for name, text in _in_turn(sources, rng, directory or Path.cwd()):
        ids = tokenize(text)
        bucket = next((one for one in (LONG, SHORT) if wanted[one] and len(ids) >= one[0]), None)
        if bucket is None:
            passed_over += 1
            if passed_over > TOO_SHORT_IN_A_ROW + 100 * len(taken):
                break
            continue
        wanted[bucket] -= 1
        counts[name] += 1
        taken.append(ids[: rng.randrange(*bucket)])
        if len(taken) == samples:
            return taken, _drawn(taken, counts, seed=seed, passed_over=passed_over)
    raise UsageError(
        f"only {len(taken)} of {samples} samples: {wanted[SHORT]} of {SHORT[0]} tokens or more and "
        f"{wanted[LONG]} of {LONG[0]} or more are lacking ({passed_over} texts passed over)",
        hint="give more data with --dataset, or ask for fewer --samples",
    )


def _drawn(taken: Sequence[Sample], counts: Counter[str], *, seed: int, passed_over: int) -> Drawn:
    lengths = sorted(len(sample) for sample in taken)
    digest = hashlib.sha256(json.dumps(taken).encode()).hexdigest()
    short = sum(length < SHORT[1] for length in lengths)
    return Drawn(
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
    """(source, text), one of each source after the other until all are empty."""
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
        raise UsageError(f"{path.name}: no data set that is known here", hint=f"give {', '.join(SUFFIXES)}")
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
    """A row's conversation (`messages` or `conversations`) or text (`text`, `prompt`); None where it has neither."""
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
