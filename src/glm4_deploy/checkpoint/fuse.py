"""gate_up_proj taken apart and put together, without loss: only names, shapes and the order of bytes change.

Rows of a safetensors tensor lie one after the other, so the gate is the first half of the fused bytes and the up
projection the second; the two global scales of the fused layer serve both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from glm4_deploy.checkpoint.shape import GATE, GATE_UP, UP, fused_nvfp4
from glm4_deploy.checkpoint.writer import Piece, Source
from glm4_deploy.facts.checkpoint import Checkpoint, open_file
from glm4_deploy.facts.checkpoint_header import Tensor

SHARED = ("weight_global_scale", "input_global_scale")


class LossyError(ValueError):
    """The layers cannot be changed without loss; why, in one phrase."""


def pieces(tensors: Iterable[Tensor]) -> list[Piece]:
    """Tensors as they are."""
    return [
        Piece(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            sources=(Source(shard=tensor.shard, start=tensor.start, nbytes=tensor.nbytes),),
        )
        for tensor in tensors
    ]


def split_layers(checkpoint: Checkpoint) -> dict[str, list[Piece]]:
    """The shards that hold packed fused layers, with these split. Raises LossyError."""
    fused = frozenset(fused_nvfp4(checkpoint))
    found: dict[str, list[Piece]] = {}
    for shard in checkpoint.shards:
        if any(_layer(tensor.name) in fused for tensor in shard.header.tensors):
            whole = pieces(shard.header.tensors)
            found[shard.file.name] = [
                part for piece in whole for part in (split(piece) if _layer(piece.name) in fused else (piece,))
            ]
    return found


def join_layers(checkpoint: Checkpoint) -> dict[str, list[Piece]]:
    """The shards that hold split layers, with these joined in the shard of the gate. Raises LossyError, OSError."""
    paths = {shard.file.name: shard.file.path for shard in checkpoint.shards}
    every = {piece.name: piece for piece in pieces(checkpoint.tensors)}
    found: dict[str, list[Piece]] = {}
    for shard in checkpoint.shards:
        joined: list[Piece] = []
        for piece in pieces(shard.header.tensors):
            layer, _, part = piece.name.rpartition(".")
            if layer.endswith(GATE):
                up = every.get(f"{layer.removesuffix(GATE)}{UP}.{part}")
                if up is None:
                    raise LossyError(f"{piece.name} has no sibling in {UP}")
                same = part not in SHARED or _bytes(piece, paths) == _bytes(up, paths)
                joined.append(join(piece, up, same_bytes=same))
            elif not layer.endswith(UP):
                joined.append(piece)
        if [piece.name for piece in joined] != [tensor.name for tensor in shard.header.tensors]:
            found[shard.file.name] = joined
    return found


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _bytes(piece: Piece, paths: Mapping[str, Path]) -> bytes:
    """The content of a small tensor."""
    (source,) = piece.sources
    with open_file(paths[source.shard]) as file:
        file.seek(source.start)
        return file.read(source.nbytes)


def split(piece: Piece) -> tuple[Piece, ...]:
    """One tensor of a fused `…mlp.gate_up_proj` as gate's and up's; any other as it is. Raises LossyError."""
    layer, _, part = piece.name.rpartition(".")
    if not layer.endswith(GATE_UP):
        return (piece,)
    prefix = layer.removesuffix(GATE_UP)
    names = (f"{prefix}{GATE}.{part}", f"{prefix}{UP}.{part}")
    if part in SHARED:
        return tuple(replace(piece, name=name) for name in names)
    if not piece.shape or piece.shape[0] % 2:
        raise LossyError(f"{piece.name} has {piece.shape[0] if piece.shape else 'no'} rows: no two equal halves")
    shape = (piece.shape[0] // 2, *piece.shape[1:])
    return tuple(
        Piece(name=name, dtype=piece.dtype, shape=shape, sources=half)
        for name, half in zip(names, _halves(piece), strict=True)
    )


def _halves(piece: Piece) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    (source,) = piece.sources
    half = source.nbytes // 2
    return (replace(source, nbytes=half),), (replace(source, start=source.start + half, nbytes=half),)


def join(gate: Piece, up: Piece, *, same_bytes: bool) -> Piece:
    """One tensor of gate and its sibling of up as the fused one.

    Args:
        same_bytes: whether both hold the same bytes; a scale that they are to share must.

    Raises:
        LossyError: they do not fit together.
    """
    part = gate.name.rpartition(".")[2]
    name = f"{gate.name.removesuffix(f'{GATE}.{part}')}{GATE_UP}.{part}"
    if gate.dtype != up.dtype or gate.shape != up.shape or not gate.shape:
        raise LossyError(f"{gate.name} and {up.name} differ in dtype or shape")
    if part in SHARED:
        if not same_bytes:
            raise LossyError(f"{gate.name} and {up.name} differ: one scale cannot serve both")
        return replace(gate, name=name)
    return Piece(
        name=name,
        dtype=gate.dtype,
        shape=(2 * gate.shape[0], *gate.shape[1:]),
        sources=gate.sources + up.sources,
    )
