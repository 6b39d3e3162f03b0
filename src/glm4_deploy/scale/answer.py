"""How many GPUs: the fewest replicas that hold the limits, how certain that is, what breaks first, and spares."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from glm4_deploy.errors import PlanRefused
from glm4_deploy.scale.calibration import Calibration, MeasuredRun, as_measured, engine_of, fit
from glm4_deploy.scale.request import (
    EngineLimits,
    Limit,
    RouterPolicy,
    ScaleRequest,
    StepCost,
    Workload,
    check_lengths,
)
from glm4_deploy.scale.simulator import GROWTH, Cell, CellResult, quantile

# One fleet: some replicas under a load, and whether the limits hold.
#
# Up to CELL replicas are simulated one by one. A larger fleet is approximated by CELL replicas under their share of
# the load, so run time does not grow with the fleet: replicas influence each other only through the router, and a
# router with more replicas to choose from chooses no worse. docs/lab/scale.md has the error of this shortcut.

CELL = 16
SHARES = (50, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What stays fixed while the number of replicas is searched. requests: how many each simulation counts."""

    cost: StepCost
    limits: EngineLimits
    workload: Workload
    slo: tuple[Limit, ...]
    router: RouterPolicy = RouterPolicy.LEAST_LOADED
    requests: int = 4000
    cell: int = CELL

    def with_size(self, size: float) -> "Setting":
        """The same with another number of users, or another rate."""
        closed = self.workload.users is not None
        load = replace(self.workload, users=round(size)) if closed else replace(self.workload, rate=size)
        return replace(self, workload=load)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """times: milliseconds by name, such as `ttft p95`. kv_mean, kv_peak: share of a busy replica's blocks.

    preemptions: per 1000 requests. running: most requests at once in one replica. prompt_p95, total_p95: tokens.
    broken: each limit that does not hold, with the observed value.
    """

    times: Mapping[str, float]
    requests_per_s: float
    output_tokens_per_s: float
    kv_mean: float
    kv_peak: float
    preemptions: float
    running: int
    prompt_p95: float
    total_p95: float
    broken: tuple[str, ...]


def simulate_load(setting: Setting, replicas: int, seed: int) -> View:
    """Simulate `replicas` engines under the setting's load."""
    simulated = min(replicas, setting.cell)
    share = simulated / replicas
    load = setting.workload
    if load.users is not None:
        # Rounded up: a cell never has less load than its share.
        load = replace(load, users=math.ceil(load.users * share - 1e-9))
    else:
        load = replace(load, rate=(load.rate or 0.0) * share)
    cell = Cell(
        setting.cost, setting.limits, load,
        replicas=simulated, router=setting.router, seed=seed, hit_share=1 / replicas,
    )  # fmt: skip
    full = 2 * simulated * setting.limits.max_num_seqs
    warm = setting.requests // 4 + (full if load.users is None else min(load.users, full))
    return _view(setting, cell.run(setting.requests, warm=warm), 1 / share, closed=load.users is not None)


def _view(setting: Setting, outcome: CellResult, times: float, *, closed: bool) -> View:
    done = outcome.requests
    ttft = sorted(1000 * request.ttft for request in done)
    tpot = sorted(1000 * request.tpot for request in done if request.answer > 1)
    found = {f"ttft p{share}": quantile(ttft, share) for share in SHARES}
    found |= {f"tpot p{share}": quantile(tpot, share) if tpot else 0.0 for share in SHARES}
    broken = [
        f"{limit.name} {found[f'{limit.metric} p{limit.share}']:.0f} ms (limit {limit.ms:g})"
        for limit in setting.slo
        if found[f"{limit.metric} p{limit.share}"] > limit.ms
    ]
    if not closed and outcome.backlog > GROWTH * len(done):
        broken.append(f"it cannot keep up: the queue grew by {outcome.backlog} over {len(done)} requests")
    seconds = max(outcome.seconds, 1e-9)
    busy = sum(seen.busy for seen in outcome.seen) or 1e-9
    blocks = setting.limits.blocks
    return View(
        times=found,
        requests_per_s=times * len(done) / seconds,
        output_tokens_per_s=times * sum(request.answer for request in done) / seconds,
        kv_mean=sum(seen.block_seconds for seen in outcome.seen) / busy / blocks,
        kv_peak=max(seen.peak_blocks for seen in outcome.seen) / blocks,
        preemptions=1000 * sum(request.preempted for request in done) / len(done),
        running=max(seen.peak_running for seen in outcome.seen),
        prompt_p95=quantile(sorted(float(request.prompt) for request in done), 95),
        total_p95=quantile(sorted(float(request.prompt + request.answer) for request in done), 95),
        broken=tuple(broken),
    )


