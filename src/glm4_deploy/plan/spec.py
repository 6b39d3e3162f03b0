"""(Settings, Profile, memory plan) → DeploymentSpec: everything that a rendered file contains, with the reasons.

Pure: the same settings give the same specification. Decisions are made here; the templates only lay them out.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from glm4_deploy.catalog.changes import flag_trouble, successor, value_from, variable_trouble
from glm4_deploy.catalog.images import CommandShape, EngineImage, default_image
from glm4_deploy.catalog.rows import (
    Gpu,
    Profile,
    Version,
    gpus,
    mistaken_variables,
    variables,
)
from glm4_deploy.errors import PlanRefused, UsageError
from glm4_deploy.plan.engine_rules import OLDEST, TOOLS_FROM, WeightFormat, glm4_9b
from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.plan.image import engine_image, engine_version, program_words, python_words
from glm4_deploy.plan.memory import MemoryPlan
from glm4_deploy.plan.services import (
    WITH_KEY,
    Gateway,
    Hardening,
    Monitoring,
    ReplicaSpec,
    Restart,
    RouterSpec,
    cache_key,
    gateway,
    harden,
    is_internal,
    is_loopback,
    monitoring,
    replicas,
    restart,
    router,
    service_image,
)
from glm4_deploy.plan.sizing import at, solve
from glm4_deploy.settings import Settings
from glm4_deploy.text import secret_name, without_secrets

# gpu_memory_utilization: the value requested, checked by the memory planner, or the value that it solved for.


@dataclass(frozen=True, slots=True, kw_only=True)
class Fraction:
    """The gpu_memory_utilization that goes into the file.

    Attributes:
        value: None where the engine has no such flag (CPU).
        plan: what the engine's memory is used for at that value; None without a value.
    """

    value: float | None
    unified: bool = False
    reason: str = ""
    warning: str = ""
    plan: MemoryPlan | None = None


def assumed_version() -> Version:
    """The vLLM that an image of unknown version is planned as: that of the default image."""
    return default_image().vllm or OLDEST


def memory_request(settings: Settings, profile: Profile, gpu: Gpu) -> MemoryRequest:
    """The settings as a request to the memory planner."""
    weights = WeightFormat.BF16 if settings.quantization == "none" else WeightFormat.NVFP4
    fraction = settings.gpu_memory_utilization
    return MemoryRequest(
        gpu=gpu,
        model=glm4_9b(weights),
        vllm=engine_version(settings) or assumed_version(),
        gpu_memory_utilization=fraction if isinstance(fraction, float) else 0.5,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_dtype=settings.kv_cache_dtype,
        enforce_eager=settings.enforce_eager,
        tensor_parallel_size=settings.tensor_parallel_size,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The card of a host. free_bytes: what an engine would find free; None if not known."""

    gpu: Gpu
    free_bytes: int | None = None

    @property
    def label(self) -> str:
        free = "" if self.free_bytes is None else f", {self.free_bytes / 2**30:.1f} free"
        return f"{self.gpu.label} ({self.gpu.total_bytes / 2**30:.1f} GiB{free})"


def choose_fraction(settings: Settings, profile: Profile, card: Card | None = None) -> Fraction:
    """The fraction for the host's card, else for the profile's GPU.

    Raises:
        PlanRefused: the engine could not start on that GPU, not even at the optimistic end of the error range.
    """
    if profile.gpu is None:
        return Fraction(value=None)
    request = memory_request(settings, profile, card.gpu if card else gpus()[profile.gpu])
    request = replace(request, free_bytes=card.free_bytes if card else None)
    if settings.gpu_memory_utilization == "auto":
        solution = solve(request, host_reserve_gib=settings.host_reserve_gib)
        if not solution.plan.fits:
            raise _refused(solution.plan, request)
        reason = f"solved for {card.label if card else request.gpu.label}: {solution.reason}"
        return Fraction(value=solution.fraction, reason=reason, plan=solution.plan, unified=request.gpu.unified)
    requested = settings.gpu_memory_utilization
    plan = at(request, requested)
    from_profile = profile.settings.get("gpu_memory_utilization") == requested
    reason = profile.reasons.get("gpu_memory_utilization", "") if from_profile else "as configured"
    if plan.fits:
        return Fraction(value=requested, reason=reason, plan=plan, unified=request.gpu.unified)
    # The seed profile is for any Blackwell GPU: its GPU is only the most likely one, so it cannot justify a refusal.
    if (profile.name == "seed" and card is None) or plan.kv_cache_gib + plan.error_range_gib > 0:
        warning = f"on {request.gpu.label}: {plan.refusal}; {plan.remedy}"
        return Fraction(value=requested, reason=reason, warning=warning, plan=plan, unified=request.gpu.unified)
    raise _refused(plan, request)


