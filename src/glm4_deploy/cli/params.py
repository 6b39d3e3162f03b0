"""Options shared by several commands; those of the deployment are generated from its settings."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from glm4_deploy.catalog.rows import Profile, profile_for, profiles
from glm4_deploy.cli.completion import profile_names, settings_keys
from glm4_deploy.errors import PlanRefused
from glm4_deploy.host.gpu import GpuReport, free_bytes, gpu_row, read_gpus
from glm4_deploy.host.system import HostFacts, read_host
from glm4_deploy.plan.resolved import ResolvedPlan
from glm4_deploy.plan.spec import Card, DeploymentSpec
from glm4_deploy.settings import FILE, STATE_DIR, MergedSettings, Settings, limits, load_settings, merge_settings

StateDir = Annotated[
    Path,
    typer.Option(
        "--state-dir", file_okay=False, help="Directory of this deployment's record, releases and rendered files."
    ),
]
STATE = STATE_DIR
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, in order, and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - is stdout.")]

# The settings that have their own flag, in the order of --help; all others are set with --set. To give a setting a
# flag, add its name.
FLAGS = (
    "profile", "port", "bind", "model_dir", "served_model_name", "gpu_memory_utilization", "max_model_len",
    "max_num_seqs", "kv_cache_dtype", "shm_size", "image_tag", "extras", "tensor_parallel_size", "data_parallel_size",
    "replicas", "tools",
)  # fmt: skip
SPELLED = {"extras": "--with"}
METAVARS = {"extras": "NAME,…"}
NO_GPU = "gb10"  # the publisher's hardware


def seed() -> Profile:
    """The profile if none is named and nothing is rendered."""
    return profiles()["seed"]


def host_profile() -> Profile:
    """The profile to render with if none is named: that of this host's GPU, as `up` has it.

    Without a GPU it is that of the publisher's hardware, but with all limits: `seed`, which has none, must be named.

    Raises:
        PlanRefused: there is a GPU, but no profile for it.
    """
    seen = HostCards(gpus=read_gpus(), host=read_host())
    return seen.profile() if seen.gpus.gpus else no_gpu()


def no_gpu() -> Profile:
    """The profile for a host without a GPU; the user is informed of it."""
    typer.echo(f"profile {NO_GPU}: none was named (--profile), and this host has no NVIDIA GPU", err=True)
    return profiles()[NO_GPU]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """What the command line says about the deployment."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    """By settings key; None where not given."""
    sets: tuple[str, ...] = ()
    config: Path | None = None

    def with_flags(self, flags: Mapping[str, Any]) -> "Requested":
        """A copy with further flags, which win unless they are None."""
        given = {name: value for name, value in flags.items() if value is not None}
        return replace(self, flags={**self.flags, **given})

    @property
    def given(self) -> bool:
        """Whether the command line says anything about the deployment."""
        return bool(self.sets or self.config or any(value is not None for value in self.flags.values()))

    def load(self, default_profile: Callable[[], Profile] = seed) -> tuple[Settings, Profile]:
        """The settings, and the profile they are based on."""
        return load_settings(self.flags, file=self.config, sets=self.sets, default_profile=default_profile)

    def merge(self, default_profile: Callable[[], Profile] = seed) -> MergedSettings:
        """The same, with the layer that each value came from."""
        return merge_settings(self.flags, file=self.config, sets=self.sets, default_profile=default_profile)

    def plan(self, default_profile: Callable[[], Profile] = seed) -> ResolvedPlan:
        """What these settings deploy; see `resolve_plan`."""
        return resolve_plan(self.flags, sets=self.sets, config=self.config, default_profile=default_profile)

    def plan_here(
        self,
        free_now: Callable[[int | None], int | None] = lambda free: free,
        ask: Callable[[Settings, Profile], Iterable[str]] = lambda _settings, _profile: (),
    ) -> ResolvedPlan:
        """What these settings deploy on this host: its profile is the default, and its card is solved for.

        Args:
            free_now: from the bytes that are free on the card to those to plan with.
            ask: what is to be set besides, as for --set, once it is known what the settings are.

        Raises:
            UsageError: a setting is wrong.
            PlanRefused: no NVIDIA GPU and no profile, or the settings do not fit the card.
        """
        seen = HostCards(gpus=read_gpus(), host=read_host())
        settings, profile = self.load(seen.profile)
        if answers := tuple(ask(settings, profile)):
            settings, profile = replace(self, sets=(*self.sets, *answers)).load(lambda: profile)
        card = None if profile.gpu is None else seen.card(settings.tensor_parallel_size)
        if card is not None:
            card = replace(card, free_bytes=free_now(card.free_bytes))
        return ResolvedPlan.of(settings, profile, card)


NOTHING = Requested()
# For a GPU named without a profile: the settings have only their own defaults.
NO_PROFILE = Profile(name="none", summary="no profile")


def with_settings(*more: str, profile: str = "seed") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the deployment's flags, --set and --config in place of its parameter `requested`.

    Args:
        more: settings that have a flag in this command, besides FLAGS.
        profile: the default profile, for --help.
    """
    return lambda command: _with_settings(command, (*FLAGS, *more), profile)


