"""After a start: compare the memory plan with the engine's log, and remember the difference for the next plan."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

from glm4_deploy.catalog.images import ImageKind
from glm4_deploy.catalog.rows import Gpu, Profile, gpus
from glm4_deploy.deploy.state import load_record
from glm4_deploy.errors import DeployError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.host.gpu import gpu_row, read_gpus
from glm4_deploy.host.system import read_host
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.plan.image import engine_image
from glm4_deploy.plan.kernels import kernel_path
from glm4_deploy.plan.memory import estimate
from glm4_deploy.plan.sizing import MeasuredMemory, Observation, compare_with_log, learn_from_starts
from glm4_deploy.plan.spec import DeploymentSpec, memory_request
from glm4_deploy.result import Result, ok, warn
from glm4_deploy.settings import Settings

# What earlier starts on this host showed, in one small JSON file.

SCHEMA = 1
NAME = "observations.json"
KEPT = 50
UNREADABLE = (DeployError, ValueError, KeyError, TypeError, OverflowError, RecursionError)  # of a damaged file


def load_observations(directory: Path) -> tuple[Observation, ...]:
    """Oldest first; none from a missing, damaged or newer file: a plan must not fail because of it."""
    try:
        content = json.loads(read_text(directory / NAME))
        if content["schema"] != SCHEMA:
            return ()
        return tuple(_checked(row) for row in content["observations"])
    except UNREADABLE:
        return ()


def add_observation(directory: Path, observation: Observation) -> None:
    """Append one. It replaces an earlier one of the same settings; beyond KEPT, the oldest are dropped.

    Raises:
        StorageError: the file cannot be written.
    """
    others = [row for row in load_observations(directory) if _key(row) != _key(observation)]
    rows = [*others, observation][-KEPT:]
    text = json.dumps({"schema": SCHEMA, "observations": [asdict(row) for row in rows]}, indent=2, allow_nan=False)
    write_text(directory / NAME, text + "\n")


def _key(row: Observation) -> tuple[str, str, str, bool]:
    return row.gpu, row.vllm, row.weights, row.first_start


def _checked(row: dict[str, object]) -> Observation:
    """An observation of the types that were written; anything else means a damaged file."""
    values = {field.name: row[field.name] for field in fields(Observation)}
    texts = all(isinstance(values[name], str) for name in ("gpu", "vllm", "weights"))
    overhead = values["overhead_gib"]
    if not texts or not isinstance(values["first_start"], bool) or not isinstance(overhead, int | float):
        raise TypeError("an observation has values of the wrong type")
    return Observation(**values)  # type: ignore[arg-type]  # checked above


def gpu_of_host(ranks: int) -> Gpu | None:
    """The planner's row for the GPUs that an engine of this host gets; None if it is not known."""
    return gpu_row(read_gpus(), read_host(), ranks=ranks)


FREE = "free.json"


def free_memory(directory: Path, free: int | None) -> int | None:
    """What to plan with of the bytes that are free on the card now; None if not known.

    Once an engine was brought up from this directory, its own memory may be missing from `free`: then what was free
    before its start counts, so that the same settings give the same file.
    """
    return free if load_record(directory) is None else _kept_free(directory)


def keep_free(directory: Path, free: int | None) -> None:
    """Remember what is free before an engine starts.

    Raises:
        StorageError: the figure cannot be kept.
    """
    if free is not None:
        write_text(directory / FREE, json.dumps({"schema": SCHEMA, "free_bytes": free}) + "\n")


def _kept_free(directory: Path) -> int | None:
    try:
        content = json.loads(read_text(directory / FREE))
        return int(content["free_bytes"]) if content["schema"] == SCHEMA else None
    except UNREADABLE:
        return None


def compare_plan(
    settings: Settings,
    profile: Profile,
    deployment: DeploymentSpec,
    facts: EngineFacts,
    directory: Path,
    host_gpu: Gpu | None,
) -> tuple[Result, ...]:
    """Compare the memory plan with the log: one row per figure, a warning if it is outside the plan's range.

    There are no rows without a plan (CPU) or without figures in the log. The rows do not count for the verdict: an
    engine that answers sanely serves, whatever the plan was. An observation is stored only if this host's GPU is
    known, because the profile's GPU may be another one.
    """
    request = _request(settings, profile, deployment, facts, host_gpu)
    if request is None or facts.kv_cache_gib is None:
        return ()
    measured = MeasuredMemory(
        weights_gib=facts.weights_gib,
        kv_cache_gib=facts.kv_cache_gib,
        kv_cache_tokens=facts.kv_cache_tokens,
        max_concurrency=facts.max_concurrency,
    )
    plan = estimate(request)
    kernel = kernel_row(request, facts, engine_image(settings).kind)
    observation = learn_from_starts(request, plan, measured) if host_gpu is not None else None
    rows = (*compare_with_log(plan, measured), *kernel)
    if observation is None:
        return tuple(replace(row, remedy="") for row in rows)
    try:
        add_observation(directory, observation)
    except DeployError as error:
        return tuple(replace(row, remedy=f"not recorded: {error.message}") for row in rows)
    return rows


def kernel_row(request: MemoryRequest, facts: EngineFacts, image: ImageKind) -> tuple[Result, ...]:
    """Whether NVFP4 got the predicted arithmetic; nothing where the log names no kernel."""
    path = kernel_path(request.gpu.compute_capability, request.model.weights, request.vllm, image)
    if facts.kernel is None or facts.native_fp4 is None or path.native is None:
        return ()
    observed = f"{facts.kernel} ({'native FP4' if facts.native_fp4 else 'weight-only'})"
    if facts.native_fp4 is path.native:
        return (ok(observed, path.name, check="plan-kernel"),)
    remedy = "4-bit weights without 4-bit arithmetic: see the log for `NVFP4 GEMM`, and try another image tag"
    return (warn(observed, path.name, remedy=remedy if path.native else "", check="plan-kernel"),)


def _request(
    settings: Settings, profile: Profile, deployment: DeploymentSpec, facts: EngineFacts, host_gpu: Gpu | None
) -> MemoryRequest | None:
    """What was started, in the planner's terms, with the memory fraction that was rendered."""
    fraction = next((flag.value for flag in deployment.flags if flag.name == "gpu-memory-utilization"), None)
    gpu = host_gpu or (gpus()[profile.gpu] if profile.gpu else None)
    if gpu is None or fraction is None:
        return None
    request = memory_request(settings, profile, gpu)
    return replace(request, gpu_memory_utilization=float(fraction), first_start=facts.compile_cached is not True)
