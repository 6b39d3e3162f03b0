"""Loops that users quoted in public issue threads, a family by themselves. Each row names its thread.

The repeated unit is quoted; the number of copies is the thread's, or large enough for the limit where it gives none.
"""

import random
from collections.abc import Iterator

from benchmarks.detector.documents import Document, degenerate

_THREADS = (
    ("google-gemini/cookbook#327", "", "Other; ", 400, "EXACT_LOOP"),
    ("vllm-project/vllm#39827", "", " is", 10, "EXACT_LOOP"),
    ("vllm-project/vllm-ascend#2082",
     " and what kind of roll you have in the community and what kind of future you have and what kind of past you have",
     " and what kind of present you have", 4, "EXACT_LOOP"),
    ("yhfgyyf/vllm-deepseek-v4-sm89#117", "", "lock", 300, "EXACT_LOOP"),
    ("jjang-ai/vmlx#61", "friendly, helpful, and-invitingly to l-start-the-conversation", "-", 600, "EXACT_LOOP"),
)  # fmt: skip
_ENDINGS = [
    "Wait",
    "Done",
    "Output",
    "Finish",
    "End",
    "Bye",
    "Hello",
    "World",
    "Matrix",
    "Code",
    "Generator",
    "Fixed",
    "Impl",
    "UI",
    "Logic",
    "Bug",
    "Fix",
    "Done",
    "Final",
    "Go",
    "Wait",
    "End",
    "Done",
    "Code",
    "Fix",
    "Output",
    "Finish",
    "Logic",
    "World",
    "Hello",
]


@degenerate("quoted-in-issues")
def _(rng: random.Random) -> Iterator[Document]:
    for thread, head, unit, copies, verdict in _THREADS:
        yield Document(family="quoted-in-issues", text=head + unit * copies, expected=(verdict,), source=thread,
                       finish_reason="length", start=len(head), period=len(unit))  # fmt: skip
    body = "".join(f"One detail: {word}.\n  Correct.\n\n  I'll execute.\n\n  " for word in _ENDINGS)
    yield Document(family="quoted-in-issues", text=body, expected=("NEAR_DUPLICATE",), start=0, finish_reason="length",
                   source="google-gemini/gemini-cli#15877")  # fmt: skip
