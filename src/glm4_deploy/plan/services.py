"""What surrounds the engine's command line: services, container limits, replicas and their router."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from glm4_deploy.catalog.rows import Profile, load_catalog
from glm4_deploy.errors import UsageError
from glm4_deploy.settings import Settings

# Services that run next to the engine. Their images are pinned in services.yaml.


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """host: the name in the certificate. published: the host address of its ports. body_limit: in Caddy's form."""

    image: str
    host: str
    published: str
    port: int
    ui_port: int
    tls: str
    body_limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitoring:
    """Images and host ports. gpu_exporter: host:port of an exporter of NVIDIA metrics; None if there is none."""

    prometheus: str
    node_exporter: str
    grafana: str
    prometheus_port: int
    grafana_port: int
    gpu_exporter: str | None


def monitoring(settings: Settings) -> Monitoring:
    return Monitoring(
        prometheus=service_image("prometheus", settings),
        node_exporter=service_image("node-exporter", settings),
        grafana=service_image("grafana", settings),
        prometheus_port=settings.prometheus_port,
        grafana_port=settings.grafana_port,
        gpu_exporter=settings.gpu_exporter,
    )


def gateway(settings: Settings) -> Gateway:
    return Gateway(
        image=service_image("caddy", settings),
        host=settings.gateway_host,
        published=f"[{settings.gateway_bind}]" if ":" in settings.gateway_bind else settings.gateway_bind,
        port=settings.gateway_port,
        ui_port=settings.gateway_ui_port,
        tls=settings.gateway_tls,
        body_limit=settings.gateway_body_limit,
    )


def pinned(reference: str, digests: Mapping[str, str]) -> str:
    """`repository:tag`, with its digest if `glm4-deploy lock` recorded one."""
    return f"{reference}@{digests[reference]}" if reference in digests else reference


# A kernel cache that another image filled can corrupt answers, and survives a return to the image before it
# (vllm#41871, #42859; vllm#43119: an autotuner's file named invalid kernels). So each image has its own cache.

KEY_LENGTH = 80  # characters; a volume's name is also a directory's


def cache_key(reference: str) -> str:
    """What distinguishes the cache of one image from another's: the digest in the reference, else the full name.

    Only letters, digits, `.`, `_` and `-`.
    """
    digest = re.search(r"@sha256:([0-9a-f]{12})", reference)
    if digest:
        return digest[1]
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", reference).strip("-.")
    if len(slug) <= KEY_LENGTH:
        return slug
    return f"{slug[-KEY_LENGTH + 13 :].strip('-.')}-{hashlib.sha256(reference.encode()).hexdigest()[:12]}"


def service_image(name: str, settings: Settings) -> str:
    """A row of services.yaml as an image reference."""
    row = load_catalog("services")["images"][name]
    return pinned(f"{row['repository']}:{row['tag']}", settings.digests)


def references(engine: str, extras: Iterable[str]) -> tuple[str, ...]:
    """Every `repository:tag` in a deployment, without digests; an engine that only a digest names is left out."""
    used = {"gateway": ("caddy",), "monitoring": ("prometheus", "node-exporter", "grafana"), "ui": ("ui",)}
    rows = load_catalog("services")["images"]
    names = [name for extra in extras for name in used.get(extra, ())]
    name, _, _ = engine.partition("@")
    tagged = (name,) if ":" in name.rpartition("/")[2] else ()
    return (*tagged, *(f"{rows[name]['repository']}:{rows[name]['tag']}" for name in names))


# What the engine's container may not do, and why each limit is on or off.

SECRET = "engine_api_key"  # noqa: S105 (a name, not a secret)
SECRET_PATH = f"/run/secrets/{SECRET}"
# The key goes from the file only into the environment of the engine's process: `docker inspect` shows the file name,
# `ps` shows "$@". vLLM would read an empty key as no key, so that is an error.
WITH_KEY = (
    f'VLLM_API_KEY=$(cat {SECRET_PATH}) && [ -n "$VLLM_API_KEY" ] || '
    '{ echo "the API key file is empty or cannot be read" >&2; exit 78; }; export VLLM_API_KEY; exec "$@"'
)
# Docker's own `on-failure:N` counts for as long as the container exists, hardly waits, and after a clean reboot starts
# only what had ended with an error; vLLM ends with 0. So Docker gets a plain `on-failure`, and templates/restart.sh.j2
# counts, waits, and tells Docker how the engine ended.
GAVE_UP = "glm4-deploy: gave up after"
WINDOW_S = 7200


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """How the engine is started again.

    Attributes:
        policy: Docker's: no, on-failure, unless-stopped or always.
        ceiling: restarts within window_s (seconds) after which it is given up; 0: no ceiling.
    """

    policy: str
    ceiling: int
    window_s: int

    @property
    def beside(self) -> str:
        """Docker's policy for the services beside the engine: they end with 0 when asked to, and hold no GPU."""
        return "unless-stopped" if self.policy == "on-failure" else self.policy


def restart(settings: Settings) -> Restart:
    policy, _, number = settings.restart.partition(":")
    ceiling = int(number or 0)
    # Long enough for every start of a slow engine to fall into it.
    return Restart(policy=policy, ceiling=ceiling, window_s=max(WINDOW_S, 2 * settings.start_period * (ceiling + 1)))


