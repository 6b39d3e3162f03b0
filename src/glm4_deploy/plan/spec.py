"""(Settings, Profile, memory plan) → Deployment: everything that a rendered file holds, each choice with its reason.

Pure: the same wishes give the same deployment. Layout belongs to the templates, decisions belong here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from glm4_deploy.catalog.rows import (
    Gpu,
    Profile,
    Version,
    default_tag,
    gpus,
    mistaken_variables,
    parse_version,
    repository,
    resolve_version,
    variables,
    vllm_version,
)
from glm4_deploy.errors import PlanRefused, UsageError
from glm4_deploy.plan.engine_rules import WeightFormat, glm4_9b
from glm4_deploy.plan.memory import MemoryPlan, MemoryRequest
from glm4_deploy.plan.services import (
    WITH_KEY,
    Gateway,
    Hardening,
    Monitoring,
    ReplicaSpec,
    RouterSpec,
    gateway,
    harden,
    is_loopback,
    monitoring,
    pinned,
    replicas,
    router,
    service_image,
)
from glm4_deploy.plan.sizing import at, solve
from glm4_deploy.settings import Settings
from glm4_deploy.text import secret_name

# gpu_memory_utilization: the wish held against the memory plan, or the plan's own answer.


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


def memory_request(settings: Settings, profile: Profile, gpu: Gpu) -> MemoryRequest:
    """The settings in the planner's terms."""
    weights = WeightFormat.BF16 if settings.quantization == "none" else WeightFormat.NVFP4
    fraction = settings.gpu_memory_utilization
    return MemoryRequest(
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
    wish = memory_request(settings, profile, gpus()[profile.gpu])
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


def _refused(plan: MemoryPlan, wish: MemoryRequest) -> PlanRefused:
    return PlanRefused(f"this cannot start on {wish.gpu.label}: {plan.refusal}", hint=plan.remedy)


CONTAINER_PORT = 8080
MODELS = "/mnt/models"
CACHE = "/cache"
# What the kit itself decides; an `args` entry for one of these would contradict the file around it.
RESERVED_FLAGS = {
    "model": "model_dir",
    "port": "port",
    "host": "bind",
    "served-model-name": "served_model_name",
    "api-key": "api_key_file (a key in the command line is seen by every user of the host)",
    # The number of GPUs follows from these.
    "tensor-parallel-size": "tensor_parallel_size",
    "data-parallel-size": "data_parallel_size",
}
# One engine over several hosts, or in stages: no file of this kit starts the other parts. A 9B model fits one GPU.
SPREAD_FLAGS = frozenset(
    {
        "pipeline-parallel-size", "nnodes", "node-rank", "master-addr", "master-port", "headless",
        "data-parallel-size-local", "data-parallel-start-rank", "data-parallel-rank", "data-parallel-address",
        "data-parallel-rpc-port",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvVariable:
    """An environment variable and who reads it."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An engine flag; `value` is None for a bare one."""

    name: str
    value: str | None
    note: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """As the engine's command line has it."""
        return (f"--{self.name}",) if self.value is None else (f"--{self.name}", self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """A plan for one engine, or for several that are alike. Paths are POSIX; sizes are Docker's; times are seconds.

    replicas: what differs between the engines; gpus: how many each has. router: None in front of one engine alone.
    """

    profile: str
    summary: str
    engine: str
    project: str
    service: str
    container_name: str
    image: str
    vllm: Version | None
    bind: str
    port: int
    model_dir: str
    model_source: str
    model_target: str
    served_model_name: str
    max_model_len: int
    ipc_host: bool
    shm_size: str
    gpus: int
    replicas: tuple[ReplicaSpec, ...]
    router: RouterSpec | None
    hardening: Hardening
    gateway: Gateway
    monitoring: Monitoring
    ui_image: str
    restart: str
    start_period: int
    environment: tuple[EnvVariable, ...]
    program: tuple[str, ...]
    flags: tuple[Flag, ...]
    reasons: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    router_warnings: tuple[str, ...]
    memory: MemoryPlan | None
    extras: tuple[str, ...] = ()
    watch_port: int = 9109

    @property
    def base_url(self) -> str:
        """Where this host reaches the engine. A wildcard bind is reached through loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.bind, self.bind)  # noqa: S104 (compared, not bound)
        return (
            f"http://[{host}]:{self.port}" if ":" in host and not host.startswith("[") else f"http://{host}:{self.port}"
        )

    @property
    def front(self) -> str:
        """The service that clients in the project's own network talk to."""
        return "router" if self.router else self.service

    @property
    def launcher(self) -> tuple[str, ...]:
        """What stands before the engine's own words: a shell that reads the key, where one is asked for."""
        return ("/bin/sh", "-c", WITH_KEY, "engine") if self.hardening.api_key_file else ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The engine's own command line inside the container, after its launcher."""
        return (*self.program, *(word for flag in self.flags for word in flag.words))


def plan_deployment(settings: Settings, profile: Profile, fraction: Fraction) -> DeploymentSpec:
    """Make the plan.

    Args:
        settings: checked wishes.
        profile: the profile that they were laid over.
        fraction: gpu_memory_utilization as solved or wished.

    Raises:
        UsageError: a model directory that cannot be mounted, or a flag that contradicts a setting.
    """
    directory = _model_directory(settings.model_dir)
    if "ui" in settings.extras and "gateway" not in settings.extras:
        raise UsageError("the chat page (ui) stands behind the gateway", hint="ask for both: --with gateway,ui")
    source, target = str(directory), f"{MODELS}/{directory.name}"
    if settings.mount == "parent":
        source, target = str(directory.parent), MODELS
    return DeploymentSpec(
        profile=profile.name,
        summary=profile.summary,
        engine=profile.engine,
        project=settings.project.lower(),
        service=settings.service,
        container_name=settings.container_name,
        image=pinned(f"{settings.image_repository}:{settings.image_tag}", settings.digests),
        vllm=engine_version(settings, profile),
        bind=settings.bind,
        port=settings.port,
        model_dir=str(directory),
        model_source=source,
        model_target=target,
        served_model_name=settings.served_model_name,
        max_model_len=settings.max_model_len,
        ipc_host=settings.ipc == "host",
        shm_size=settings.shm_size,
        gpus=settings.tensor_parallel_size * settings.data_parallel_size if profile.engine == "nvcr" else 0,
        replicas=replicas(settings, profile),
        router=router(settings),
        hardening=harden(settings, profile),
        gateway=gateway(settings),
        monitoring=monitoring(settings),
        ui_image=service_image("ui", settings),
        restart=settings.restart,
        start_period=settings.start_period,
        environment=_environment(settings, profile),
        program=("python3", "-m", "vllm.entrypoints.openai.api_server"),
        flags=_flags(settings, profile, f"{MODELS}/{directory.name}", fraction),
        reasons=tuple(profile.reasons.items()),
        warnings=tuple(_warnings(settings, profile, fraction)),
        router_warnings=tuple(_of_replicas(settings, profile)),
        memory=fraction.plan,
        extras=settings.extras,
        watch_port=settings.watch_port,
    )


def _model_directory(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if text.startswith("~"):
        raise UsageError(f"model_dir {text!r} begins with ~", hint="write the whole path: Docker does not expand ~")
    if path.name in ("", ".."):
        raise UsageError(f"model_dir {text!r} names no directory", hint="give the checkpoint's own directory")
    return path


def _environment(settings: Settings, profile: Profile) -> tuple[EnvVariable, ...]:
    known = {
        row.name: EnvVariable(name=row.name, value=row.value, note=row.read_by)
        for row in variables().values()
        if profile.engine in row.engines
    }
    for name, value in settings.env.items():
        known[name] = EnvVariable(name=name, value=value, note="asked for in the settings")
    return tuple(known.values())


def _flags(settings: Settings, profile: Profile, model_path: str, fraction: Fraction) -> tuple[Flag, ...]:
    reasons = profile.reasons
    flags = [
        Flag(name="model", value=model_path, note="the checkpoint, as the container sees it"),
        Flag(name="served-model-name", value=settings.served_model_name, note="the name that clients ask for"),
        Flag(name="port", value=str(CONTAINER_PORT), note="inside the container; `ports:` decides who reaches it"),
    ]
    if settings.quantization != "none":
        flags.append(Flag(name="quantization", value=settings.quantization))
    flags += [
        Flag(name="kv-cache-dtype", value=settings.kv_cache_dtype, note=reasons.get("kv_cache_dtype", "")),
        Flag(name="max-model-len", value=str(settings.max_model_len), note=reasons.get("max_model_len", "")),
        Flag(name="max-num-seqs", value=str(settings.max_num_seqs), note=reasons.get("max_num_seqs", "")),
    ]
    if fraction.value is not None:
        flags.append(Flag(name="gpu-memory-utilization", value=f"{fraction.value:g}", note=fraction.reason))
    if settings.max_num_batched_tokens is not None:
        flags.append(Flag(name="max-num-batched-tokens", value=str(settings.max_num_batched_tokens)))
    if settings.tensor_parallel_size > 1:
        flags.append(Flag(name="tensor-parallel-size", value=str(settings.tensor_parallel_size)))
    if settings.data_parallel_size > 1:
        flags.append(Flag(name="data-parallel-size", value=str(settings.data_parallel_size)))
    if settings.enforce_eager:
        flags.append(Flag(name="enforce-eager", value=None, note=reasons.get("enforce_eager", "")))
    named = {flag.name: flag for flag in flags}
    for name, value in settings.args.items():
        if name in RESERVED_FLAGS:
            raise UsageError(f"args.{name} would contradict the file", hint=f"set {RESERVED_FLAGS[name]} instead")
        if name in SPREAD_FLAGS:
            raise UsageError(
                f"args.{name} spreads one engine over hosts or stages, which no target here can express",
                hint="ask for more engines: replicas (docs/how-to/targets.md says why)",
            )
        named[name] = Flag(name=name, value=_flag_value(value), note="asked for in the settings")
    return tuple(named.values())


def _flag_value(value: object) -> str | None:
    if value is None or value is True:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _warnings(settings: Settings, profile: Profile, fraction: Fraction) -> Iterator[str]:
    if fraction.warning:
        yield fraction.warning
    for name, meant in mistaken_variables().items():
        if name in settings.env:
            yield f"env.{name}: nothing reads this name; {meant} is meant, and the kit sets it already"
    if not is_loopback(settings.bind):
        yield f"bind {settings.bind}: every machine that reaches this host can use the engine{_without_key(settings)}"
    if "gateway" in settings.extras and not settings.api_key_file:
        yield "gateway without api_key_file: other containers of this project reach the engine without a key"
    if "VLLM_API_KEY" in settings.env:
        yield "env.VLLM_API_KEY stands in the file and in `docker inspect`: set api_key_file instead"
    for name in settings.env:
        if secret_name(name) and name != "VLLM_API_KEY":
            yield f"env.{name}: its value stands in the file, in every copy of it, and in `docker inspect`"
    if profile.engine == "nvcr" and engine_version(settings, profile) is None:
        yield f"image {settings.image_repository}:{settings.image_tag} is not in the catalog: what it reads is unknown"
    if "trust-remote-code" in settings.args:
        yield "args.trust-remote-code runs code from the checkpoint; GLM-4-9B-chat-hf does not need it"


def _of_replicas(settings: Settings, profile: Profile) -> Iterator[str]:
    """What is true of several engines on one host; a cluster has neither this router nor one host."""
    if settings.replicas == 1:
        return
    yield "replicas: who reaches the router's port on this host can add an engine of their own to it (/add_worker)"
    if profile.gpu and gpus()[profile.gpu].unified:
        yield f"replicas {settings.replicas}: a host of the profile {profile.name} is known with one GPU"


def _without_key(settings: Settings) -> str:
    """Even with a key vLLM guards /v1 alone: /metrics, /tokenize, /invocations and more stay open."""
    open_paths = "/metrics, /tokenize and others ask for no key: use the gateway (--with gateway)"
    return f"; {open_paths}" if settings.api_key_file else f", and no key is asked for: set api_key_file; {open_paths}"
