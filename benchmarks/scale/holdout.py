"""Fit the simulation to some results of `bench --json`, and compare it with others of the same engine.

python -m benchmarks.scale.holdout --fit a.json b.json --held c.json --max-num-seqs 256 --kv-cache-tokens 1642640
"""

import argparse
from dataclasses import replace
from pathlib import Path

from glm4_deploy.scale.calibration import Miss, fit, joined, miss_of, parse_measured, play
from glm4_deploy.scale.request import EngineLimits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", nargs="+", type=Path, required=True, help="results to fit to")
    parser.add_argument("--held", nargs="+", type=Path, required=True, help="results to compare with")
    parser.add_argument("--max-num-seqs", type=int, required=True, help="of the engine")
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192, help="of the engine (8192)")
    parser.add_argument("--kv-cache-tokens", type=int, required=True, help="as the engine's log says")
    parser.add_argument("--held-max-num-seqs", type=int, help="of the engine of --held, where it differs")
    options = parser.parse_args()
    limits = EngineLimits(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        kv_cache_tokens=options.kv_cache_tokens,
    )
    fitted = fit(joined([parse_measured(path.read_text(encoding="utf-8"), path.name) for path in options.fit]), limits)
    print(f"fitted: {fitted.cost}\nslower: {fitted.slower:.2f}\n")
    print("| load | part | TTFT p50 | TTFT p95 | TPOT p50 | TPOT p95 | tokens/s |\n|---|---|---|---|---|---|---|")
    for miss in fitted.misses:
        print(row(miss, "fit"))
    limits = replace(limits, max_num_seqs=options.held_max_num_seqs or limits.max_num_seqs)
    for path in options.held:
        for level in parse_measured(path.read_text(encoding="utf-8"), path.name).levels:
            print(row(miss_of(level, play(level, fitted.cost, limits)), "held-out"))


def row(miss: Miss, part: str) -> str:
    """predicted / measured = ratio."""
    level, cells = miss.level, []
    for name in ("ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95", "tokens_per_s"):
        measured, ratio = getattr(level, name), getattr(miss, name)
        cells.append(f"{ratio * measured:.3g} / {measured:.3g} = {ratio:.2f}")
    return f"| {level.input_len}/{level.output_len} @{level.concurrency} | {part} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
