"""Settings and their plan, as one value: what is rendered, started, and returned by the Python API."""

from dataclasses import dataclass

from glm4_deploy.catalog.rows import Profile
from glm4_deploy.plan.spec import Card, DeploymentSpec, choose_fraction, plan_deployment
from glm4_deploy.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPlan:
    """What some settings deploy.

    Attributes:
        settings: as merged and validated.
        profile: the profile they are based on.
        deployment: every choice, with its reason and the memory plan.
    """

    settings: Settings
    profile: Profile
    deployment: DeploymentSpec

    @classmethod
    def of(cls, settings: Settings, profile: Profile, card: Card | None = None) -> "ResolvedPlan":
        """The plan for a host's card, else for the profile's GPU.

        Raises:
            PlanRefused: the settings do not fit the GPU.
        """
        deployment = plan_deployment(settings, profile, choose_fraction(settings, profile, card))
        return cls(settings=settings, profile=profile, deployment=deployment)
