"""gpu_memory_utilization: the wish, or the planner's answer."""

from glm4_deploy.catalog.profiles import Profile
from glm4_deploy.settings import Settings


def choose_fraction(settings: Settings, profile: Profile) -> tuple[float | None, str]:
    """The fraction and why; (None, "") where the engine has no such flag (CPU).

    Raises:
        PlanRefused: the wish cannot be met on the profile's GPU.
    """
    if profile.engine == "cpu":
        return None, ""
    if settings.gpu_memory_utilization == "auto":
        return 0.5, "PLACEHOLDER"
    return settings.gpu_memory_utilization, profile.reasons.get("gpu_memory_utilization", "")
