"""The answer as text for a terminal and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from glm4_deploy.scale.answer import Headroom, ScaleAnswer, Setting, Sizing, Spares, Spread
from glm4_deploy.scale.calibration import MeasuredRun
from glm4_deploy.scale.request import Lengths, StepCost, Workload
from glm4_deploy.text import paint


def scale_text(answer: ScaleAnswer, *, color: bool = False) -> str:
    """The whole answer, ending in a newline."""
    setting, found = answer.setting, answer.sizing
    lines = [
        paint(_verdict(setting, found), not (found.broken or found.warnings), color),
        *_sure(found),
        "",
        *_table(found),
        "",
        *_load(setting, found),
        *_next(setting, found),
        *_spares(found, answer.spares),
        "",
        "what it rests on:",
        *(f"  · {line}" for line in _basis(answer)),
        *(f"  · assumed: {line}" for line in answer.assumed),
        *(paint(f"  ! {line}", False, color) for line in found.warnings),
    ]
    return "\n".join(lines) + "\n"


def scale_wire(answer: ScaleAnswer) -> dict[str, Any]:
    """For machines: the answer, the question, and what it rests on."""
    setting, calibration = answer.setting, answer.calibration
    measured = asdict(calibration.measured)
    del measured["levels"]
    return {
        "status": "fail" if answer.sizing.broken else "warn" if answer.sizing.warnings or answer.assumed else "ok",
        "answer": answer.sizing,
        "workload": asdict(setting.workload) | {"pairs": len(setting.workload.pairs)},
        "slo": setting.slo,
        "engine": setting.limits,
        "router": str(setting.router),
        "assumed": answer.assumed,
        "spares": answer.spares,
        "calibration": measured | {"step": calibration.cost, "misses": calibration.misses},
    }


def _verdict(setting: Setting, found: Sizing) -> str:
    limits = ", ".join(f"{limit.name} ≤ {limit.ms:g} ms" for limit in setting.slo)
    if found.broken:
        do = "does" if found.gpus == 1 else "do"
        broken = "; ".join(found.broken)
        return f"{_gpus(found)} {do} NOT hold {limits} for {_who(setting.workload)}: {broken}"
    unsure = "; read the lines marked ! first" if found.warnings else ""
    holds = "holds" if found.gpus == 1 else "hold"
    return f"{_gpus(found)} {holds} {limits} for {_who(setting.workload)}{unsure}"


def _gpus(found: Sizing) -> str:
    gpus = f"{found.gpus:,} GPU{'s' if found.gpus != 1 else ''}"
    return gpus if found.gpus == found.replicas else f"{gpus} ({found.replicas:,} engines)"


def _who(load: Workload) -> str:
    if load.users is not None:
        return f"{load.users:,} users, {load.think_s:g} s between an answer and the next question"
    kind = "Poisson" if load.burstiness == 1 else f"burstiness {load.burstiness:g}"
    return f"{load.rate:g} requests per second ({kind})"


def _sure(found: Sizing) -> Iterator[str]:
    seeds = f"{found.seeds} seed{'s' if found.seeds != 1 else ''}"
    yield f"  engines needed: {found.least:,} to {found.most:,} over {seeds}; the answer is the largest"
    if found.slower > 1.005:
        then = "no number helps" if found.if_slower is None else f"{found.if_slower:,} needed"
        yield f"  if steps took {found.slower:.2f} times as long (the calibration's worst miss): {then}"


def _table(found: Sizing) -> Iterator[str]:
    yield f"  {'milliseconds':<14}{'p50':>18}{'p95':>18}{'p99':>18}{'one alone, p95':>18}"
    for metric in ("ttft", "tpot"):
        cells = [_spread(found.fleet.times[f"{metric} p{share}"]) for share in (50, 95, 99)]
        yield f"  {metric.upper():<14}{''.join(f'{cell:>18}' for cell in cells)}{found.alone[f'{metric} p95']:>18.1f}"


def _spread(spread: Spread) -> str:
    return f"{spread.mean:.1f} ({spread.low:.0f}-{spread.high:.0f})"


def _load(setting: Setting, found: Sizing) -> Iterator[str]:
    fleet = found.fleet
    yield f"  {_rate(fleet.requests_per_s)} requests/s, {_rate(fleet.output_tokens_per_s)} tokens/s in total"
    yield (
        f"  per engine: up to {fleet.running} of {setting.limits.max_num_seqs} requests at once, KV cache used "
        f"{fleet.kv_mean:.0%} on average, {fleet.kv_peak:.0%} at peak; {fleet.preemptions:.1f} of 1000 preempted"
    )


def _next(setting: Setting, found: Sizing) -> Iterator[str]:
    if found.headroom is not None:
        yield f"  headroom: {_headroom(setting, found.headroom)}"
    if found.replicas == 1:
        yield "  with one engine down: nothing answers"
    elif found.one_down:
        yield f"  with one engine down: {'; '.join(found.one_down)}. Add spares (docs/how-to/scale.md)"
    else:
        yield "  with one engine down: the limits still hold"


def _spares(found: Sizing, spare: Spares | None) -> Iterator[str]:
    if spare is not None:
        rate = f"{spare.failures_per_gpu_year:g} failures per GPU and year, {spare.repair_hours:g} h to replace one"
        up = f"{found.replicas:,} up {spare.availability:.1%} of the time ({rate})"
        if spare.engines is None:
            yield f"  spares: no number keeps {up}"
        else:
            yield f"  spares: {spare.engines:,} more keep {up}"


def _headroom(setting: Setting, room: Headroom) -> str:
    unit = "users" if setting.workload.users is not None else "requests per second"
    if room.size is None:
        return f"no limit broke up to {_rate(room.tried)} {unit}"
    more = room.size / setting.workload.size - 1
    return f"holds up to about {_rate(room.size)} {unit} (+{more:.0%}); then {room.then}"


def _rate(value: float) -> str:
    """Three significant digits below 100, whole numbers above."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _basis(answer: ScaleAnswer) -> Iterator[str]:
    setting, found, measured = answer.setting, answer.sizing, answer.calibration.measured
    yield f"calibration {measured.name}: {_origin(measured)}"
    if measured.note:
        yield measured.note
    users = sorted({level.concurrency for level in measured.levels})
    prompts = sorted({level.input_len for level in measured.levels})
    yield f"measured: {', '.join(map(str, users))} users at once, prompts of {', '.join(map(str, prompts))} tokens"
    yield f"fitted: {_cost(answer.calibration.cost)}"
    load = setting.workload
    if load.pairs:
        yield f"lengths drawn from {len(load.pairs):,} given pairs"
    else:
        yield f"prompts {_lengths(load.prompt)}, answers {_lengths(load.answer)}"
    limits = setting.limits
    yield (
        f"each engine: max_num_seqs {limits.max_num_seqs}, max_num_batched_tokens {limits.max_num_batched_tokens}, "
        f"KV cache {limits.kv_cache_tokens:,} tokens; router {setting.router}"
    )
    if found.simulated < found.replicas:
        yield f"simulated: a cell of {found.simulated} engines with its share of the load (error: docs/lab/scale.md)"
    yield "not included: network, the router's own time, failures, other work on the GPU (docs/explanation/scale.md)"


def _origin(measured: MeasuredRun) -> str:
    known = (
        measured.card or "GPU not stated",
        f"vLLM {measured.vllm}" if measured.vllm else "vLLM version not stated",
        measured.model or "model not stated",
        measured.date or "date not stated",
    )
    return ", ".join(known)


def _cost(cost: StepCost) -> str:
    return (
        f"a step takes {1000 * cost.base:.2f} ms + {1e6 * cost.per_seq:.1f} µs per sequence + "
        f"{1e6 * cost.per_prefill:.2f} µs per prompt token + {1e9 * cost.per_context:.2f} ns per KV token read; "
        f"{1000 * cost.front:.1f} ms before the scheduler"
    )


def _lengths(lengths: Lengths) -> str:
    if lengths.p95 is None:
        return f"of {lengths.median:g} tokens"
    return f"lognormal, median {lengths.median:g}, p95 {lengths.p95:g} tokens"
