"""One look at a fleet: so many replicas under a load, and whether the limits hold.

Up to CELL replicas are simulated as they are. More are simulated as a cell of CELL replicas with its share of the load:
behind a router that spreads evenly, replicas know of each other only through the router, and a router with more
replicas to choose from chooses no worse. docs/lab/scale.md has the error of this shortcut.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from glm4_deploy.scale.cell import GROWTH, Cell, Outcome, quantile
from glm4_deploy.scale.shape import EngineLimits, Limit, Router, StepCost, Workload

CELL = 16
SHARES = (50, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What stays the same while the number of replicas is sought. requests: counted ones a look."""

    cost: StepCost
    limits: EngineLimits
    workload: Workload
    slo: tuple[Limit, ...]
    router: Router = Router.LEAST_LOADED
    requests: int = 4000
    cell: int = CELL

    def with_size(self, size: float) -> "Setting":
        """The same for another number of users, or another rate."""
        closed = self.workload.users is not None
        load = replace(self.workload, users=round(size)) if closed else replace(self.workload, rate=size)
        return replace(self, workload=load)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """times: `ttft p95` and its like, milliseconds. kv_mean, kv_peak: share of the blocks of a busy replica.

    preemptions: for 1000 requests. running: most requests at once in one replica. prompt_p95, total_p95: tokens.
    broken: each limit that does not hold, with the value seen.
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


def look(setting: Setting, replicas: int, seed: int) -> View:
    """Simulate `replicas` engines under the setting's load."""
    simulated = min(replicas, setting.cell)
    share = simulated / replicas
    load = setting.workload
    if load.users is not None:
        # Rounded up: a cell never has it easier than the whole.
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


def _view(setting: Setting, outcome: Outcome, times: float, *, closed: bool) -> View:
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
        broken.append(f"it does not keep up: {outcome.backlog} of {len(done)} requests more in the queue at the end")
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
    """One user after another on an idle engine: what no number of GPUs can better."""
    load = replace(setting.workload, users=1, think_s=0.0, rate=None)
    one = replace(setting, workload=load, requests=min(setting.requests, 1000))
    cell = Cell(one.cost, one.limits, load, replicas=1, seed=seed)
    return _view(one, cell.run(one.requests, warm=0), 1.0, closed=True)
