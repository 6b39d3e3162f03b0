"""How far the answers of an engine are from a reference: KL divergence and agreement, bucket by bucket."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from glm4_deploy.fingerprint.model import Arithmetic, Bucket, Fingerprint

Answer: TypeAlias = Mapping[int, float]  # token id → log probability in nats, of the engine's most likely tokens
REST = 1e-4  # the least probability that all other tokens together count as: below it, rounding decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """Of a set of points.

    Attributes:
        kl: mean KL divergence from the reference to the engine, in nats.
        agreement: share of the points with the same most likely token.
        worst: the largest KL divergence of one point.
    """

    points: int
    kl: float
    agreement: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """From one reference: over all points, and by bucket."""

    arithmetic: Arithmetic
    overall: Distance
    buckets: Mapping[Bucket, Distance]


def divergence(reference: Answer, answer: Answer) -> float:
    """KL divergence over the tokens that either names, and all others as one token.

    A token that only one side names counts on the other side as likely as the least likely that is named there, which
    is the most that it can be. So the sum is about the divergence where the two agree, and less where they do not.
    """
    p, q = _filled(reference, answer), _filled(answer, reference)
    return sum(p[token] * math.log(p[token] / q[token]) for token in p)


def _filled(own: Answer, other: Answer) -> dict[int, float]:
    """Probabilities of every token that either names, and of the rest under -1; they sum to 1."""
    least = min(own.values())
    filled = {token: math.exp(max(own.get(token, least), -30.0)) for token in sorted({*own, *other})}
    filled[-1] = max(1.0 - sum(filled.values()), REST)
    total = sum(filled.values())
    return {token: value / total for token, value in filled.items()}


def measure(fingerprint: Fingerprint, answers: Sequence[Sequence[Answer | None]]) -> tuple[Distances, ...]:
    """The distances from each reference.

    Args:
        answers: of each text, for each of its points what the engine gave; None: not asked.
    """
    return tuple(_from(fingerprint, answers, arithmetic) for arithmetic in fingerprint.arithmetics)


def _from(fingerprint: Fingerprint, answers: Sequence[Sequence[Answer | None]], arithmetic: Arithmetic) -> Distances:
    seen: dict[Bucket, list[tuple[float, bool]]] = {}
    for text, row in zip(fingerprint.texts, answers, strict=True):
        tops = text.tops[arithmetic]
        for ids, logprobs, answer in zip(tops.ids, tops.logprobs, row, strict=True):
            if answer:
                same = max(answer, key=lambda token: answer[token]) == ids[0]
                found = divergence(dict(zip(ids, logprobs, strict=True)), answer), same
                seen.setdefault(text.bucket, []).append(found)
    buckets = {bucket: _distance(found) for bucket, found in seen.items()}
    return Distances(
        arithmetic=arithmetic, overall=_distance(one for found in seen.values() for one in found), buckets=buckets
    )


def _distance(found: Iterable[tuple[float, bool]]) -> Distance:
    rows = list(found)
    if not rows:
        return Distance(points=0, kl=math.nan, agreement=math.nan, worst=math.nan)
    kl = [max(value, 0.0) for value, _ in rows]
    agreement = sum(same for _, same in rows) / len(rows)
    return Distance(points=len(rows), kl=sum(kl) / len(kl), agreement=agreement, worst=max(kl))
