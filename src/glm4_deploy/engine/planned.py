"""After a start: the memory plan held against what the engine logged, and kept for the next plan on this host."""

from dataclasses import replace
from pathlib import Path

from glm4_deploy.catalog.gpus import Gpu, gpus
from glm4_deploy.catalog.profiles import Profile
from glm4_deploy.engine import observations
from glm4_deploy.errors import DeployError
from glm4_deploy.facts.enginelog import EngineFacts
from glm4_deploy.facts.gpu import read_gpus
from glm4_deploy.facts.host import read_host
from glm4_deploy.plan.deployment import Deployment
from glm4_deploy.plan.fraction import memory_wish
from glm4_deploy.plan.gpu_row import gpu_row
from glm4_deploy.plan.memory import Wish, estimate
from glm4_deploy.plan.memory_compare import Measured, compare, learn
from glm4_deploy.result import Result
from glm4_deploy.settings import Settings


def gpu_here() -> Gpu | None:
    """The planner's row of this host's GPU; None where none is known."""
    return gpu_row(read_gpus(), read_host())


def hold_plan(
    settings: Settings, profile: Profile, deployment: Deployment, facts: EngineFacts, directory: Path, here: Gpu | None
) -> tuple[Result, ...]:
    """One row a figure, a warning where it is outside of the plan's range. Nothing where no plan was made (CPU) or the
    log tells no memory.

    It informs and does not judge: an engine that answers sanely serves, whatever the plan was. Recorded only where it
    is known which GPU this host has: the profile's may be another.
    """
    wish = _wish(settings, profile, deployment, facts, here)
    if wish is None or facts.kv_cache_gib is None:
        return ()
    measured = Measured(
        weights_gib=facts.weights_gib,
        kv_cache_gib=facts.kv_cache_gib,
        kv_cache_tokens=facts.kv_cache_tokens,
        max_concurrency=facts.max_concurrency,
    )
    plan = estimate(wish)
    learnt = learn(wish, plan, measured) if here is not None else None
    rows = compare(plan, measured)
    if learnt is None:
        return tuple(replace(row, remedy="") for row in rows)
    try:
        observations.add(directory, learnt)
    except DeployError as error:
        return tuple(replace(row, remedy=f"not recorded: {error.message}") for row in rows)
    return rows


def _wish(
    settings: Settings, profile: Profile, deployment: Deployment, facts: EngineFacts, here: Gpu | None
) -> Wish | None:
    """What was started, in the planner's terms, with the fraction as it was rendered."""
    fraction = next((flag.value for flag in deployment.flags if flag.name == "gpu-memory-utilization"), None)
    gpu = here or (gpus()[profile.gpu] if profile.gpu else None)
    if gpu is None or fraction is None:
        return None
    wish = memory_wish(settings, profile, gpu)
    return replace(wish, gpu_memory_utilization=float(fraction), first_start=facts.compile_cached is not True)
