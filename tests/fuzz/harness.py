"""Whatever comes in: no traceback, no hang, bounded memory. `make fuzz MINUTES=30` runs this for longer."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings

from glm4_deploy.errors import DeployError

EXAMPLES = int(os.environ.get("GLM4_FUZZ_EXAMPLES", "100"))
HANG_S = 20.0  # CPU seconds of this process for one input: not slow, but stuck
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


@dataclass(slots=True)
class Tally:
    """What was tried. worst: CPU seconds of the slowest input, and its test."""

    inputs: int = 0
    refused: int = 0
    worst: tuple[float, str] = (0.0, "")


TALLY = Tally()


def attempt(act: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function with one hostile input: it returns, or refuses with an error of the kit's own (None is returned).

    Anything else that it raises fails the test.
    """
    begin = time.process_time()
    TALLY.inputs += 1
    try:
        return act(*args, **options)
    except DeployError as error:
        TALLY.refused += 1
        assert error.message
        assert len(error.message) < 2000, "one clear error, not the input again"
        assert error.exit_code
        return None
    finally:
        seconds = time.process_time() - begin
        TALLY.worst = max(TALLY.worst, (seconds, os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]))
        assert seconds < HANG_S, f"{seconds:.0f} s of CPU for one input"
