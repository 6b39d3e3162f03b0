"""Judge a checkpoint for one engine: every rule once, each giving one finding."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from glm4_deploy.catalog.images import Version
from glm4_deploy.checkpoint import rules_chat, rules_engine, rules_files, rules_tensors
from glm4_deploy.checkpoint.finding import Rule, bad
from glm4_deploy.checkpoint.shape import parameters, quantization_format
from glm4_deploy.checkpoint.target import default_version, target
from glm4_deploy.facts.checkpoint import Checkpoint, read_checkpoint
from glm4_deploy.result import Result, Status, verdict

RULES: tuple[Rule, ...] = rules_files.RULES + rules_tensors.RULES + rules_engine.RULES + rules_chat.RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
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


def verify(
    directory: Path,
    *,
    vllm: Version | None = None,
    full: bool = False,
    manifest: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
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
    results = [rule(checkpoint, engine) for rule in RULES]
    results += _changed(checkpoint)
    return Report(
        directory=str(directory),
        engine=engine.label,
        verdict=verdict(results),
        results=tuple(results),
        quantization=quantization_format(checkpoint),
        parameters=parameters(checkpoint),
        tensors=len(checkpoint.tensors),
        size=sum(shard.file.size for shard in checkpoint.shards),
        fingerprint=checkpoint.fingerprint,
    )


def _changed(checkpoint: Checkpoint) -> list[Result]:
    """Files that changed size while they were read: somebody writes here."""
    changed = [repr(file.name) for file in checkpoint.files if not _same(file.path, file.size)]
    if not changed:
        return []
    return [
        bad(
            "changed",
            Status.FAIL,
            f"changed while it was verified: {', '.join(changed[:3])}",
            why="a download or copy is under way: nothing said here holds",
            remedy="wait for it to end, then verify again",
            items=changed,
        )
    ]


def _same(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
