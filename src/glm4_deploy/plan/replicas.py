"""(Settings, Profile) → the engines of one host, each on its own devices, and the router in front of several."""

from dataclasses import dataclass

from glm4_deploy.catalog import load
from glm4_deploy.catalog.profiles import Profile
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.hardening import is_loopback
from glm4_deploy.settings import Settings

# The image's or CUDA's own choice of devices is made inside of each container: all replicas would make the same one.
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
DNS_LABEL = 63  # characters (RFC 1035)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One engine. devices: GPU ids as Docker takes them, () where the container may choose (or has none).

    cache: the name of its volume. Two engines that compile at once must not read each other's half-written files.
    """

    service: str
    container_name: str
    cache: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """vLLM's router. wheels: the SHA-256 sums of its wheel, one a machine; base: the image it is put into.

    balance: requests that one replica may have more than another before load counts more than a cached prefix.
    """

    image: str
    base: str
    version: str
    wheels: tuple[str, ...]
    container_name: str
    balance: int


def replicas(settings: Settings, profile: Profile) -> tuple[Replica, ...]:
    """The engines, in order; one alone has the plain names.

    Raises:
        UsageError: fewer devices than are needed, or a setting that several engines cannot share.
    """
    each = settings.tensor_parallel_size * settings.data_parallel_size
    _check_devices(settings, profile, each)
    if settings.replicas == 1:
        alone = {"service": settings.service, "container_name": settings.container_name, "cache": "cache"}
        return (Replica(**alone, devices=settings.devices[:each]),)
    _refuse(settings)
    names = () if profile.engine != "nvcr" else settings.devices or tuple(map(str, range(settings.replicas * each)))
    return tuple(
        Replica(
            service=f"{settings.service}-{number + 1}",
            container_name=f"{settings.container_name}-{number + 1}",
            cache=f"cache-{number + 1}",
            devices=names[number * each : (number + 1) * each],
        )
        for number in range(settings.replicas)
    )


def router(settings: Settings) -> Router | None:
    """What stands in front of several engines; one alone needs nothing."""
    if settings.replicas == 1:
        return None
    row = load("services")["router"]
    return Router(
        image=f"{row['repository']}:{row['version']}",
        base=row["base"],
        version=row["version"],
        wheels=tuple(row["wheels"].values()),
        container_name=f"{settings.container_name}-router",
        balance=max(1, settings.max_num_seqs // 8),
    )


def _check_devices(settings: Settings, profile: Profile, each: int) -> None:
    if not settings.devices:
        return
    needed = settings.replicas * each
    if profile.engine != "nvcr":
        raise UsageError(f"devices: the profile {profile.name} uses no GPU", hint="leave devices out")
    if len(settings.devices) < needed:
        raise UsageError(
            f"devices names {len(settings.devices)}, but {settings.replicas} replicas of {each} GPU(s) need {needed}",
            hint="name more devices, or ask for fewer replicas",
        )


def _refuse(settings: Settings) -> None:
    longest = f"{settings.service}-{settings.replicas}"
    if len(longest) > DNS_LABEL:
        raise UsageError(
            f"the name of a service, {longest}, has {len(longest)} characters: the router finds engines by it, and a "
            f"name server knows {DNS_LABEL} at the most",
            hint="give a shorter one: --set service=NAME",
        )
    for name in DEVICE_VARIABLES:
        if name in settings.env:
            raise UsageError(
                f"env.{name} with replicas {settings.replicas}: every replica would take the same devices",
                hint="name the devices instead: --set devices=0,1",
            )
    if "watch" in settings.extras:
        raise UsageError(
            f"--with watch does not go with replicas {settings.replicas}",
            hint="it judges the counters of one engine, and the router has none: run `glm4-deploy watch` on an "
            "engine's own address (docs/how-to/replicas.md)",
        )
    if not is_loopback(settings.bind):
        raise UsageError(
            f"bind {settings.bind} with replicas {settings.replicas}: the router takes new engines from whoever "
            "reaches its port (/add_worker), and would send them the requests and their keys",
            hint="leave bind at 127.0.0.1 and open the gateway instead: --with gateway, gateway_bind",
        )
