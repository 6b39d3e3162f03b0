"""Judge a checkpoint for one engine: every rule once, each giving one finding."""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from glm4_deploy.catalog.rows import Version
from glm4_deploy.checkpoint.model import (
    REPAIR,
    Rule,
    TargetEngine,
    default_version,
    parameters,
    quantization_format,
    target,
)
from glm4_deploy.checkpoint.read import Checkpoint, File, read_checkpoint
from glm4_deploy.checkpoint.rules_chat import CHAT_RULES
from glm4_deploy.checkpoint.rules_engine import ENGINE_RULES
from glm4_deploy.checkpoint.rules_files import FILE_RULES
from glm4_deploy.checkpoint.rules_tensors import TENSOR_RULES
from glm4_deploy.checkpoint.scan import check_or_write, digest_file, manifest_covers
from glm4_deploy.result import Result, Status, because, fail, verdict

# Whether the bytes are whole and of one model, whatever engine is to load them; then what depends on the engine.
OF_THE_BYTES: dict[str, Rule] = FILE_RULES | TENSOR_RULES
RULES: dict[str, Rule] = OF_THE_BYTES | ENGINE_RULES | CHAT_RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was found.

    engine: for whom it was judged ("vLLM 0.13.0").
    quantization: "nvfp4-pack-quantized" or another format; None for plain weights.
    parameters: weights of the model (9,399,951,360 for GLM-4-9B); size: bytes of the shards.
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
        return tuple(result for result in self.results if result.status is Status.FAIL)


def verify_checkpoint(
    directory: Path,
    *,
    vllm: Version | None = None,
    full: bool = False,
    manifest: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Verify a checkpoint directory for an engine.

    Args:
        vllm: the engine's version; default: that of the kit's default image (`catalog.images`).
        full: read every byte too; else only headers, small files and the 4-byte global scales.
        manifest: a sha256 manifest to check, or to write where it does not exist yet; reads every byte.
        progress: called with (bytes read, bytes in all) while tensors are read.

    Raises:
        ModelMissing: no such directory, empty, or not to be listed.
        StorageError: the manifest cannot be written.
    """
    engine = target(vllm or default_version())
    checkpoint = read_checkpoint(directory)
    results = apply_rules(checkpoint, engine)
    if full or manifest:
        results += _read_all(checkpoint, manifest, progress, damaged=_failed(results[: len(OF_THE_BYTES)]))
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
    """Every rule once, in the order of the table."""
    return [replace(rule(checkpoint, engine), check=name) for name, rule in rules.items()]


def _with_command(result: Result, directory: Path, engine: TargetEngine) -> Result:
    """The remedy as the command to type."""
    if result.remedy != REPAIR:
        return result
    for_engine = "" if engine.vllm == default_version() else f" --for {engine.version}"
    source = shlex.quote(str(directory))
    target_name = shlex.quote(f"{directory.resolve()}-{engine.version}")
    return replace(result, remedy=f"glm4-deploy checkpoint repair {source} --output {target_name}{for_engine}")


def _failed(results: Iterable[Result]) -> bool:
    return any(result.status is Status.FAIL for result in results)


def _read_all(
    checkpoint: Checkpoint, manifest: Path | None, progress: Callable[[int, int], None] | None, *, damaged: bool
) -> list[Result]:
    """The rows that take every byte of the shards; with `manifest` every byte of the other files too."""
    from glm4_deploy.checkpoint.scan import findings, scan_tensors  # NumPy: the quick verify does without it

    total = sum(shard.file.size for shard in checkpoint.shards)
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    tally, digests = scan_tensors(checkpoint, digest=manifest is not None, progress=step)
    rows = list(findings(tally))
    if manifest is None:
        return rows
    for file in manifest_covers(checkpoint, manifest):
        if file.name not in digests:
            try:
                digests[file.name] = digest_file(file)
            except OSError:
                damaged = True  # the row files-readable reports it
    return [*rows, check_or_write(manifest, digests, damaged=damaged or _failed(rows))]


def _changed(checkpoint: Checkpoint) -> list[Result]:
    """Files that changed while they were read: somebody writes here."""
    changed = changed_files(checkpoint)
    if not changed:
        return []
    return [
        fail(
            f"changed while it was verified: {', '.join(changed[:3])}",
            "",
            *because("a download or copy is under way: nothing said here holds", changed),
            remedy="wait for it to end, then verify again",
            check="changed",
        )
    ]


def changed_files(checkpoint: Checkpoint) -> list[str]:
    """Files that are no longer as they were when the directory was read (size, time of change), quoted."""
    return [repr(file.name) for file in checkpoint.files if not _same(file)]


def _same(file: File) -> bool:
    try:
        status = file.path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size, file.mtime)