def _refused(plan: MemoryPlan, request: MemoryRequest) -> PlanRefused:
    message = f"the engine cannot start on {request.gpu.label} with these settings: {plan.refusal}"
    return PlanRefused(message, hint=plan.remedy)


CONTAINER_PORT = 8080
MODELS = "/mnt/models"
CACHE = "/cache"
# What an engine needs for tool calls, as files of templates/tools/: flag → file. They are mounted in TOOLS.
TOOLS = "/mnt/tools"
TOOL_FILES = {"tool-parser-plugin": "glm4_tool_parser.py", "chat-template": "glm4_chat_template.jinja"}
# Flags that the kit sets itself, with the setting that decides each; an `args` entry would contradict the file.
RESERVED_FLAGS = {
    "model": "model_dir",
    "port": "port",
    "host": "bind",
    "served-model-name": "served_model_name",
    "api-key": "api_key_file (every user of the host can see a key on the command line)",
    # The number of GPUs follows from these.
    "tensor-parallel-size": "tensor_parallel_size",
    "data-parallel-size": "data_parallel_size",
}
# One engine over several hosts or pipeline stages: no target of this kit starts the other parts (a 9B model fits on
# one GPU).
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
    """An engine flag; `value` is None for a flag without a value. positional: only the value is written."""

    name: str
    value: str | None
    note: str = ""
    positional: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The flag as words of the engine's command line."""
        if self.positional and self.value is not None:
            return (self.value,)
        return (f"--{self.name}",) if self.value is None else (f"--{self.name}", self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """The plan for one engine, or for several identical ones. Paths are POSIX, sizes Docker's, times in seconds.

    Attributes:
        settings: a digest of the settings, without secrets.
        gpus: number of GPUs of each engine.
        keeps_entrypoint: whether the image's entrypoint runs the command; otherwise `program` takes its place.
        program: what starts the server, before its arguments.
        python: what runs Python 3 in the container.
        replicas: what differs between the engines.
        router: None in front of a single engine.
        internal: whether the engine is only on a network without a way out, and publishes no port.
        tool_files: names of the files that go beside the rendered one, in `tools/`, and are mounted in TOOLS.
    """

    profile: str
    summary: str
    settings: str
    engine: str
    project: str
    service: str
    container_name: str
    image: str
    keeps_entrypoint: bool
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
    internal: bool
    hardening: Hardening
    gateway: Gateway
    monitoring: Monitoring
    ui_image: str
    ui_admin: str
    restart: Restart
    start_period: int
    environment: tuple[EnvVariable, ...]
    program: tuple[str, ...]
    python: tuple[str, ...]
    flags: tuple[Flag, ...]
    reasons: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    router_warnings: tuple[str, ...]
    memory: MemoryPlan | None
    host_reserve_gib: float | None = None  # None: the GPU has its own memory
    extras: tuple[str, ...] = ()
    overridable: bool = False
    watch_port: int = 9109
    notify_file: str | None = None
    guard_mode: str = "observe"
    guard_mode_for: tuple[str, ...] = ()  # WHAT=MODE
    guard_repetition_detection: str | None = None  # max_pattern_size,min_count
    guard_refuse_below_gib: float | None = None
    tool_files: tuple[str, ...] = ()

    @property
    def base_url(self) -> str:
        """The engine's URL on this host. A wildcard bind is reached through loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.bind, self.bind)  # noqa: S104 (compared, not bound)
        return (
            f"http://[{host}]:{self.port}" if ":" in host and not host.startswith("[") else f"http://{host}:{self.port}"
        )

    def volume_of(self, replica: ReplicaSpec) -> str:
        """The name of a replica's cache volume, as far as a file can know what fills it: this image."""
        return f"{self.project}_{replica.cache}-{cache_key(self.image)}"

    @property
    def front(self) -> str:
        """The service that clients in the Compose project's network talk to."""
        return "guard" if "guard" in self.extras else self.served_by

    @property
    def served_by(self) -> str:
        """The service that answers: the router, or the engine."""
        return "router" if self.router else self.service

    @property
    def through_gateway(self) -> bool:
        """Whether the gateway publishes the engine's own port."""
        return self.internal and self.router is None

    @property
    def launcher(self) -> tuple[str, ...]:
        """What precedes the engine's command: a shell that reads the API key, if there is one."""
        return ("/bin/sh", "-c", WITH_KEY, "engine") if self.hardening.api_key_file else ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the server is started with, after its program."""
        return tuple(word for flag in self.flags for word in flag.words)

    @property
    def argv(self) -> tuple[str, ...]:
        """The engine's command line inside the container, after its launcher."""
        return (*self.program, *self.arguments)


def settings_digest(settings: Settings) -> str:
    """12 hexadecimal digits that differ where the settings differ from their defaults; secrets do not count."""
    text = json.dumps(without_secrets(settings.model_dump(mode="json", exclude_defaults=True)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan_deployment(settings: Settings, profile: Profile, fraction: Fraction) -> DeploymentSpec:
    """Decide everything that the rendered files contain.

    Args:
        settings: validated settings.
        profile: the profile that they were merged with.
        fraction: gpu_memory_utilization, as solved or as configured.

    Raises:
        UsageError: the model directory cannot be mounted, a flag contradicts a setting, or this vLLM does not know a
            value.
    """
    _check_kv_cache_dtype(settings, engine_version(settings))
    directory = _model_directory(settings.model_dir)
    if "ui" in settings.extras and "gateway" not in settings.extras:
        raise UsageError("the chat page (ui) needs the gateway in front of it", hint="add both: --with gateway,ui")
    if "guard" in settings.extras and "gateway" not in settings.extras:
        raise UsageError(
            "the guard publishes no port: it needs the gateway in front of it",
            hint="add both: --with gateway,guard; or run `glm4-deploy guard` on this host",
        )
    image = engine_image(settings)
    environment = _environment(settings, profile)
    source, target = str(directory), f"{MODELS}/{directory.name}"
    if settings.mount == "parent":
        source, target = str(directory.parent), MODELS
    return DeploymentSpec(
        profile=profile.name,
        summary=profile.summary,
        settings=settings_digest(settings),
        engine=profile.engine,
        project=settings.project.lower(),
        service=settings.service,
        container_name=settings.container_name,
        image=settings.pinned_image,
        keeps_entrypoint=image.command is CommandShape.PROGRAM,
        vllm=image.vllm,
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
        internal=is_internal(settings, {variable.name: variable.value for variable in environment}),
        hardening=harden(settings, profile),
        gateway=gateway(settings),
        monitoring=monitoring(settings),
        ui_image=service_image("ui", settings),
        ui_admin=settings.ui_admin,
        restart=restart(settings),
        start_period=settings.start_period,
        environment=environment,
        program=program_words(image),
        python=python_words(image),
        flags=_flags(settings, profile, image, f"{MODELS}/{directory.name}", fraction),
        reasons=tuple(profile.reasons.items()),
        warnings=tuple(_warnings(settings, profile, fraction)),
        router_warnings=tuple(_router_warnings(settings, profile)),
        memory=fraction.plan,
        host_reserve_gib=settings.host_reserve_gib if fraction.unified else None,
        extras=settings.extras,
        overridable=settings.overridable,
        watch_port=settings.watch_port,
        notify_file=settings.notify_file,
        guard_mode=settings.guard_mode,
        guard_mode_for=tuple(f"{what}={mode}" for what, mode in settings.guard_mode_for.items()),
        guard_repetition_detection=settings.guard_repetition_detection,
        guard_refuse_below_gib=settings.guard_refuse_below_gib,
        tool_files=tuple(TOOL_FILES.values()) if settings.tools else (),
    )


def _check_kv_cache_dtype(settings: Settings, version: Version | None) -> None:
    since = value_from("kv-cache-dtype", settings.kv_cache_dtype)
    if version is not None and since is not None and version < since:
        raise UsageError(
            f"kv_cache_dtype {settings.kv_cache_dtype}: vLLM {'.'.join(map(str, version))} does not know it "
            f"({'.'.join(map(str, since))} is the first that does)",
            hint="auto keeps the KV cache in the model's own type, which is bfloat16 for GLM-4",
        )


def _model_directory(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if text.startswith("~"):
        raise UsageError(f"model_dir {text!r} begins with ~", hint="write the full path: Docker does not expand ~")
    if path.name in ("", ".."):
        raise UsageError(f"model_dir {text!r} does not name a directory", hint="give the checkpoint's directory")
    return path


def _environment(settings: Settings, profile: Profile) -> tuple[EnvVariable, ...]:
    known = {
        row.name: EnvVariable(name=row.name, value=row.value, note=row.read_by)
        for row in variables().values()
        if profile.engine in row.engines
    }
    version = engine_version(settings)
    for name, value in settings.env.items():
        if version is None or successor(name, value, version) is None:
            known[name] = EnvVariable(name=name, value=value, note="from the settings")
    return tuple(known.values())


def _flags(
    settings: Settings, profile: Profile, image: EngineImage, model_path: str, fraction: Fraction
) -> tuple[Flag, ...]:
    reasons = profile.reasons
    served = program_words(image)[-1] == "serve"  # which warns about --model
    note = "the checkpoint, as the container sees it"
    flags = [
        Flag(name="model", value=model_path, note=note, positional=served),
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
    if settings.kv_cache_memory_bytes is not None:
        if image.vllm is not None and (trouble := flag_trouble("kv-cache-memory-bytes", image.vllm)):
            raise UsageError(f"--kv-cache-memory-bytes: {trouble}", hint="leave kv_cache_memory_bytes out")
        note = "exact: the engine does not profile, so its neighbours do not count"
        flags.append(Flag(name="kv-cache-memory-bytes", value=str(settings.kv_cache_memory_bytes), note=note))
    if settings.max_num_batched_tokens is not None:
        flags.append(Flag(name="max-num-batched-tokens", value=str(settings.max_num_batched_tokens)))
    if settings.tensor_parallel_size > 1:
        flags.append(Flag(name="tensor-parallel-size", value=str(settings.tensor_parallel_size)))
    if settings.data_parallel_size > 1:
        flags.append(Flag(name="data-parallel-size", value=str(settings.data_parallel_size)))
    if settings.enforce_eager:
        flags.append(Flag(name="enforce-eager", value=None, note=reasons.get("enforce_eager", "")))
    if settings.tools:
        flags += _tool_flags()
    named = {flag.name: flag for flag in (*flags, *_successors(settings, image.vllm))}
    for name, value in settings.args.items():
        if name in RESERVED_FLAGS:
            raise UsageError(
                f"args.{name} would contradict the rest of the file", hint=f"set {RESERVED_FLAGS[name]} instead"
            )
        if name in SPREAD_FLAGS:
            raise UsageError(
                f"args.{name} spreads one engine over hosts or stages, which no target here can express",
                hint="run more engines instead: set replicas (docs/how-to/targets.md explains why)",
            )
        named[name] = Flag(name=name, value=_flag_value(value), note="from the settings")
    return tuple(named.values())


def _successors(settings: Settings, version: Version | None) -> Iterator[Flag]:
    """Flags in the place of variables that this vLLM no longer reads."""
    for name, value in settings.env.items():
        if version is not None and (now := successor(name, value, version)):
            yield Flag(name=now[0], value=now[1], note=f"from env.{name}, which this vLLM no longer reads")


def _tool_flags() -> Iterator[Flag]:
    yield Flag(name="enable-auto-tool-choice", value=None, note="the model decides whether it calls a function")
    yield Flag(name="tool-call-parser", value="glm4", note="registered by the plugin; vLLM's own are for other forms")
    for name, file in TOOL_FILES.items():
        yield Flag(name=name, value=f"{TOOLS}/{file}")


def _flag_value(value: object) -> str | None:
    if value is None or value is True:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _warnings(settings: Settings, profile: Profile, fraction: Fraction) -> Iterator[str]:
    if fraction.warning:
        yield fraction.warning
    for name, meant in mistaken_variables().items():
        if name in settings.env:
            yield f"env.{name}: nothing reads this variable; the right name is {meant}, and the kit sets it already"
    if not is_loopback(settings.bind):
        yield f"bind {settings.bind}: every machine that can reach this host can use the engine{_without_key(settings)}"
    if "gateway" in settings.extras and not settings.api_key_file:
        yield "gateway without api_key_file: other containers of this project can reach the engine without a key"
    if "VLLM_API_KEY" in settings.env:
        yield "env.VLLM_API_KEY is visible in the file and in `docker inspect`: set api_key_file instead"
    for name in settings.env:
        if secret_name(name) and name != "VLLM_API_KEY":
            yield f"env.{name}: its value is visible in the file, in every copy of it, and in `docker inspect`"
    if profile.engine == "nvcr" and engine_version(settings) is None:
        assumed = ".".join(map(str, assumed_version()))
        yield f"image {settings.image} is not in the catalog: planned as vLLM {assumed}; if not, set image_vllm"
    version = engine_version(settings)
    if settings.tools and version is not None and version < TOOLS_FROM:
        yield f"tools: the tool parser was not tried with a vLLM before {'.'.join(map(str, TOOLS_FROM))}"
    if version is not None:
        yield from _version_warnings(settings, version)
    if "trust-remote-code" in settings.args:
        yield "args.trust-remote-code runs code from the checkpoint; GLM-4-9B-chat-hf does not need it"


def _version_warnings(settings: Settings, version: Version) -> Iterator[str]:
    for name, value in settings.env.items():
        if now := successor(name, value, version):
            yield f"env.{name}: vLLM {'.'.join(map(str, version))} no longer reads it; rendered as --{now[0]} {now[1]}"
        elif trouble := variable_trouble(name, version):
            yield f"env.{name}: {trouble}"
    for name in settings.args:
        if trouble := flag_trouble(name, version):
            yield f"args.{name}: {trouble}"


def _router_warnings(settings: Settings, profile: Profile) -> Iterator[str]:
    """Warnings about several engines on one host; a Kubernetes cluster has neither this router nor a single host."""
    if settings.replicas == 1:
        return
    yield "replicas: anyone who can reach the router's port on this host can add an engine to it (/add_worker)"
    if profile.gpu and gpus()[profile.gpu].unified:
        yield f"replicas {settings.replicas}: a host of the profile {profile.name} normally has one GPU"


def _without_key(settings: Settings) -> str:
    """Even with a key, vLLM protects only /v1: /metrics, /tokenize, /invocations and others stay open."""
    open_paths = "/metrics, /tokenize and others need no key: use the gateway (--with gateway)"
    return f"; {open_paths}" if settings.api_key_file else f", and it needs no key: set api_key_file; {open_paths}"
