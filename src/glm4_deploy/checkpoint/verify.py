"""Judge a checkpoint for one engine: each rule is applied once and gives one result."""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from glm4_deploy.catalog.rows import Version
from glm4_deploy.checkpoint.manifest import check_or_write, covered_files, digest_file
from glm4_deploy.checkpoint.model import (
    REPAIR,
    Rule,
    TargetEngine,
    default_version,
    parameters,
    quantization_format,
    target_engine,
)
from glm4_deploy.checkpoint.read import Checkpoint, File, read_checkpoint
from glm4_deploy.checkpoint.rules_chat import CHAT_RULES
from glm4_deploy.checkpoint.rules_engine import ENGINE_RULES
from glm4_deploy.checkpoint.rules_files import FILE_RULES
from glm4_deploy.checkpoint.rules_tensors import TENSOR_RULES
from glm4_deploy.result import Result, Status, because, fail, verdict

# Integrity: the files are complete and belong to one model, whatever engine will load them.
INTEGRITY_RULES: dict[str, Rule] = FILE_RULES | TENSOR_RULES
RULES: dict[str, Rule] = INTEGRITY_RULES | ENGINE_RULES | CHAT_RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The results of all rules, and what the checkpoint is.

    Attributes:
        engine: the engine that it was judged for ("vLLM 0.13.0").
        quantization: "nvfp4-pack-quantized" or another format; None for plain weights.
        parameters: weights of the model (9,399,951,360 for GLM-4-9B).
        size: bytes of the shards.
        fingerprint: 12 hex digits that change with config.json, a header or a size; None without a sound shard.
    """

    directory: str
    engine: str
    verdict: Status
    results: tuple[Result, ...]
    quantization: str | None
    parameters: int
    tensors: int
    size: int
    fingerprint: str | None

    @property
    def failures(self) -> tuple[Result, ...]:
        return failures_of(self.results)


def verify_checkpoint(
    directory: Path,
    *,
    vllm: Version | None = None,
    transformers: int | None = None,
    full: bool = False,
    manifest: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Verify a checkpoint directory for an engine.

    Args:
        vllm: the engine's version; default: that of the kit's default image (`catalog.images`).
        transformers: the major version in its image; None: what this vLLM requires.
        full: read every byte; otherwise only headers, small files and the 4-byte global scales.
        manifest: a SHA-256 manifest to check, or to write if it does not exist; reads every byte.
        progress: called with (bytes read, bytes in total) while tensors are read.

    Raises:
        ModelMissing: the directory does not exist, is empty or cannot be listed.
        StorageError: the manifest cannot be read or written.
    """
    engine = target_engine(vllm or default_version(), transformers)
    checkpoint = read_checkpoint(directory)
    results = apply_rules(checkpoint, engine)
    if full or manifest:
        results += _read_all(checkpoint, manifest, progress, damaged=bool(failures_of(results[: len(INTEGRITY_RULES)])))
    results += _changed(checkpoint)
    return VerifyReport(
        directory=str(directory),
        engine=engine.label,
        verdict=verdict(results),
        results=tuple(_with_command(result, directory, engine) for result in results),
        quantization=quantization_format(checkpoint),
        parameters=parameters(checkpoint),
        tensors=len(checkpoint.tensors),
        size=sum(shard.file.size for shard in checkpoint.shards),
        fingerprint=checkpoint.fingerprint,
    )


def apply_rules(checkpoint: Checkpoint, engine: TargetEngine, rules: Mapping[str, Rule] = RULES) -> list[Result]:
    """Apply each rule, in the order of the table."""
    return [replace(rule(checkpoint, engine), check=name) for name, rule in rules.items()]


def _with_command(result: Result, directory: Path, engine: TargetEngine) -> Result:
    """Fill in the command where the remedy is a repair."""
    if result.remedy != REPAIR:
        return result
    for_engine = "" if engine.vllm == default_version() else f" --for {engine.version}"
    source = shlex.quote(str(directory))
    output = shlex.quote(f"{directory.resolve()}-{engine.version}")
    return replace(result, remedy=f"glm4-deploy checkpoint repair {source} --output {output}{for_engine}")


def failures_of(results: Iterable[Result]) -> tuple[Result, ...]:
    return tuple(result for result in results if result.status is Status.FAIL)


def faults_line(results: Iterable[Result]) -> str:
    """What was observed, in one line."""
    return "; ".join(f"{result.check}: {result.observed}" for result in results)


def _read_all(
    checkpoint: Checkpoint, manifest: Path | None, progress: Callable[[int, int], None] | None, *, damaged: bool
) -> list[Result]:
    """The rows that need every byte of the shards, and with `manifest` of the other files."""
    from glm4_deploy.checkpoint.scan import results_of, scan_tensors  # NumPy: the quick verify does without it

    total = sum(shard.file.size for shard in checkpoint.shards)
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    tally, digests = scan_tensors(checkpoint, digest=manifest is not None, progress=step)
    rows = list(results_of(tally))
    if manifest is None:
        return rows
    for file in covered_files(checkpoint, manifest):
        if file.name not in digests:
            try:
                digests[file.name] = digest_file(file)
            except OSError:
                damaged = True  # the row files-readable reports it
    return [*rows, check_or_write(manifest, digests, damaged=damaged or bool(failures_of(rows)))]


def _changed(checkpoint: Checkpoint) -> list[Result]:
    """A row for files that changed while they were read: something is writing here."""
    changed = changed_files(checkpoint)
    if not changed:
        return []
    return [
        fail(
            f"changed while it was verified: {', '.join(changed[:3])}",
            "",
            *because("a download or copy is in progress: the other rows may be wrong", changed),
            remedy="wait for it to end, then verify again",
            check="changed",
        )
    ]


def changed_files(checkpoint: Checkpoint) -> list[str]:
    """Files whose size or modification time changed since the directory was read, quoted."""
    return [repr(file.name) for file in checkpoint.files if not _unchanged(file)]


def _unchanged(file: File) -> bool:
    try:
        status = file.path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size, file.mtime)
