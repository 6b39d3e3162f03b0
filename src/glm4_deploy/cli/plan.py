"""`glm4-deploy plan`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy.catalog.images import ImageKind, resolve_version
from glm4_deploy.catalog.rows import (
    Gpu,
    Profile,
    gpu_by_name,
    gpu_by_size,
    gpus,
    on_wsl,
    parse_capability,
    profile_for,
)
from glm4_deploy.checkpoint.model import BadConfigError, NotPlannedError, stored_model
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.cli.output import JUnit, Outputs, stdout_if
from glm4_deploy.cli.params import (
    NO_PROFILE,
    NOTHING,
    STATE,
    HostCards,
    Json,
    Requested,
    StateDir,
    no_gpu,
    with_settings,
)
from glm4_deploy.deploy.plan_check import free_memory, load_observations
from glm4_deploy.errors import PlanRefused, UsageError
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.host.system import read_host
from glm4_deploy.plan.engine_rules import StoredModel, WeightFormat, glm4_9b
from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.plan.image import engine_image, engine_version
from glm4_deploy.plan.kernels import kernel_path
from glm4_deploy.plan.memory import MemoryPlan, estimate
from glm4_deploy.plan.sizing import RequestLoad, advice, parse_load, sharpen, solve
from glm4_deploy.plan.spec import Card, assumed_version, memory_request
from glm4_deploy.report.memory_plan import plan_text
from glm4_deploy.report.wire import to_wire
from glm4_deploy.report_model import make_report
from glm4_deploy.result import Result, fail, ok
from glm4_deploy.settings import Settings


@with_settings("max_num_batched_tokens", "enforce_eager", profile="that of this host's GPU, else gb10; none with --gpu")
def plan(
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU by name: gb10, rtx-5090, h100 …", show_default="the profile's, or this host's"),
    ] = None,
    gpu_total_mib: Annotated[
        float | None,
        typer.Option(min=2048, max=10_000_000, help="GPU memory in MiB, as nvidia-smi or cudaMemGetInfo reports it."),
    ] = None,
    compute_capability: Annotated[str | None, typer.Option(help="With --gpu-total-mib: 12.1, 9.0 …")] = None,
    unified: Annotated[
        bool, typer.Option("--unified", help="With --gpu-total-mib: CPU and GPU share one memory.")
    ] = False,
    wsl: Annotated[
        bool, typer.Option("--wsl", help="The GPU is in WSL2, where the engine sees all of nvidia-smi's total.")
    ] = False,
    cuda_total: Annotated[
        bool,
        typer.Option("--cuda-total", help="--gpu-total-mib is cudaMemGetInfo's figure, the one in the engine's log."),
    ] = False,
    gpu_free_mib: Annotated[float | None, typer.Option(min=0, max=10_000_000, help="Free GPU memory, in MiB.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Read the model's shape from this directory.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="nvfp4 or bf16, without --checkpoint.", show_default="as the settings' quantization"),
    ] = None,
    vllm: Annotated[
        str | None, typer.Option(help="vLLM version, for example 0.24.0.", show_default="that of the image")
    ] = None,
    host_reserve_gib: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1000,
            help="On unified memory: GiB left to the host.",
            show_default="the setting host_reserve_gib",
        ),
    ] = None,
    first_start: Annotated[
        bool,
        typer.Option(
            "--first-start/--later-start",
            help="The first start compiles, which leaves less KV cache; a later start has more.",
        ),
    ] = True,
    load: Annotated[str | None, typer.Option("--for", help='Solve for a load: "64 users, 8k context".')] = None,
    requested: Requested = NOTHING,
    state_dir: StateDir = STATE,
    as_json: Json = False,
    junit: JUnit = None,
) -> None:
    """Show what a GPU's memory will hold.

    Uses the same settings and plan as `render` and `up`. On a host with the profile's GPU, that GPU's actual memory and
    earlier starts refine it. With --gpu or --gpu-total-mib, no profile applies unless one is named.

    Example: glm4-deploy plan --gpu gb10 --for "64 users, 8k context"
    """
    outputs = Outputs(json=stdout_if(as_json), junit=junit)
    outputs.check()
    requested = requested.with_flags({"host_reserve_gib": host_reserve_gib})
    named = _named_gpu(gpu, gpu_total_mib, compute_capability, unified=unified, wsl=wsl, from_cuda=cuda_total)
    if load is not None:
        requested = requested.with_flags(_of_load(parse_load(load)))
    settings, profile, card, on_this_host = _target(requested, named)
    free = free_memory(state_dir, card.free_bytes) if on_this_host else None
    if gpu_free_mib is not None:
        free = round(gpu_free_mib * 2**20)
    request = replace(memory_request(settings, profile, card.gpu), free_bytes=free, first_start=first_start)
    if checkpoint is not None or weights is not None:
        request = replace(request, model=_model(checkpoint, weights or "nvfp4"))
    request = replace(request, vllm=_version(vllm, requested, settings, profile) or request.vllm)
    if on_this_host:
        request = sharpen(request, load_observations(state_dir))
    solved = ""
    if settings.gpu_memory_utilization == "auto":
        solution = solve(request, host_reserve_gib=settings.host_reserve_gib)
        request, solved = replace(request, gpu_memory_utilization=solution.fraction), solution.reason
        answer = solution.plan
    else:
        answer = estimate(request)
    hints = advice(request, answer, host_reserve_gib=settings.host_reserve_gib)
    _show_plan(request, answer, solved, hints, outputs, engine_image(settings).kind)
    if not answer.fits:
        why = "" if outputs.text else f": {answer.refusal}"  # already in the text above
        raise PlanRefused(f"the engine cannot start on {request.gpu.label}{why}", hint=answer.remedy)


def _show_plan(
    request: MemoryRequest,
    answer: MemoryPlan,
    solved: str,
    hints: tuple[str, ...],
    outputs: Outputs,
    image: ImageKind,
) -> None:
    kernel = kernel_path(request.gpu.compute_capability, request.model.weights, request.vllm, image)
    starts = {name: estimate(replace(request, first_start=name == "first")) for name in ("first", "later")}
    settings = {
        "gpu": request.gpu.label,
        "vllm": ".".join(map(str, request.vllm)),
        "gpu_memory_utilization": request.gpu_memory_utilization,
        "solved": solved or None,
        "max_model_len": request.max_model_len,
        "max_num_seqs": request.max_num_seqs,
        "kv_cache_dtype": request.kv_cache_dtype,
        "tensor_parallel_size": request.tensor_parallel_size,
    }
    color = sys.stdout.isatty()
    outputs.write(
        make_report("plan", [_fit(answer)], code=0 if answer.fits else PlanRefused.exit_code),
        lambda: plan_text(request, answer, kernel=kernel, advice=hints, solved=solved, color=color),
        details={
            **settings,
            **_rounded(to_wire(answer)),
            "kernel_path": kernel,
            "advice": hints,
            "starts": {name: _start(plan) for name, plan in starts.items()},
        },
    )


def _start(plan: MemoryPlan) -> dict[str, Any]:
    """What differs between a first and a later start."""
    figures = ("fits", "kv_cache_gib", "error_range_gib", "kv_cache_tokens", "max_concurrency")
    return _rounded({name: getattr(plan, name) for name in figures})


def _fit(plan: MemoryPlan) -> Result:
    """The plan as one result."""
    if not plan.fits:
        return fail(plan.refusal, "an engine that starts", remedy=plan.remedy, check="memory-plan")
    requests = f"{plan.max_concurrency:.2f} requests of full length at once"
    return ok(f"{plan.kv_cache_tokens:,} tokens of KV cache, {requests}", "an engine that starts", check="memory-plan")


def _of_load(load: RequestLoad) -> dict[str, Any]:
    return {"max_model_len": load.context, "max_num_seqs": load.requests}


def _target(requested: Requested, named: Gpu | None) -> tuple[Settings, Profile, Card, bool]:
    """The settings, their profile, the card to plan for, and whether it is this host's.

    Raises:
        UsageError: no GPU to plan for.
    """
    if named is not None:
        return *requested.load(lambda: NO_PROFILE), Card(gpu=named), False
    seen = HostCards(gpus=read_gpus(), host=read_host())
    settings, profile = requested.load(lambda: _profile_of(seen))
    card = seen.card(settings.tensor_parallel_size)
    if seen.gpus.gpus and card is None:
        raise UsageError(
            f"no GPU to plan for: {seen.gpus.trouble or 'its memory is not known'}",
            hint="name one: --gpu gb10, or the size of a MIG instance with --gpu-total-mib, --cuda-total and"
            " --compute-capability",
        )
    if card is not None and (profile.name in (NO_PROFILE.name, "seed") or profile_for(card.gpu) == profile):
        return settings, profile, card, True
    if profile.gpu is None:
        raise UsageError(f"profile {profile.name} has no GPU to plan for", hint="name one with --gpu, for example gb10")
    return settings, profile, Card(gpu=gpus()[profile.gpu]), False


def _profile_of(seen: HostCards) -> Profile:
    if seen.gpus.gpus:
        card = seen.card(1)
        return (profile_for(card.gpu) if card else None) or NO_PROFILE
    return no_gpu()


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """Round GiB to about 1 MiB: a plan is not more precise."""
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}


def _named_gpu(
    name: str | None, total_mib: float | None, capability: str | None, *, unified: bool, wsl: bool, from_cuda: bool
) -> Gpu | None:
    """The GPU that the command line names or describes; None for neither."""
    if total_mib is not None:
        if capability is None:
            raise UsageError("--gpu-total-mib needs --compute-capability", hint="for example --compute-capability 12.0")
        return gpu_by_size(
            total_mib, parse_capability(capability), unified=unified, label=name or "", wsl=wsl, from_cuda=from_cuda
        )
    if capability is not None or unified or from_cuda:
        raise UsageError(
            "--compute-capability, --unified and --cuda-total need --gpu-total-mib", hint="or name the GPU with --gpu"
        )
    if name is None and wsl:
        raise UsageError("--wsl needs --gpu or --gpu-total-mib", hint="without them this host is read")
    if name is None:
        return None
    row = gpu_by_name(name)
    return on_wsl(row) if wsl else row


def _model(checkpoint: Path | None, weights: str) -> StoredModel:
    if checkpoint is not None:
        try:
            return stored_model(checkpoint.resolve().name, read_checkpoint(checkpoint))
        except NotPlannedError as error:
            raise UsageError(f"{checkpoint}: {error}", hint="its engine's log says what fits, once it runs") from None
        except BadConfigError as error:
            hint = f"see what is missing: glm4-deploy checkpoint verify {checkpoint}"
            raise UsageError(f"{checkpoint}: {error}", hint=hint) from None
    if weights not in ("nvfp4", "bf16"):
        raise UsageError(f"unknown weights {weights[:20]!r}", hint="nvfp4 or bf16; others with --checkpoint")
    return glm4_9b(WeightFormat(weights))


def _version(vllm: str | None, requested: Requested, settings: Settings, profile: Profile) -> tuple[int, ...] | None:
    """The vLLM version that was named; None: that of the settings' image."""
    if vllm and requested.flags.get("image_tag"):
        raise UsageError("--vllm and --image-tag exclude each other", hint="give one of them")
    if vllm is None and engine_version(settings) is None:
        assumed = ".".join(map(str, assumed_version()))
        typer.echo(f"warning: image {settings.image} is not in the catalog: planned as vLLM {assumed}", err=True)
    return resolve_version(vllm) if vllm else None