UNVERIFIED = "not verified with NVIDIA's image: its entrypoint and compilers may write outside the cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardening:
    """Limits of the engine's container. off: why a limit is not set, as (Compose key, reason).

    mem_limit: a size in Docker's form. cpus: how many, as text. user: UID or UID:GID. api_key_file: path on the host;
    None: no key is required.
    """

    cap_drop: bool
    no_new_privileges: bool
    read_only: bool
    pids_limit: int | None
    mem_limit: str | None
    cpus: str | None
    user: str | None
    api_key_file: str | None
    off: tuple[tuple[str, str], ...]


def harden(settings: Settings, profile: Profile) -> Hardening:
    """The configured limits, with a reason for each one that is off."""
    return Hardening(
        cap_drop=settings.cap_drop,
        no_new_privileges=settings.no_new_privileges,
        read_only=settings.read_only,
        pids_limit=settings.pids_limit,
        mem_limit=settings.mem_limit,
        cpus=None if settings.cpus is None else f"{settings.cpus:g}",
        user=settings.user,
        api_key_file=settings.api_key_file,
        off=tuple(_off(settings, profile)),
    )


def _off(settings: Settings, profile: Profile) -> Iterator[tuple[str, str]]:
    chosen = f"switched off in the {'profile' if profile.name == 'seed' else 'settings'}"
    reasons = {
        "cap_drop": chosen,
        "no_new_privileges": chosen,
        "read_only": UNVERIFIED if profile.engine == "nvcr" else chosen,
        "pids_limit": chosen,
        "mem_limit": "pinned memory, the page cache of the weights and, on unified memory, the GPU's share would "
        "count; the planner limits memory instead",
        "cpus": "a scheduler that is held back makes every answer late",
        "user": "root without capabilities: the cache volume belongs to root, and NVIDIA's image was not verified "
        "with another user",
    }
    for name, reason in reasons.items():
        if not getattr(settings, name):
            yield name, reason


HUB_TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # huggingface_hub 0.36, constants.py: ENV_VARS_TRUE_VALUES


def is_internal(settings: Settings, variables: Mapping[str, str]) -> bool:
    """Whether the engine's network has no way out.

    That needs another service to publish its port, since Docker publishes none of a container that is only on an
    internal network (moby#36174), and an engine that fetches nothing. variables: those of the engine.
    """
    fronted = settings.replicas > 1 or "gateway" in settings.extras
    return fronted and not settings.egress and variables.get("HF_HUB_OFFLINE", "").upper() in HUB_TRUE


def is_loopback(bind: str) -> bool:
    return bind == "::1" or bind.startswith("127.")


# The image and CUDA choose devices inside each container, so all replicas would choose the same ones.
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
DNS_LABEL = 63  # characters (RFC 1035)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One engine. devices: GPU ids for Docker; () if the container may choose, or has none.

    cache: the name of its volume. Engines that compile at the same time must not read each other's unfinished files.
    """

    service: str
    container_name: str
    cache: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """vLLM's router. wheels: the SHA-256 sums of its wheel, one per architecture. base: the image to install it in.

    balance: how many more requests one replica may have than another before load outweighs a cached prefix.
    """

    image: str
    base: str
    version: str
    wheels: tuple[str, ...]
    container_name: str
    balance: int


def replicas(settings: Settings, profile: Profile) -> tuple[ReplicaSpec, ...]:
    """The engines in order; a single one has the plain names.

    Raises:
        UsageError: too few devices, or a setting that several engines cannot share.
    """
    each = settings.tensor_parallel_size * settings.data_parallel_size
    _check_devices(settings, profile, each)
    if settings.replicas == 1:
        alone = {"service": settings.service, "container_name": settings.container_name, "cache": "cache"}
        return (ReplicaSpec(**alone, devices=settings.devices[:each]),)
    _refuse(settings)
    names = () if profile.engine != "nvcr" else settings.devices or tuple(map(str, range(settings.replicas * each)))
    return tuple(
        ReplicaSpec(
            service=f"{settings.service}-{number + 1}",
            container_name=f"{settings.container_name}-{number + 1}",
            cache=f"cache-{number + 1}",
            devices=names[number * each : (number + 1) * each],
        )
        for number in range(settings.replicas)
    )


def router(settings: Settings) -> RouterSpec | None:
    """The router in front of several engines; None for a single one."""
    if settings.replicas == 1:
        return None
    row = load_catalog("services")["router"]
    return RouterSpec(
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
            hint="name more devices, or use fewer replicas",
        )


def _refuse(settings: Settings) -> None:
    longest = f"{settings.service}-{settings.replicas}"
    if len(longest) > DNS_LABEL:
        raise UsageError(
            f"the service name {longest} has {len(longest)} characters: the router resolves engines by it, and a "
            f"DNS label has at most {DNS_LABEL}",
            hint="choose a shorter one: --set service=NAME",
        )
    for name in DEVICE_VARIABLES:
        if name in settings.env:
            raise UsageError(
                f"env.{name} with replicas {settings.replicas}: every replica would use the same devices",
                hint="name the devices instead: --set devices=0,1",
            )
    if not is_loopback(settings.bind):
        raise UsageError(
            f"bind {settings.bind} with replicas {settings.replicas}: the router accepts new engines from anyone "
            "who reaches its port (/add_worker), and would send them the requests and their keys",
            hint="leave bind at 127.0.0.1 and publish the gateway instead: --with gateway, gateway_bind",
        )
