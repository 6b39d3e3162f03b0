"""gpu_memory_utilization: the wish held against the memory plan, or the plan's own answer."""

from dataclasses import dataclass

from glm4_deploy.catalog.gpus import Gpu, gpus
from glm4_deploy.catalog.images import Version, default_tag, parse_version, repository, resolve_version, vllm_version
from glm4_deploy.catalog.profiles import Profile
from glm4_deploy.errors import PlanRefused
from glm4_deploy.plan.memory import MemoryPlan, Wish
from glm4_deploy.plan.memory_model import Weights, glm4_9b
from glm4_deploy.plan.memory_solve import at, solve
from glm4_deploy.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Fraction:
    """What goes into the file and why; `plan` is None, and `value` too, where the engine has no such flag (CPU)."""

    value: float | None
    reason: str = ""
    warning: str = ""
    plan: MemoryPlan | None = None


def engine_version(settings: Settings, profile: Profile) -> Version | None:
    """The vLLM that the wished image holds; None for an image that the catalog does not know."""
    if profile.engine == "cpu":
        return parse_version(settings.image_tag) if settings.image_tag[:1].isdigit() else None
    return vllm_version(settings.image_tag) if settings.image_repository == repository() else None


def memory_wish(settings: Settings, profile: Profile, gpu: Gpu) -> Wish:
    """The settings in the planner's terms."""
    weights = Weights.BF16 if settings.quantization == "none" else Weights.NVFP4
    fraction = settings.gpu_memory_utilization
    return Wish(
        gpu=gpu,
        model=glm4_9b(weights),
        vllm=engine_version(settings, profile) or resolve_version(default_tag()),
        gpu_memory_utilization=fraction if isinstance(fraction, float) else 0.5,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_dtype=settings.kv_cache_dtype,
        enforce_eager=settings.enforce_eager,
        tensor_parallel_size=settings.tensor_parallel_size,
    )


def choose_fraction(settings: Settings, profile: Profile) -> Fraction:
    """The fraction for the profile's GPU.

    Raises:
        PlanRefused: the engine could not start so on that GPU, at the optimistic end of the error range too.
    """
    if profile.gpu is None:
        return Fraction(value=None)
    wish = memory_wish(settings, profile, gpus()[profile.gpu])
    if settings.gpu_memory_utilization == "auto":
        solution = solve(wish)
        if not solution.plan.fits:
            raise _refused(solution.plan, wish)
        reason = f"solved for {wish.gpu.label}: {solution.reason}"
        return Fraction(value=solution.fraction, reason=reason, plan=solution.plan)
    wished = settings.gpu_memory_utilization
    plan = at(wish, wished)
    of_profile = profile.settings.get("gpu_memory_utilization") == wished
    reason = profile.reasons.get("gpu_memory_utilization", "") if of_profile else "as wished"
    if plan.fits:
        return Fraction(value=wished, reason=reason, plan=plan)
    # The seed profile is anybody's Blackwell: its GPU is only the likeliest, so it is no ground to refuse on.
    if profile.name == "seed" or plan.kv_cache_gib + plan.error_range_gib > 0:
        warning = f"on {wish.gpu.label}: {plan.refusal}; {plan.remedy}"
        return Fraction(value=wished, reason=reason, warning=warning, plan=plan)
    raise _refused(plan, wish)


def _refused(plan: MemoryPlan, wish: Wish) -> PlanRefused:
    return PlanRefused(f"this cannot start on {wish.gpu.label}: {plan.refusal}", hint=plan.remedy)
