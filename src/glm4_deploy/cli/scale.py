"""`glm4-deploy scale`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.catalog.rows import Profile, gpu_by_name, gpus
from glm4_deploy.cli.params import NO_PROFILE, NOTHING, Json, Requested, with_settings
from glm4_deploy.files import read_text
from glm4_deploy.plan.spec import memory_request
from glm4_deploy.probe.limits import read_slo
from glm4_deploy.report.wire import dumps
from glm4_deploy.scale.answer import answer
from glm4_deploy.scale.calibration import MeasuredRun, example, examples, joined, parse_measured, require_calibration
from glm4_deploy.scale.report import scale_text, scale_wire
from glm4_deploy.scale.request import (
    MOST_GPUS,
    EngineOptions,
    ScaleRequest,
    Workload,
    check_load,
    check_options,
    lengths_of,
    limits_of,
    parse_pairs,
    replicas_of,
    router_of,
)
from glm4_deploy.settings import Settings
from glm4_deploy.text import seconds_of


@with_settings("max_num_batched_tokens", profile="none")
def scale(
    context: typer.Context,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="A `bench --json` report of your engine, or a calibration; repeat for more lengths."
        ),
    ] = None,
    users: Annotated[
        int | None,
        typer.Option(min=1, max=100_000_000, help="Number of users, each repeatedly asking, reading and pausing."),
    ] = None,
    think_time: Annotated[str, typer.Option(help="Mean pause of a user after an answer: 30s, 2m, 0s.")] = "30s",
    rate: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1e9, help="Instead of --users: requests per second, regardless of answers."),
    ] = None,
    burstiness: Annotated[
        float,
        typer.Option(min=0.01, max=1000, help="With --rate: 1 is Poisson, below is burstier (as in vLLM's bench)."),
    ] = 1.0,
    ttft_p95: Annotated[str | None, typer.Option(help="Limit on the time to the first token: 500ms, 1s.")] = None,
    tpot_p95: Annotated[str | None, typer.Option(help="Limit on the time per token after the first.")] = None,
    slo: Annotated[
        Path | None, typer.Option(help="Limits from a file, also for p50 and p99 (docs/how-to/smoke.md).")
    ] = None,
    prompt_tokens: Annotated[float, typer.Option(min=1, max=10_000_000, help="Median tokens per prompt.")] = 512,
    prompt_p95: Annotated[
        float | None,
        typer.Option(min=1, max=10_000_000, help="95th percentile of tokens per prompt.", show_default="all the same"),
    ] = None,
    output_tokens: Annotated[float, typer.Option(min=1, max=10_000_000, help="Median tokens per answer.")] = 128,
    output_p95: Annotated[
        float | None,
        typer.Option(min=1, max=10_000_000, help="95th percentile of tokens per answer.", show_default="all the same"),
    ] = None,
    lengths: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead: a file with lines of `prompt,answer` tokens to sample from."),
    ] = None,
    cached_tokens: Annotated[
        int,
        typer.Option(
            min=0, max=10_000_000, help="Tokens at the start of each prompt that the user's replica has cached."
        ),
    ] = 0,
    router: Annotated[str, typer.Option(help="round-robin, least-loaded or cache-aware.")] = "least-loaded",
    gpus: Annotated[
        str, typer.Option(help="Range of GPU counts to search (1..10000), or a single count to evaluate (8).")
    ] = f"1..{MOST_GPUS}",
    kv_cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=64,
            help="KV cache of one engine, in tokens, as its log says.",
            show_default="as calibrated, else planned for the profile's GPU",
        ),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Plan the KV cache for this GPU instead: h100, gb10 …")] = None,
    failures_per_gpu_year: Annotated[
        float | None, typer.Option(min=0, max=1000, help="Report how many spares keep the limits 99.9 % of the time.")
    ] = None,
    repair_time: Annotated[
        str, typer.Option(help="With --failures-per-gpu-year: time until a failed GPU serves again.")
    ] = "24h",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Repetitions with different random numbers.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="The first random seed; the same seed gives the same answer.")] = 0,
    requests: Annotated[int, typer.Option(min=200, max=1_000_000, help="Requests counted per simulation.")] = 4000,
    requested: Requested = NOTHING,
    as_json: Json = False,
) -> None:
    """Estimate how many GPUs a number of users needs.

    Simulates engines, calibrated by a measured load, under limits on TTFT and TPOT. Without a measured load there is no
    answer. Exit codes: 0 an answer, 1 the single count given with --gpus breaks the limits, 2 usage or no calibration,
    13 no number of GPUs keeps the limits.

    Example: glm4-deploy scale --users 2000 --calibration bench.json --ttft-p95 1s --tpot-p95 50ms
    """
    workload = Workload(
        users=users,
        think_s=seconds_of(think_time, zero=True),
        rate=rate,
        burstiness=burstiness,
        prompt=lengths_of("prompt", prompt_tokens, prompt_p95),
        answer=lengths_of("output", output_tokens, output_p95),
        pairs=parse_pairs(read_text(lengths), str(lengths)) if lengths is not None else (),
        cached_tokens=cached_tokens,
    )
    check_load(workload)
    settings, profile = requested.load(lambda: NO_PROFILE)
    sources = {name: context.get_parameter_source(name) for name in context.params}
    check_options({name for name, source in sources.items() if source and source.name == "COMMANDLINE"})
    request = ScaleRequest(
        workload=workload,
        slo=limits_of(ttft_p95, tpot_p95, read_slo(slo).model_dump(exclude_none=True) if slo is not None else {}),
        router=router_of(router),
        replicas=replicas_of(gpus, settings.tensor_parallel_size),
        engine=_engine(settings, profile, gpu, kv_cache_tokens),
        requests=requests,
        seeds=seeds,
        seed=seed,
        failures_per_gpu_year=failures_per_gpu_year,
        repair_hours=seconds_of(repair_time, zero=True) / 3600,
    )
    result = answer(request, read_calibrations(calibration or []))
    if as_json:
        typer.echo(dumps(scale_wire(result)))
    else:
        typer.echo(scale_text(result, color=sys.stdout.isatty()), nl=False)
    raise typer.Exit(1 if result.sizing.broken else 0)


def _engine(settings: Settings, profile: Profile, gpu: str | None, cache: int | None) -> EngineOptions:
    """The engine's settings where any layer gives them; the others are as measured."""
    given = settings.model_fields_set
    row = gpu_by_name(gpu, other="--kv-cache-tokens, from the engine's log") if gpu else gpus().get(profile.gpu or "")
    return EngineOptions(
        max_num_seqs=settings.max_num_seqs if "max_num_seqs" in given else None,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_tokens=cache,
        memory=memory_request(settings, profile, row) if row else None,
        gpu_named=gpu is not None,
        solved=settings.gpu_memory_utilization == "auto",
        gpus_each=settings.tensor_parallel_size,
    )


def read_calibrations(names: list[str]) -> MeasuredRun:
    """Calibration files, or examples by name; a file wins over an example of the same name."""
    require_calibration(len(names))
    shipped = [name in examples() and not Path(name).exists() for name in names]
    return joined(
        [
            example(name) if is_example else parse_measured(read_text(Path(name)), name)
            for name, is_example in zip(names, shipped, strict=True)
        ]
    )
