"""Every threshold of the detector, in one place: fixed on the development half of the evaluation, then frozen.

`benchmarks/detector` measures them; change one and run it again.
"""

from dataclasses import dataclass

from glm4_deploy.detect.context import Ending, Shape

# A stream keeps this much text, and finds exact loops whose unit is at most a quarter of it.
HOP = 64  # characters between two looks
WINDOW = 1024 * HOP
REACH = WINDOW // 4


@dataclass(frozen=True, slots=True)
class Loop:
    """When an exact run is a loop.

    span: its length must reach this, in characters of Latin text (about four to a token).
    short, long: copies needed of a short unit and of one of 200 characters or more.
    """

    span: float
    short: float
    long: float


LOOPS = {
    (Shape.PROSE, Ending.RUNNING): Loop(224, 4, 3.2),
    (Shape.PROSE, Ending.STOPPED): Loop(224, 4, 3.2),
    (Shape.PROSE, Ending.UNKNOWN): Loop(160, 4, 3),
    (Shape.PROSE, Ending.CUT): Loop(96, 3, 3),
    (Shape.STRUCTURE, Ending.RUNNING): Loop(400, 8, 4),
    (Shape.STRUCTURE, Ending.STOPPED): Loop(400, 8, 4),
    (Shape.STRUCTURE, Ending.UNKNOWN): Loop(320, 6, 3.2),
    (Shape.STRUCTURE, Ending.CUT): Loop(160, 4, 3),
    (Shape.SYMBOLS, Ending.RUNNING): Loop(640, 24, 10),
    (Shape.SYMBOLS, Ending.STOPPED): Loop(640, 24, 10),
    (Shape.SYMBOLS, Ending.UNKNOWN): Loop(400, 16, 6),
    (Shape.SYMBOLS, Ending.CUT): Loop(200, 6, 4),
}
LONG_UNIT = 200

BANGS = 48  # '!' in a row: token 0 of GLM-4's vocabulary
ZERO_IDS = 16
NULL_LOGPROBS = 8
SPACES = {Ending.RUNNING: 400, Ending.STOPPED: 200, Ending.UNKNOWN: 160, Ending.CUT: 96}
NEWLINES = 64

SALAD_WINDOW = 64  # tokens
SALAD_MEAN = -3.0  # nats a token
