"""Pure: text, token ids and logprobs in, a finding about loops and garbage out. May import nothing.

>>> scan("The same again. " * 40).verdict
<LoopVerdict.EXACT_LOOP: 'EXACT_LOOP'>
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
    """Judge a complete document, exactly as a Stream that received it would.

    Args:
        text: any code points, lone surrogates and NULs included; offsets in the finding refer to it as given.
        logprobs: natural logarithms, one per generated token; None (or NaN) where the engine returned null.
    """
    stream = Stream(prompt=prompt)
    stream.feed(text, token_ids=token_ids or (), logprobs=logprobs or ())
    return stream.close(finish_reason)
