"""The options that render and up share, and the one way from options to a deployment."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy.catalog.rows import Profile, profiles, recognise
from glm4_deploy.errors import PlanRefused, UsageError
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.plan.spec import DeploymentSpec, choose_fraction, plan_deployment
from glm4_deploy.settings import Settings, load_settings

ProfileName = Annotated[str | None, typer.Option("--profile", help="Host profile (see `glm4-deploy profiles`).")]
Port = Annotated[int | None, typer.Option(help="Host port. [profile: 8080]")]
Bind = Annotated[str | None, typer.Option(help="Host address to publish on. [127.0.0.1]")]
ModelDir = Annotated[str | None, typer.Option(help="The checkpoint's directory on the host.")]
ServedModelName = Annotated[str | None, typer.Option(help="The name that clients ask for. [glm-4-9b-chat]")]
GpuMemoryUtilization = Annotated[
    str | None, typer.Option(help="Fraction of the GPU's memory (0 < F <= 1), or auto: solved by the planner.")
]
MaxModelLen = Annotated[int | None, typer.Option(help="Context, tokens. [32768]")]
MaxNumSeqs = Annotated[int | None, typer.Option(help="Requests served at once. [64]")]
KvCacheDtype = Annotated[str | None, typer.Option(help="auto, fp8, fp8_e4m3, fp8_e5m2 or bfloat16. [fp8]")]
ShmSize = Annotated[str | None, typer.Option(help="Size of /dev/shm, for example 8gb.")]
ImageTag = Annotated[str | None, typer.Option(help="Image tag. [26.01-py3]")]
TensorParallelSize = Annotated[int | None, typer.Option(help="GPUs that one engine is split over: 1, 2 or 4. [1]")]
DataParallelSize = Annotated[int | None, typer.Option(help="Copies of the model in one engine, a GPU each. [1]")]
Replicas = Annotated[int | None, typer.Option(help="Engines, each on its own GPUs. [1]")]
With = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="NAME,…", help="Services beside the engine, for example watch."),
]
SetOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, env.NAME or args.FLAG; may be given again."),
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file. [glm4.yaml where there is one]")]


def resolve_spec(
    flags: Mapping[str, Any],
    *,
    sets: Iterable[str] = (),
    config: Path | None = None,
    default_profile: Callable[[], str] = lambda: "seed",
) -> "DeploymentSpec":
    """Options → settings → plan; see `make_wish`."""
    return resolve_plan(flags, sets=sets, config=config, default_profile=default_profile).deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPlan:
    """What was asked for, the profile that it was laid over, and the plan that came of it."""

    settings: "Settings"
    profile: "Profile"
    deployment: "DeploymentSpec"


def resolve_plan(
    flags: Mapping[str, Any],
    *,
    sets: Iterable[str] = (),
    config: Path | None = None,
    default_profile: Callable[[], str] = lambda: "seed",
) -> ResolvedPlan:
    """Options → settings → plan.

    Raises:
        UsageError, PlanRefused: a wrong setting, or a wish that the profile's GPU cannot meet.
    """
    settings, profile = load_settings(flags, file=config, sets=sets, default_profile=default_profile)
    deployment = plan_deployment(settings, profile, choose_fraction(settings, profile))
    return ResolvedPlan(settings=settings, profile=profile, deployment=deployment)


def profile_of_this_host() -> str:
    """The profile of the GPU that is here.

    Raises:
        PlanRefused: no NVIDIA GPU, or one that no profile is for.
    """
    report = read_gpus()
    if not report.gpus:
        raise PlanRefused(
            f"no NVIDIA GPU was found here ({report.trouble})",
            hint="name the host's profile with --profile (see `glm4-deploy profiles`); --profile cpu needs no GPU",
        )
    product = report.gpus[0].name
    row = recognise(product)
    for profile in profiles().values():
        if row is not None and row.name in (profile.gpu, *profile.also) and profile.name != "seed":
            typer.echo(f"profile {profile.name}: this host has {product}", err=True)
            return profile.name
    raise PlanRefused(
        f"no profile is made for {product!r}", hint="choose the nearest with --profile (see `glm4-deploy profiles`)"
    )


def seconds_of(text: str) -> float:
    """`90s`, `30m`, `8h`, or seconds alone, in seconds.

    Raises:
        UsageError: none of these, or 0.
    """
    import re

    match = re.fullmatch(r"(\d{1,7}(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"not a duration: {text[:40]!r}", hint="write it like 90s, 30m or 8h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