def _with_settings(command: Callable[..., None], names: tuple[str, ...], profile: str) -> Callable[..., None]:
    def run(**values: Any) -> None:
        flags = {name: values.pop(name) for name in (*names, "image")}
        sets, config = tuple(values.pop("sets") or ()), values.pop("config")
        command(requested=Requested(flags=flags, sets=sets, config=config), **values)

    plain = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for parameter in plain.parameters.values():
        parameters += _deployment_parameters(names, profile) if parameter.name == "requested" else [parameter]
    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = plain.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def setting_option(name: str, default: str | None = None) -> Any:
    """The annotation of the option for one setting: type, help and default are those of the field."""
    about = Settings.model_fields[name]
    kind: Any = str
    if name == "extras":
        kind = list[str]
    elif about.annotation in (int, bool, int | None):
        kind = bool if about.annotation is bool else int
    flag = SPELLED.get(name, f"--{name.replace('_', '-')}")
    shown = default or _default_of(name, about) or False
    offers = profile_names if name == "profile" else _choices(about) if kind is str else None
    option = typer.Option(
        flag, metavar=METAVARS.get(name), help=_help(about), show_default=shown, autocompletion=offers
    )
    return Annotated[kind | None, option]


def _choices(about: FieldInfo) -> Callable[[str], list[str]]:
    """What a shell offers for a setting: the alternatives of a choice."""

    def offers(incomplete: str) -> list[str]:
        return [text for text in limits(about) if text.startswith(incomplete) and " " not in text]

    return offers


def _help(about: FieldInfo) -> str:
    text = about.description or ""
    allowed = ", ".join(limits(about))
    return f"{text[:1].upper()}{text[1:]}{f' ({allowed})' if allowed else ''}."


def _default_of(name: str, about: FieldInfo) -> str:
    """The field's default, after that of the profile if any profile sets it."""
    default = "" if about.default in (None, ()) else str(about.default).lower()
    by_profile = any(name in row.settings for row in profiles().values())
    return f"the profile's, else {default}" if default and by_profile else default


def _deployment_parameters(names: tuple[str, ...], profile: str) -> list[inspect.Parameter]:
    sets = typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, env.NAME or args.FLAG; repeatable.",
        autocompletion=settings_keys,
    )
    image = typer.Option(
        "--image", metavar="NAME", help="REPOSITORY:TAG, with or without @DIGEST: the image, in place of --image-tag."
    )
    config = typer.Option("--config", metavar="FILE", help="Settings file.", show_default=f"{FILE}, if it exists")
    rows = {name: setting_option(name) for name in names} | {"profile": setting_option("profile", profile)}
    rows |= {"image": Annotated[str | None, image]}
    rows |= {"sets": Annotated[list[str] | None, sets], "config": Annotated[Path | None, config]}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [inspect.Parameter(name, kind, default=None, annotation=row) for name, row in rows.items()]


def resolve_spec(
    flags: Mapping[str, Any],
    *,
    sets: Iterable[str] = (),
    config: Path | None = None,
    default_profile: Callable[[], Profile] = seed,
) -> DeploymentSpec:
    """Options → settings → plan; see `resolve_plan`."""
    return resolve_plan(flags, sets=sets, config=config, default_profile=default_profile).deployment


def resolve_plan(
    flags: Mapping[str, Any],
    *,
    sets: Iterable[str] = (),
    config: Path | None = None,
    default_profile: Callable[[], Profile] = seed,
) -> ResolvedPlan:
    """Options → settings → plan.

    Raises:
        UsageError: a setting is wrong.
        PlanRefused: the settings do not fit the profile's GPU.
    """
    return ResolvedPlan.of(*load_settings(flags, file=config, sets=sets, default_profile=default_profile))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCards:
    """The GPUs of this host and what the planner makes of them."""

    gpus: GpuReport
    host: HostFacts

    def card(self, ranks: int) -> Card | None:
        """The card that an engine of `ranks` GPUs is solved for; None without an NVIDIA GPU or where MIG is on."""
        row = gpu_row(self.gpus, self.host, ranks=ranks)
        return Card(gpu=row, free_bytes=free_bytes(self.gpus.gpus, self.host, row)) if row else None

    def profile(self) -> Profile:
        """The profile for this host's first GPU.

        Raises:
            PlanRefused: there is no NVIDIA GPU, or no profile for it.
        """
        if not self.gpus.gpus:
            raise PlanRefused(
                f"no NVIDIA GPU was found on this host ({self.gpus.trouble})",
                hint="name the host's profile with --profile (see `glm4-deploy profiles`); --profile cpu needs no GPU",
            )
        product, row = self.gpus.gpus[0].name, gpu_row(self.gpus, self.host)
        profile = profile_for(row) if row else None
        if profile is None:
            why = "its memory or compute capability is not known (MIG?)" if row is None else "no profile is made for it"
            hint = "choose the nearest with --profile (see `glm4-deploy profiles`)"
            raise PlanRefused(f"{product!r}: {why}", hint=hint)
        typer.echo(f"profile {profile.name}: this host has {product}", err=True)
        return profile
