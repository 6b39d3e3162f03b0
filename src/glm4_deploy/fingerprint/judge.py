"""The verdict over distances: which arithmetic the engine has, which buckets are off, and what that points to."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from glm4_deploy.fingerprint.distance import Distance, Distances
from glm4_deploy.fingerprint.model import Arithmetic, Bucket, Fingerprint
from glm4_deploy.fingerprint.thresholds import ALONE, BUCKET_FAIL, BUCKET_WARN, ERRORS, FAIL, FLOOR, LOSS, WARN
from glm4_deploy.result import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the distances say.

    Attributes:
        arithmetic: of the reference that the engine is closest to.
        distance: over all points, from that reference.
        expected: the distance of a sound engine, in nats, or what counts as nothing.
        loss: distance from bf16; None where the file has none.
        off: buckets that are off, worst first, each with how many times the expected distance it has.
        points_to: the likely cause; empty if nothing is off.
    """

    status: Status
    arithmetic: Arithmetic
    distance: Distance
    expected: float
    loss: float | None
    off: tuple[tuple[Bucket, float], ...]
    points_to: str


def judge(found: Fingerprint, measured: tuple[Distances, ...], arithmetic: Arithmetic | None = None) -> Comparison:
    """Judge against the engine's own arithmetic; where it is not known, that of the closest reference.

    Args:
        arithmetic: what the engine's log names.
    """
    named = [one for one in measured if one.arithmetic is arithmetic]
    nearest = min(named or measured, key=lambda one: one.overall.kl)
    floor = LOSS if found.arithmetics == (Arithmetic.BF16,) else FLOOR
    own = found.expected[nearest.arithmetic][nearest.arithmetic]
    expected = max(_mean(own, nearest), floor)
    # A small bucket's own figure is one draw over few points: a low one may be chance.
    ratios = {
        bucket: one.kl / (max(own.get(bucket, 0.0), expected) * _spread(one)) for bucket, one in nearest.buckets.items()
    }
    overall = nearest.overall.kl / expected
    off = sorted(((bucket, ratio) for bucket, ratio in ratios.items() if ratio > BUCKET_WARN), key=lambda row: -row[1])
    worst = max(ratios.values())
    status = Status.OK
    if overall > WARN or worst > BUCKET_WARN:
        status = Status.FAIL if overall > FAIL or worst > BUCKET_FAIL else Status.WARN
    loss = next((one.overall.kl for one in measured if one.arithmetic is Arithmetic.BF16), None)
    return Comparison(
        status=status,
        arithmetic=nearest.arithmetic,
        distance=nearest.overall,
        expected=expected,
        loss=loss,
        off=tuple(off),
        points_to=_cause(ratios) if status is not Status.OK else "",
    )


def _spread(one: Distance) -> float:
    """How much larger the mean over so few points may be by chance (docs/lab/fingerprint.md)."""
    return 1 + ERRORS / math.sqrt(one.points)


def _mean(expected: dict[Bucket, float], one: Distances) -> float:
    """Of a sound engine over the same points."""
    total = sum(expected.get(bucket, 0.0) * row.points for bucket, row in one.buckets.items())
    return total / max(1, sum(row.points for row in one.buckets.values()))


def _cause(ratios: Mapping[Bucket, float]) -> str:
    """What the pattern of the buckets points to (the table in docs/lab/fingerprint.md was made with it)."""
    off = {bucket for bucket, ratio in ratios.items() if ratio > BUCKET_WARN}
    if not off:
        return "everything is a little off: look for one wrong scale, or other weights than the fingerprint's"
    groups: dict[str, float] = {}
    for bucket, ratio in ratios.items():
        name = "long texts" if bucket.long else bucket.value
        groups[name] = max(groups.get(name, 0.0), ratio - 1)
    first, second = (*sorted(groups, key=lambda name: -groups[name]), "")[:2]
    # Where every bucket is off, the cause is common to all, even if it hits one of them harder.
    alone = min(ratios.values()) <= 1 and groups[first] > ALONE * groups.get(second, 0.0)
    alone = alone or all(bucket.long for bucket in off)
    if alone and first == "long texts":
        return "mostly long texts are off: look at rope_theta, the KV cache's type and scales, and the attention kernel"
    if not alone and (2 * len(off) >= len(ratios) or statistics.median(ratios.values()) > 1):
        return "most buckets are off: look for a wrong global scale, rope_theta, KV scales, weights, or a wrong kernel"
    rows = "wrong rows of embed_tokens or lm_head (the tokens of such texts), wrong block scales, a kernel's wrong tile"
    return f"mostly {first if alone else ', '.join(sorted(off))} off: look for {rows}"
