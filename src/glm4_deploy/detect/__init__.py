"""Pure: text, token ids and logprobs in, a finding about loops and garbage out. May import nothing but NumPy.

>>> scan("The same again. " * 40).verdict
<Verdict.EXACT_LOOP: 'EXACT_LOOP'>
"""

from collections.abc import Sequence

from glm4_deploy.detect.finding import LoopFinding, LoopVerdict
from glm4_deploy.detect.stream import Stream

__all__ = ["LoopFinding", "LoopVerdict", "Stream", "scan"]


def scan(
    text: str,
    *,
    prompt: str | None = None,
    finish_reason: str | None = None,
    token_ids: Sequence[int] | None = None,
    logprobs: Sequence[float | None] | None = None,
) -> LoopFinding:
    """Judge one whole document: what a Stream fed with it would say.

    text: any code points, lone surrogates and NULs included; offsets in the finding refer to it as given.
    logprobs: natural logarithms, one a generated token; None (or NaN) where the engine gave null.
    """
    stream = Stream(prompt=prompt)
    stream.feed(text, token_ids=token_ids or (), logprobs=logprobs or ())
    return stream.close(finish_reason)