def alone(setting: Setting, seed: int) -> View:
    """One user at a time on an idle engine: no number of GPUs is faster than this."""
    load = replace(setting.workload, users=1, think_s=0.0, rate=None)
    one = replace(setting, workload=load, requests=min(setting.requests, 1000))
    cell = Cell(one.cost, one.limits, load, replicas=1, seed=seed)
    return _view(one, cell.run(one.requests, warm=0), 1.0, closed=True)


# Above some hundreds of replicas the seeds differ by more than one: the search stops at this share of the number.
FINE = 0.003
NEAR = 1.1  # up to a tenth beyond the measured range counts as measured
ENOUGH = 8.0  # headroom is searched up to this multiple of the load


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean, minimum and maximum over the seeds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The chosen number of replicas over all seeds: kv_peak and running are the worst, the others means."""

    times: Mapping[str, Spread]
    requests_per_s: float
    output_tokens_per_s: float
    kv_mean: float
    kv_peak: float
    preemptions: float
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """size: the largest load (users or requests per second) that holds; None: no limit broke up to `tried`.

    then: what breaks first beyond it.
    """

    size: float | None
    tried: float
    then: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """replicas: the limits hold with this number in every seed. least, most: the range of the seeds' own answers.

    if_slower: replicas if a step takes `slower` times as long (the calibration's worst miss); None: no number helps.
    one_down: what breaks with one replica fewer; empty: nothing.
    simulated: replicas that were simulated to represent all.
    warnings: where the answer leaves the measured range, and what is unknown.
    """

    gpus: int
    replicas: int
    least: int
    most: int
    seeds: int
    fleet: Fleet
    broken: tuple[str, ...]
    simulated: int
    alone: Mapping[str, float]
    headroom: Headroom | None
    one_down: tuple[str, ...]
    slower: float
    if_slower: int | None
    warnings: tuple[str, ...]


def size_fleet(
    setting: Setting, calibration: Calibration, *, replicas: tuple[int, int], gpus_each: int, seeds: int, seed: int
) -> Sizing:
    """Search replicas[0]..replicas[1]; equal ends evaluate that number, whether or not it holds.

    Raises:
        PlanRefused: one request alone on an idle engine breaks a limit, or even the most replicas do.
    """
    idle = alone(setting, seed)
    if idle.broken:
        raise PlanRefused(
            f"no number of GPUs helps: one request alone on an idle engine has {'; '.join(idle.broken)}",
            hint="relax the limit, shorten the requests, or calibrate with a faster engine",
        )
    low, high = replicas
    found = [low] if low == high else _over_seeds(setting, low, high, seed, seeds)
    chosen = max(found)
    views = [simulate_load(setting, chosen, seed + i) for i in range(seeds)]
    broken = tuple(dict.fromkeys(line for view in views for line in view.broken))
    slow = replace(setting, cost=setting.cost.scaled(calibration.slower))
    return Sizing(
        gpus=chosen * gpus_each,
        replicas=chosen,
        least=min(found),
        most=max(found),
        seeds=seeds,
        fleet=_fleet(views),
        broken=broken,
        simulated=min(chosen, setting.cell),
        alone=dict(idle.times),
        headroom=None if broken else _headroom(setting, chosen, seed),
        one_down=simulate_load(setting, chosen - 1, seed).broken if chosen > 1 else ("nothing answers",),
        slower=calibration.slower,
        if_slower=None if low == high else _try_least(slow, high, seed, chosen),
        warnings=warnings(calibration, setting, views),
    )


def _over_seeds(setting: Setting, low: int, high: int, seed: int, seeds: int) -> list[int]:
    """The fewest replicas for each seed; the other seeds start from the first one's answer."""
    first = least(setting, low, high, seed, start=None)
    return [first, *(least(setting, low, high, seed + i, start=first) for i in range(1, seeds))]


def _fleet(views: list[View]) -> Fleet:
    return Fleet(
        times={name: _spread([view.times[name] for view in views]) for name in views[0].times},
        requests_per_s=_mean(view.requests_per_s for view in views),
        output_tokens_per_s=_mean(view.output_tokens_per_s for view in views),
        kv_mean=_mean(view.kv_mean for view in views),
        kv_peak=max(view.kv_peak for view in views),
        preemptions=_mean(view.preemptions for view in views),
        running=max(view.running for view in views),
    )


def least(setting: Setting, low: int, high: int, seed: int, *, start: int | None) -> int:
    """The fewest replicas that hold the limits, for one seed.

    Raises:
        PlanRefused: not even `high` replicas do.
    """

    def holds(replicas: int) -> bool:
        return not simulate_load(setting, replicas, seed).broken

    bad, good = low - 1, min(high, max(low, start or guess(setting, seed)))
    width = max(1, good // 50) if start else max(1, good // 4)
    while not holds(good):
        if good >= high:
            broken = "; ".join(simulate_load(setting, high, seed).broken)
            raise PlanRefused(
                f"not even {high:,} replicas hold the limits: {broken}",
                hint="allow more with --gpus, or relax the limits",
            )
        bad, good, width = good, min(high, good + width), 2 * width
    while bad < low and good > low:
        lower = max(low, good - width)
        if not holds(lower):
            bad = lower
        else:
            good, width = lower, 2 * width
    while good - bad > max(1, int(FINE * good)):
        middle = (good + bad) // 2
        if middle <= bad or middle >= good:
            break
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def guess(setting: Setting, seed: int) -> int:
    """Where the search starts: replicas that the load would keep busy if spread evenly."""
    seats = setting.limits.max_num_seqs
    one = replace(setting, slo=(), requests=max(200, 4 * seats))
    full = simulate_load(replace(one, workload=replace(setting.workload, users=seats, think_s=0.0, rate=None)), 1, seed)
    if setting.workload.rate is not None:
        demand = setting.workload.rate
    else:
        single = simulate_load(
            replace(one, workload=replace(setting.workload, users=1, think_s=0.0, rate=None)), 1, seed
        )
        demand = (setting.workload.users or 0) / (setting.workload.think_s + 1 / single.requests_per_s)
    return max(1, math.ceil(demand / full.requests_per_s))


def _try_least(setting: Setting, high: int, seed: int, start: int) -> int | None:
    try:
        return None if alone(setting, seed).broken else least(setting, start, high, seed, start=start)
    except PlanRefused:
        return None


def _headroom(setting: Setting, replicas: int, seed: int) -> Headroom:
    """The largest load that these replicas hold, to one percent."""
    size = setting.workload.size

    def view(of: float) -> View:
        return simulate_load(setting.with_size(of), replicas, seed)

    good, bad, then = size, 1.25 * size, ""
    while not (broken := view(bad).broken):
        if bad >= ENOUGH * size:
            return Headroom(size=None, tried=bad, then="")
        good, bad = bad, 1.5 * bad
    then = broken[0]
    while bad - good > max(0.01 * size, 1.0 if setting.workload.users is not None else 0.0):
        middle = (good + bad) / 2
        if broken := view(middle).broken:
            bad, then = middle, broken[0]
        else:
            good = middle
    return Headroom(size=good, tried=bad, then=then)


def warnings(calibration: Calibration, setting: Setting, views: list[View]) -> tuple[str, ...]:
    """Where the answer leaves the measured range."""
    levels, measured = calibration.measured.levels, calibration.measured
    users = max(level.concurrency for level in levels)
    prompts = sorted({level.input_len for level in levels})
    longest = max(level.input_len + level.output_len for level in levels)
    running = max(view.running for view in views)
    prompt, total = max(view.prompt_p95 for view in views), max(view.total_p95 for view in views)
    lines = []
    if measured.example:
        lines.append("the calibration is an example that ships with the kit, NOT your machine: measure yours")
    if measured.card is None:
        lines.append("the calibration does not name its GPU")
    if running > users:
        lines.append(f"extrapolated: up to {running} requests at once in a replica, {users} were measured")
    if prompt > NEAR * prompts[-1]:
        lines.append(f"extrapolated: prompts of {prompt:.0f} tokens (p95), up to {prompts[-1]} were measured")
    if total > NEAR * longest:
        lines.append(f"extrapolated: contexts of {total:.0f} tokens (p95), up to {longest} were measured")
    if len(prompts) == 1:
        lines.append(f"one prompt length was measured ({prompts[0]}): other lengths are extrapolated")
    lines += _ill_fitted(calibration)
    return tuple(lines)


def _ill_fitted(calibration: Calibration) -> list[str]:
    lines = []
    if calibration.slower > 1.3:
        lines.append(f"the fit misses its own measurements by up to {calibration.slower:.2f} times")
    first = [max(miss.ttft_p50, 1 / miss.ttft_p50) for miss in calibration.misses]
    if first and max(first) > 2:
        lines.append(f"the fit misses a measured TTFT p50 by {max(first):.1f} times")
    return lines


def _spread(values: list[float]) -> Spread:
    return Spread(mean=sum(values) / len(values), low=min(values), high=max(values))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


# Spares: how many extra engines keep enough of them up, if failures are independent and a repair takes time.

HOURS_A_YEAR = 8766.0
MOST_SPARES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spares:
    """engines: how many on top of the needed ones; None: more than MOST_SPARES."""

    failures_per_gpu_year: float
    repair_hours: float
    availability: float
    engines: int | None


def down_share(failures_a_year: float, repair_hours: float, gpus_each: int = 1) -> float:
    """Share of the time that an engine of `gpus_each` GPUs is down, each GPU failing this often."""
    up = 1 / (1 + failures_a_year * repair_hours / HOURS_A_YEAR)
    return float(1 - up**gpus_each)


def spares(needed: int, down: float, availability: float) -> int | None:
    """The fewest extra engines with which at least `needed` are up for this share of the time.

    None: not even MOST_SPARES suffice.
    """
    for more in range(MOST_SPARES + 1):
        if at_most(more, needed + more, down) >= availability:
            return more
    return None


def at_most(failed: int, engines: int, down: float) -> float:
    """Probability that at most `failed` of `engines` are down at once (binomial)."""
    if down <= 0:
        return 1.0
    total = 0.0
    for count in range(failed + 1):
        ways = math.lgamma(engines + 1) - math.lgamma(count + 1) - math.lgamma(engines - count + 1)
        total += math.exp(ways + count * math.log(down) + (engines - count) * math.log1p(-down))
    return total


AVAILABILITY = 0.999


def spares_for(replicas: int, request: ScaleRequest) -> Spares | None:
    """None if no failure rate was given."""
    failures, hours = request.failures_per_gpu_year, request.repair_hours
    if failures is None:
        return None
    return Spares(
        failures_per_gpu_year=failures,
        repair_hours=hours,
        availability=AVAILABILITY,
        engines=spares(replicas, down_share(failures, hours, request.engine.gpus_each), AVAILABILITY),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleAnswer:
    """The answer and what it rests on. assumed: limits that were neither given nor measured."""

    setting: Setting
    calibration: Calibration
    sizing: Sizing
    assumed: tuple[str, ...]
    spares: Spares | None


def answer(request: ScaleRequest, measured: MeasuredRun) -> ScaleAnswer:
    """Fit the measured load, then search.

    Raises:
        UsageError: the engine's limits are unknown, or the requests do not fit.
        PlanRefused: no number of GPUs holds the limits.
    """
    limits, assumed = engine_of(measured, request.engine)
    check_lengths(request.workload, limits)
    calibration = fit(measured, as_measured(measured, limits))
    setting = Setting(
        cost=calibration.cost,
        limits=limits,
        workload=request.workload,
        slo=request.slo,
        router=request.router,
        requests=request.requests,
    )
    sizing = size_fleet(
        setting, calibration,
        replicas=request.replicas, gpus_each=request.engine.gpus_each, seeds=request.seeds, seed=request.seed,
    )  # fmt: skip
    return ScaleAnswer(
        setting=setting,
        calibration=calibration,
        sizing=sizing,
        assumed=assumed,
        spares=spares_for(sizing.replicas, request),
    )
