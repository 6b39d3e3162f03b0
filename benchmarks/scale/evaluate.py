"""Compare the simulation with the engine that measure.py measured: fitted to some loads, evaluated on the others.

python -m benchmarks.scale.evaluate benchmarks/scale/results/cpu.json
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glm4_deploy.scale.calibration import Calibration, MeasuredRun, fit, from_mapping
from glm4_deploy.scale.request import EngineLimits, Lengths, StepCost, Workload
from glm4_deploy.scale.simulator import Cell, CellResult, quantile

SEEDS = 5
STALL_S = 0.5  # by measure.py's own clock
FIGURES = ("ttft p50", "ttft p95", "tpot p50", "tpot p95", "tokens/s")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the output of benchmarks.scale.measure")
    data, stalled = load(parser.parse_args().file)
    print(f"{stalled} loads left out: the machine stalled for {STALL_S} s or more")
    fitted = calibrate(data)
    print(f"fitted: {fitted.cost}\nslower: {fitted.slower:.2f}\n")
    print("| load | part | " + " | ".join(FIGURES) + " | preempted |")
    print("|---|---|" + "---|" * (len(FIGURES) + 1))
    misses: dict[str, dict[str, list[float]]] = {}
    for part, name in dict.fromkeys((row["part"], row["name"]) for row in data["rows"]):
        rows = [row for row in data["rows"] if (row["part"], row["name"]) == (part, name)]
        pairs = compared(rows, fitted.cost, engine(data, part))
        cells = []
        for figure in FIGURES:
            ratios = [predicted[figure] / measured[figure] for predicted, measured in pairs]
            misses.setdefault(part, {}).setdefault(figure, []).append(statistics.median(ratios))
            both = [statistics.median(pair[i][figure] for pair in pairs) for i in (0, 1)]
            digits = 0 if both[0] > 99 else 1
            cells.append(f"{both[0]:,.{digits}f} / {both[1]:,.{digits}f} = {spread(ratios)}")
        counts = (statistics.median(pair[i]["preempted"] for pair in pairs) for i in (0, 1))
        print(f"| {name} | {part} | {' | '.join(cells)} | {' / '.join(f'{count:.0f}' for count in counts)} |")
    print()
    for part, figures in misses.items():
        print(part, *(f"{figure}: {spread(ratios)}" for figure, ratios in figures.items()), sep="; ")


def load(path: Path) -> tuple[Row, int]:
    """The measurements, and how many loads are left out because the machine stalled."""
    data: Row = json.loads(path.read_text(encoding="utf-8"))
    total = len(data["rows"])
    data["rows"] = [row for row in data["rows"] if row.get("stall_s", 0.0) < STALL_S]
    return data, total - len(data["rows"])


def compared(rows: list[Row], cost: StepCost, limits: EngineLimits) -> list[tuple[dict[str, float], dict[str, float]]]:
    """(predicted, measured) for each round; the rate of an open loop differs between rounds."""
    at_rate = {rate: predict(row, cost, limits) for rate, row in {row["rate"]: row for row in rows}.items()}
    return [(at_rate[row["rate"]], measured_figures(row)) for row in rows]


def spread(ratios: Iterable[float]) -> str:
    """Median and range of predicted / measured."""
    listed = sorted(ratios)
    return f"{statistics.median(listed):.2f} ({listed[0]:.2f}-{listed[-1]:.2f})"


def calibration_file(data: Row) -> Row:
    """The loads to fit as a calibration file: the median of the rounds for each load."""
    runs: dict[tuple[int, int], list[Row]] = {}
    for name in dict.fromkeys(row["name"] for row in data["rows"] if row["part"] == "fit"):
        rows = [row for row in data["rows"] if row["name"] == name]
        first = rows[0]
        level = {"concurrency": first["concurrency"], "requests": first["requests"]}
        for metric in ("ttft", "tpot"):
            level[metric] = {p: round(statistics.median(row[metric][p] for row in rows), 3) for p in ("p50", "p95")}
        level["output_tokens_per_s"] = round(statistics.median(row["output_tokens_per_s"] for row in rows), 1)
        runs.setdefault((first["input_len"], first["output_len"]), []).append(level)
    limits = engine(data, "fit")
    return {
        "card": f"CPU, {data['machine']}",
        "vllm": data["vllm"],
        "date": data["date"],
        "model": data["model"],
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "kv_cache_tokens": limits.kv_cache_tokens,
        "block_tokens": limits.block_tokens,
        "runs": [{"input_len": i, "output_len": o, "levels": levels} for (i, o), levels in runs.items()],
    }


def calibrate(data: Row) -> Calibration:
    measured: MeasuredRun = from_mapping(calibration_file(data), "cpu")
    return fit(measured, engine(data, "fit"))


def engine(data: Row, part: str) -> EngineLimits:
    cache = data["engines"]["tight" if part == "tight" else "wide"]
    size = int(cache["block_size"])
    return EngineLimits(
        max_num_seqs=data["max_num_seqs"],
        max_num_batched_tokens=data["max_num_batched_tokens"],
        kv_cache_tokens=size * int(cache["num_gpu_blocks"]),
        block_tokens=size,
    )


def predict(row: Row, cost: StepCost, limits: EngineLimits) -> dict[str, float]:
    """The simulated figures of a load: means over seeds, each with its own arrivals and lengths."""
    load = Workload(
        users=row["concurrency"],
        rate=row["rate"],
        prompt=Lengths(median=row["input_len"]),
        answer=Lengths(median=row["output_len"]),
        pairs=tuple(zip(row["input_lens"], row["output_lens"], strict=True)),
    )
    runs = [
        simulated_figures(Cell(cost, limits, load, replicas=1, seed=seed).run(row["requests"], drain=True))
        for seed in range(SEEDS)
    ]
    return {name: statistics.mean(run[name] for run in runs) for name in runs[0]}


def simulated_figures(result: CellResult) -> dict[str, float]:
    done = result.requests
    took = max(r.done for r in done) - min(r.sent for r in done)
    times = {"ttft": sorted(1000 * r.ttft for r in done), "tpot": sorted(1000 * r.tpot for r in done)}
    named = {f"{metric} p{share}": quantile(ms, share) for metric, ms in times.items() for share in (50, 95)}
    named["tokens/s"] = sum(r.answer for r in done) / took
    return named | {"preempted": float(sum(r.preempted for r in done))}


def measured_figures(row: Row) -> dict[str, float]:
    named = {f"{metric} p{share}": row[metric][f"p{share}"] for metric in ("ttft", "tpot") for share in (50, 95)}
    named["tokens/s"] = row["output_tokens_per_s"]
    return named | {"preempted": float(row["preemptions"])}


if __name__ == "__main__":
    main()
