"""The simulation compared with a real vLLM on the CPU, as recorded by benchmarks/scale (docs/lab/scale.md)."""

import statistics
from pathlib import Path

import pytest
from benchmarks.scale.evaluate import calibrate, compared, engine, load

RECORD = Path(__file__).parents[3] / "benchmarks" / "scale" / "results" / "cpu.json"


@pytest.fixture(scope="module")
def ratios() -> dict[str, dict[str, float]]:
    """load → figure → predicted / measured (median of the rounds), for closed loops that were not fitted to."""
    data, _ = load(RECORD)
    cost = calibrate(data).cost
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["name"] for row in data["rows"] if row["part"] != "fit" and row["concurrency"]):
        rows = [row for row in data["rows"] if row["name"] == name]
        pairs = compared(rows, cost, engine(data, rows[0]["part"]))
        found[name] = {
            figure: statistics.median(predicted[figure] / measured[figure] for predicted, measured in pairs)
            for figure, value in pairs[0][1].items()
            if value
        }
    return found


def test_tpot_and_throughput_of_held_out_loads(ratios: dict[str, dict[str, float]]) -> None:
    for figure in ("tpot p50", "tokens/s"):
        # In three of the six rounds with little cache the machine was half as fast: their times mean nothing.
        off = {name: figures[figure] for name, figures in ratios.items() if not name.startswith("200/96")}
        assert 0.8 < statistics.median(off.values()) < 1.25, (figure, off)
        inner = sorted(off.values())[1:-1]  # the shortest load took two seconds, as long as the machine stalls
        assert all(0.6 < ratio < 1.6 for ratio in inner), (figure, off)


def test_preemptions_where_the_cache_is_too_small(ratios: dict[str, dict[str, float]]) -> None:
    assert 0.7 < ratios["200/96 @16"]["preempted"] < 1.4
    assert "preempted" not in ratios["200/96 @8"], "none were measured with eight"
