"""From 1 to 10,000 GPUs under one SLO: users served, time to simulate, the knee, and the error of simulating one cell.

python -m benchmarks.scale.grid CALIBRATION [--ttft-p95 1000] [--tpot-p95 50]
"""

import argparse
import time
from dataclasses import replace

from glm4_deploy.cli.scale import read_calibrations
from glm4_deploy.scale.answer import Setting, down_share, simulate_load, spares
from glm4_deploy.scale.calibration import engine_of, fit
from glm4_deploy.scale.request import EngineOptions, Lengths, Limit, RouterPolicy, Workload

GPUS = (1, 2, 4, 8, 16, 32, 64, 100, 1000, 10_000)
SEEDS = 3
# Interruptions by GPUs (148), their HBM3 (72), SRAM (19) and system processor (17) in 54 days of 16,384 H100: the
# Llama 3 training report, arXiv 2407.21783, section 3.3.4.
FAILURES_A_YEAR = (148 + 72 + 19 + 17) / (16_384 * 54) * 365.25
REPAIR_HOURS = 24.0  # an assumption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calibration", nargs="+", help="calibration files or results of `bench --json`")
    parser.add_argument("--ttft-p95", type=float, default=1000, help="limit in ms")
    parser.add_argument("--tpot-p95", type=float, default=50, help="limit in ms")
    parser.add_argument("--kv-cache-tokens", type=int, help="of one engine; by default as calibrated")
    parser.add_argument("--prompt", type=float, nargs=2, default=(512, 1500), help="tokens, median and p95")
    parser.add_argument("--answer", type=float, nargs=2, default=(128, 400), help="tokens, median and p95")
    options = parser.parse_args()
    measured = read_calibrations(options.calibration)
    engine, _ = engine_of(measured, EngineOptions(kv_cache_tokens=options.kv_cache_tokens))
    load = Workload(
        users=1,
        think_s=30.0,
        prompt=Lengths(median=options.prompt[0], p95=options.prompt[1]),
        answer=Lengths(median=options.answer[0], p95=options.answer[1]),
    )
    limits = tuple(
        Limit(metric=m, share=95, ms=ms) for m, ms in (("ttft", options.ttft_p95), ("tpot", options.tpot_p95))
    )
    setting = Setting(cost=fit(measured, engine).cost, limits=engine, workload=load, slo=limits)
    one = table(setting)
    knee(setting, one)
    shortcut(setting, one)


def table(setting: Setting) -> int:
    """Print the users that each number of GPUs serves; returns those of one GPU."""
    print("| GPUs | users served | per GPU | tokens/s | spares for 99.9 % | seconds |\n|---|---|---|---|---|---|")
    one = 0
    down = down_share(FAILURES_A_YEAR, REPAIR_HOURS)
    for gpus in GPUS:
        began = time.process_time()
        held = min(most_users(setting, gpus, seed, one * gpus) for seed in range(SEEDS))
        took = time.process_time() - began
        one = one or held
        tokens = simulate_load(setting.with_size(held), gpus, 0).output_tokens_per_s
        more = spares(gpus, down, 0.999)
        print(f"| {gpus:,} | {held:,} | {held / gpus:.0f} | {tokens:,.0f} | {more} | {took:.1f} |", flush=True)
    return one


def most_users(setting: Setting, gpus: int, seed: int, start: int) -> int:
    def holds(users: int) -> bool:
        return not simulate_load(setting.with_size(users), gpus, seed).broken

    good, bad = 0, max(4, start)
    while holds(bad):
        good, bad = bad, round(1.3 * bad) + 1
    while bad - good > max(1, 0.01 * bad):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def knee(setting: Setting, one: int) -> None:
    print("\n| users on one GPU | TTFT p95 ms | TPOT p95 ms | tokens/s | running |\n|---|---|---|---|---|")
    for share in (0.25, 0.5, 0.75, 0.9, 1.0, 1.05, 1.1, 1.2, 1.5):
        view = simulate_load(setting.with_size(max(1, round(share * one))), 1, 0)
        times = f"{view.times['ttft p95']:.0f} | {view.times['tpot p95']:.1f}"
        print(f"| {round(share * one)} ({share:.0%}) | {times} | {view.output_tokens_per_s:,.0f} | {view.running} |")


def shortcut(setting: Setting, one: int) -> None:
    """A cell of 16 engines instead of all of them: the ratios of its figures, and the answers of both."""
    print("\n| router | GPUs | TTFT p95, cell/all | TPOT p95 | tokens/s | users served: cell / all |")
    print("|---|---|---|---|---|---|")
    for router in RouterPolicy:
        for gpus in (32,) if router is RouterPolicy.CACHE_AWARE else (32, 64):
            cell = replace(setting, router=router, requests=150 * gpus)
            everything, load = replace(cell, cell=gpus), round(0.95 * one * gpus)
            pairs = zip(at(cell, load, gpus), at(everything, load, gpus), strict=True)
            ratios = " | ".join(f"{of_cell / of_all:.2f}" for of_cell, of_all in pairs)
            held = [most_users(kind, gpus, 0, one * gpus) for kind in (cell, everything)]
            print(f"| {router} | {gpus} | {ratios} | {held[0]:,} / {held[1]:,} |", flush=True)


def at(setting: Setting, users: int, gpus: int) -> tuple[float, float, float]:
    """TTFT p95, TPOT p95 and tokens per second, means over the seeds."""
    views = [simulate_load(setting.with_size(users), gpus, seed) for seed in range(SEEDS)]
    times = [sum(view.times[name] for view in views) / SEEDS for name in ("ttft p95", "tpot p95")]
    return times[0], times[1], sum(view.output_tokens_per_s for view in views) / SEEDS


if __name__ == "__main__":
    main()
