"""Whatever comes in: no traceback, no hang, bounded memory. `make fuzz MINUTES=30` runs this for longer."""

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

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


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**300), st.just(-1e308),
    st.just(10**18), st.just([]), st.just({}), st.just([1]), st.just([[]]), st.just({"a": {}}), st.just("x" * 7_000),
    st.sampled_from(["../x", "/etc/passwd", "\x1b]0;x\x07", "\ud800", "-1", "NaN"]),
)  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in paths(item, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, whole: Any) -> Any:
    """A JSON value with one to three of the values in it replaced or removed."""
    value = copy.deepcopy(whole)
    for path in draw(st.lists(st.sampled_from(paths(whole)[1:]), min_size=1, max_size=3)):
        holder: Any = value
        try:
            for key in path[:-1]:
                holder = holder[key]
            if draw(st.integers(0, 4)):
                holder[path[-1]] = copy.deepcopy(draw(ODD))
            else:
                del holder[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation took it away
    return value
