"""The settings, merged and validated: flags > GLM4_* > .env > files > profile > default. May import `catalog`.

The layers are merged here rather than by pydantic-settings, which cannot put a profile below the file or name the layer
of an invalid value, and whose import would make `render` 1.5 times as slow (docs/lab/cli.md).
"""

import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from glm4_deploy.catalog.images import CommandShape, default_tag, repository
from glm4_deploy.catalog.rows import Profile, profiles
from glm4_deploy.errors import UsageError
from glm4_deploy.files import parse_yaml, write_text
from glm4_deploy.text import CONTROLS, MASK, did_you_mean, redact, secret_name

FILE = Path("glm4.yaml")
STATE_DIR = Path(".glm4")
ENV_FILE = ".env"  # beside the settings file
USER_FILE = "glm4-deploy/glm4.yaml"  # in $XDG_CONFIG_HOME
ENV_PREFIX = "GLM4_"
# GLM4_* names that control the tool itself; they are not settings.
TOOL_VARIABLES = frozenset({"GLM4_DEBUG", "GLM4_CACHE", "GLM4_CPU_PYTHON", "GLM4_E2E_REQUIRED"})

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=63)]
# No control characters: a value must not be able to break a line in a file or on a terminal.
Text = Annotated[str, StringConstraints(pattern=rf"^[^{CONTROLS}]+$", max_length=1024)]
# As registries accept it: the name may begin with a host and its port.
_PART = r"[a-z0-9]+([._-]+[a-z0-9]+)*"
REPOSITORY = rf"(([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])(:[0-9]{{1,5}})?/)?{_PART}(/{_PART})*"
TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
Repository = Annotated[str, StringConstraints(pattern=rf"^{REPOSITORY}$", max_length=255)]
Tag = Annotated[str, StringConstraints(pattern=rf"^{TAG}$")]
Size = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*(b|k|kb|m|mb|g|gb)$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Image = Annotated[str, StringConstraints(pattern=rf"^{REPOSITORY}(:{TAG})?(@sha256:[0-9a-f]{{64}})?$", max_length=512)]
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
DnsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
# As Kubernetes accepts a label: an optional DNS prefix, then at most 63 characters.
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, StringConstraints(pattern=rf"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?{_LABEL}$", max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=rf"^({_LABEL})?$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=1024)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$")]
# An index (`0`; `0:1` is a MIG instance of GPU 0), or a UUID as `nvidia-smi -L` prints it.
DeviceName = Annotated[
    str, StringConstraints(pattern=r"^([0-9]{1,4}(:[0-9]{1,3})?|(GPU|MIG)-[A-Za-z0-9/-]+)$", max_length=128)
]
VllmText = Annotated[str, StringConstraints(pattern=r"^v?[0-9]+(\.[0-9]+)+", max_length=64)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
User = Annotated[str, StringConstraints(pattern=r"^[0-9]+(:[0-9]+)?$")]
BodyLimit = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*(KB|MB)$")]
Email = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9._+-]+@(localhost|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+)$", max_length=254)
]
HostPort = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+:[0-9]{1,5}$")]
GuardedName = Annotated[str, StringConstraints(pattern=rf"^(key|model):[^={CONTROLS}]+$", max_length=256)]
TokensTimes = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,3},([2-9]|[1-9][0-9]{1,3})$")]
# YAML reads `off` as false.
GuardMode = Annotated[
    Literal["off", "observe", "cut", "retry"], BeforeValidator(lambda value: "off" if value is False else value)
]
FlagName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]


def _env_text(value: object) -> object:
    """`env: {DEBUG: 1}` is a number in YAML; an environment variable is text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _restart_text(value: object) -> object:
    """YAML 1.1 reads a bare `no` as false."""
    return "no" if value is False else value


def _restart_policy(value: str) -> str:
    if not re.fullmatch(r"no|always|unless-stopped|on-failure(:[1-9][0-9]?)?", value):
        raise ValueError("not no, always, unless-stopped, on-failure, or on-failure:N with N from 1 to 99")
    return value


def _ip_address(value: str) -> str:
    """An address in its shortest form. Host names are refused: Docker may resolve them differently, or not at all."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("not an IPv4 or IPv6 address") from None


def _flag_text(value: object) -> object:
    """An engine flag's JSON may be written as YAML; an empty value is a flag without a value, as `True` is."""
    if value in ("", "True", "TRUE"):
        return None
    if value in ("False", "FALSE"):
        return False
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _split(value: object) -> object:
    """`watch,gateway` on one line, as in an environment variable or a flag."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        return value
    return tuple(dict.fromkeys(part.strip() for word in words for part in word.split(",") if part.strip()))


def _device_names(value: object) -> object:
    """`devices: [0, 1]` and `devices: 0` are numbers in YAML; Docker expects names."""
    words = [value] if isinstance(value, int) else value
    return _split([str(word) for word in words] if isinstance(words, list) else words)


Address = Annotated[str, AfterValidator(_ip_address)]
EnvText = Annotated[Text, BeforeValidator(_env_text)]
FlagValue = Annotated[bool | int | float | Text | None, BeforeValidator(_flag_text)]


class Kubernetes(BaseModel):
    """Settings of the target `kubernetes` only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespace: DnsLabel = Field("default", description="namespace of every object")
    model_claim: DnsName | None = Field(
        None, description="PersistentVolumeClaim with the model; empty: model_dir on the node"
    )
    storage_class: DnsName | None = Field(None, description="storage class of the cache; empty: the cluster's default")
    cache_size: Quantity = Field("20Gi", description="size of the claim for compiled kernels")
    api_key_secret: DnsName | None = Field(None, description="Secret whose entry `api-key` is the engine's key")
    max_replicas: int | None = Field(
        None, ge=2, le=1024, description="most engines that KEDA may start; empty: no KEDA"
    )
    prometheus_url: Url = Field(
        "http://prometheus-operated.monitoring.svc:9090", description="Prometheus server that KEDA queries"
    )
    kit_image: Image | None = Field(
        None, description="this kit's image, for the smoke Job; empty: glm4-deploy/kit in this version"
    )
    runtime_class: DnsName | None = Field(None, description="RuntimeClass of the engine's pod; empty: the cluster's")
    node_selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, description="labels of the nodes that may run the engine"
    )
    cpu: int = Field(4, ge=1, le=1024, description="CPU cores requested for the engine's pod")
    memory: Quantity = Field("16Gi", description="host memory requested for the engine's pod")


class Settings(BaseModel):
    """Every setting with its unit and range. Unknown keys are refused.

    Each command-line flag is generated from its field: the description and the range are its help text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str = Field("seed", description="host profile, as `glm4-deploy profiles` lists them")
    project: Name = Field("glm4", description="Compose project name")
    service: Name = Field("glm4-9b-nvfp4", description="Compose service name")
    container_name: Name = Field("glm4-9b-fp4", description="container name")
    image_repository: Repository = Field(repository(), description="image name without its tag")
    image_tag: Tag | None = Field(default_tag(), description="image tag; empty: image_digest alone names the image")
    image_digest: Digest | None = Field(None, description="digest of the image, which pins it; empty: the tag may move")
    image_vllm: VllmText | None = Field(
        None, description="vLLM version in the image; empty: from the catalog, else `up` asks the image"
    )
    image_command: CommandShape | None = Field(
        None,
        description="how the server is started in the image; empty: from the catalog, else `up` inspects it",
    )
    bind: Address = Field("127.0.0.1", description="host address that the port is published on, IPv4 or IPv6")
    port: int = Field(8080, ge=1, le=65535, description="host port")
    model_dir: Text = Field("/models/glm-4-9b-chat-hf-nvfp4", description="checkpoint directory on the host")
    mount: Literal["parent", "model"] = Field("model", description="mount the checkpoint alone, or its parent")
    served_model_name: Text = Field("glm-4-9b-chat", description="model name that clients use in requests")
    quantization: Text = Field("compressed-tensors", description="quantization method, or none to let vLLM decide")
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2", "bfloat16"] = Field(
        "fp8", description="KV cache type"
    )
    max_model_len: int = Field(32768, ge=1, le=131072, description="longest request (prompt and answer) in tokens")
    max_num_seqs: int = Field(64, ge=1, le=4096, description="requests served at once")
    max_num_batched_tokens: int | None = Field(
        None, ge=1, le=1_048_576, description="tokens per engine step; empty: vLLM's default"
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto", description="fraction of GPU memory for the engine; auto: chosen by the memory planner"
    )
    host_reserve_gib: float = Field(
        8.0,
        ge=0,
        le=1000,
        description="on unified memory: GiB that the plan leaves available to the host, and that `watch` defends",
    )
    kv_cache_memory_bytes: int | None = Field(
        None,
        ge=1,
        le=2**50,
        description="bytes of KV cache, in place of what the engine would profile; empty: it profiles",
    )
    tensor_parallel_size: int = Field(1, ge=1, le=8, description="GPUs that one engine is split across")
    data_parallel_size: int = Field(
        1, ge=1, le=64, description="copies of the model in one engine, each on its own GPU"
    )
    enforce_eager: bool = Field(False, description="no compilation and no CUDA graphs")
    shm_size: Size = Field("8gb", description="size limit of /dev/shm in the container, for example 8gb")
    ipc: Literal["private", "host"] = Field("private", description="IPC namespace")
    restart: Annotated[str, BeforeValidator(_restart_text), AfterValidator(_restart_policy)] = Field(
        "on-failure:3",
        description="restart policy: `no`, `always`, `unless-stopped`, `on-failure`, or `on-failure:N`, which gives up "
        "after N restarts within two hours",
    )
    start_period: int = Field(900, ge=10, le=86400, description="seconds that a start may take")
    api_key_file: Text | None = Field(None, description="file on the host with the engine's API key")
    questions: Text | None = Field(
        None, description="file on the host with your own questions, which the gate asks too (docs/how-to/questions.md)"
    )
    cap_drop: bool = Field(True, description="drop every capability of the engine's container")
    no_new_privileges: bool = Field(True, description="no program in the container can gain privileges")
    read_only: bool = Field(False, description="mount the container's root file system read-only")
    pids_limit: int | None = Field(
        8192, ge=256, description="most processes and threads in the container; null: no limit"
    )
    mem_limit: Size | None = Field(None, description="memory limit of the container, for example 8gb; null: no limit")
    cpus: float | None = Field(
        None, ge=0.01, le=1024, description="CPU limit of the container, at most what the host has; null: no limit"
    )
    user: User | None = Field(None, description="UID or UID:GID that the engine runs as; null: the image's default")
    egress: bool = Field(
        False,
        description="let the engine connect to the outside in Kubernetes, and behind a gateway or a router",
    )
    gateway_host: Name = Field("localhost", description="host name by which clients reach the gateway")
    gateway_bind: Address = Field("127.0.0.1", description="host address that the gateway is published on")
    gateway_port: int = Field(8443, ge=1, le=65535, description="host port of the gateway")
    gateway_ui_port: int = Field(8444, ge=1, le=65535, description="host port of the chat page")
    ui_admin: Email = Field("admin@localhost", description="e-mail address of the chat page's administrator")
    gateway_tls: Literal["internal", "acme"] = Field(
        "internal", description="certificates from the gateway's internal CA, or from ACME for a public gateway_host"
    )
    gateway_body_limit: BodyLimit = Field("4MB", description="largest request body, in KB or MB")
    prometheus_port: int = Field(9090, ge=1, le=65535, description="port of Prometheus on 127.0.0.1")
    grafana_port: int = Field(3000, ge=1, le=65535, description="port of Grafana on 127.0.0.1")
    gpu_exporter: HostPort | None = Field(None, description="host:port of a dcgm-exporter for Prometheus to scrape")
    extras: Annotated[tuple[Name, ...], BeforeValidator(_split)] = Field(
        (), description="services to run next to the engine, for example gateway,monitoring"
    )
    guard_mode: Literal["observe", "cut", "retry"] = Field(
        "observe", description="what the guard does with an answer that loops"
    )
    guard_mode_for: dict[GuardedName, GuardMode] = Field(
        default_factory=dict, description="the guard's mode for one key:NAME or model:NAME"
    )
    guard_repetition_detection: TokensTimes | None = Field(
        None,
        description="max_pattern_size,min_count of vLLM's own check for repeated tokens, which the guard sets where it "
        "cuts; null: not set",
    )
    guard_refuse_below_gib: float | None = Field(
        None,
        ge=0.1,
        le=1000,
        description="GiB of the host's memory; while less is available, the guard answers new questions with 503; "
        "null: never",
    )
    watch_port: int = Field(9109, ge=1, le=65535, description="host port of the watch's /metrics and /healthz")
    notify_file: Text | None = Field(
        None, description="file on the host with the addresses that --with watch notifies (docs/how-to/notify.md)"
    )
    digests: dict[Text, Digest] = Field(
        default_factory=dict, description="image → digest, as written by `glm4-deploy lock`"
    )
    env: dict[EnvName, EnvText] = Field(default_factory=dict, description="additional environment variables")
    args: dict[FlagName, FlagValue] = Field(
        default_factory=dict, description="additional engine flags; null: a flag without a value"
    )
    tools: bool = Field(False, description="let the model call the functions that a request offers")
    overridable: bool = Field(
        False,
        description="a .env beside the rendered Compose file may change port, bind, model_dir and key file",
    )
    replicas: int = Field(1, ge=1, le=1024, description="number of engines, each on its own GPUs")
    devices: Annotated[tuple[DeviceName, ...], BeforeValidator(_device_names)] = Field(
        (), description="GPUs by index or UUID, in the order that engines use them; empty: from 0 up"
    )
    kubernetes: Kubernetes = Field(
        default_factory=lambda: Kubernetes.model_validate({}), description="settings of the target kubernetes only"
    )

    @property
    def image(self) -> str:
        """`repository:tag`, or `repository@digest` without a tag; `pinned` adds the digest to a tag."""
        if self.image_tag:
            return f"{self.image_repository}:{self.image_tag}"
        return f"{self.image_repository}@{self.image_digest}" if self.image_digest else self.image_repository

    @property
    def pinned_image(self) -> str:
        """The image with its digest, if one is known: from image_digest, or recorded by `glm4-deploy lock`."""
        digest = self.image_digest if self.image_tag else None
        digest = digest or self.digests.get(self.image)
        return f"{self.image}@{digest}" if digest else self.image

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_as_a_number(cls, value: object, info: ValidationInfo) -> object:
        """`replicas: yes` in YAML would be 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (
            int,
            int | None,
            float | None,
        ):
            raise ValueError("must be a number, not true or false")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedSettings:
    """The settings, their profile, and the layer that each value came from; what is not in `origin` is a default."""

    settings: Settings
    profile: Profile
    origin: Mapping[str, str]


def save_settings_file(file: Path, text: str) -> None:
    """Replace a settings file, if the text is one.

    Raises:
        UsageError: it would not be valid; nothing is written.
        StorageError
    """
    checked = file.with_name(f".{file.name}.checked")
    try:
        write_text(checked, text)
        load_settings(file=checked)
    finally:
        checked.unlink(missing_ok=True)
    write_text(file, text)


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    sets: Iterable[str] = (),
    default_profile: Callable[[], Profile] = lambda: profiles()["seed"],
) -> tuple[Settings, Profile]:
    """The settings and their profile; see `merge_settings`."""
    merged = merge_settings(flags, file=file, environ=environ, sets=sets, default_profile=default_profile)
    return merged.settings, merged.profile


def merge_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    sets: Iterable[str] = (),
    default_profile: Callable[[], Profile] = lambda: profiles()["seed"],
) -> MergedSettings:
    """Merge the layers and validate the result.

    Args:
        flags: command-line values by settings key; None for a flag that was not given.
        file: a settings file that must exist; by default `glm4.yaml`, if it exists.
        environ: defaults to the process's environment.
        sets: `KEY=VALUE`, `env.NAME=VALUE` or `args.FLAG=VALUE`; they override everything else.
        default_profile: called if no layer names a profile.

    Raises:
        UsageError: an unknown key, an invalid value or an unreadable file; the message names the layer.
    """
    environ = os.environ if environ is None else environ
    here = Path.cwd()
    folder = (here / (file or FILE)).parent
    user = user_file(environ)
    layers: list[tuple[str, Mapping[str, Any]]] = [
        (str(user or "user's file"), _read_file(user) if user and user.is_file() else {}),
        (str(file or FILE), _read_file(file)),
        (str((file or FILE).with_name(ENV_FILE)), _from_environ(read_env_file(folder / ENV_FILE))),
        ("environment", _from_environ(environ)),
        ("command line", {key: value for key, value in (flags or {}).items() if value is not None}),
        ("--set", _from_sets(sets)),
    ]
    beside = [(user or FILE).parent, folder, folder, here, here, here]
    layers = [
        (name, _absolute(_whole_image(name, layer), base)) for (name, layer), base in zip(layers, beside, strict=True)
    ]
    for name, layer in layers:
        _refuse_unknown(name, layer)
    named = [layer["profile"] for _, layer in layers if "profile" in layer]
    profile = _profile(named[-1]) if named else default_profile()
    merged: dict[str, Any] = {**profile.settings, "profile": profile.name}
    origin = dict.fromkeys(profile.settings, f"profile {profile.name}")
    for name, layer in layers:
        for key, value in layer.items():
            nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = {**merged[key], **value} if nested else value
            origin[key] = name
    try:
        return MergedSettings(settings=Settings.model_validate(merged), profile=profile, origin=origin)
    except ValidationError as error:
        raise _usage_error(error, origin) from None


def _whole_image(name: str, layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """`image: REPOSITORY[:TAG][@DIGEST]` becomes the three settings that it is short for.

    A layer that names another image also replaces what lower layers say about theirs.

    Raises:
        UsageError: not an image, or the layer names it twice.
    """
    parts = ("image_repository", "image_tag", "image_digest")
    about = dict.fromkeys(("image_digest", "image_vllm", "image_command"))
    if "image" not in layer:
        return {**about, **layer} if any(part in layer for part in parts[:2]) else layer
    twice = next((part for part in parts if part in layer), None)
    if twice is not None:
        raise UsageError(f"{name}: image and {twice} both name the image", hint="give one of them")
    match = re.fullmatch(
        rf"(?P<name>{REPOSITORY})(:(?P<tag>{TAG}))?(@(?P<digest>sha256:[0-9a-f]{{64}}))?", str(layer["image"])
    )
    if match is None:
        raise UsageError(
            f"{name}: image {str(layer['image'])[:80]!r} is not an image's name",
            hint="write REPOSITORY:TAG, with or without @sha256:DIGEST, for example vllm/vllm-openai:v0.31.0",
        )
    tag = match["tag"] or (None if match["digest"] else "latest")
    named = dict(zip(parts, (match["name"], tag, match["digest"]), strict=True))
    return {**about, **{key: value for key, value in layer.items() if key != "image"}, **named}


def settings_for_image(text: str) -> Mapping[str, Any]:
    """The settings that name one image, and none of those that another image needed.

    Raises:
        UsageError: not an image.
    """
    return _whole_image("image", {"image": text})


# A file's relative path starts at the file, any other at the working directory. Compose would read `a/b` as a volume's
# name, and `./m/x` as a path beside whichever file is rendered.
_PATHS = ("model_dir", "api_key_file", "questions", "notify_file")


def _absolute(layer: Mapping[str, Any], base: Path) -> Mapping[str, Any]:
    relative = {
        key: str(base / layer[key])
        for key in _PATHS
        if isinstance(layer.get(key), str) and layer[key] and not layer[key].startswith(("/", "~"))
    }
    return {**layer, **relative}


def limits(field: FieldInfo) -> tuple[str, ...]:
    """The range of a number and the alternatives of a choice, as text."""
    return tuple(_limits(field.annotation, field.metadata))


def _limits(annotation: Any, metadata: Iterable[Any]) -> Iterator[str]:
    bounds = {key: getattr(item, key) for item in metadata for key in ("gt", "ge", "le") if hasattr(item, key)}
    if bounds:
        low = f"above {bounds['gt']}" if "gt" in bounds else f"{bounds['ge']}"
        yield f"{low} to {bounds['le']}" if "le" in bounds else f"{low} or more"
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
        return
    for part in get_args(annotation):
        if get_origin(part) is Annotated:
            base, *notes = get_args(part)
            yield from _limits(base, [item for note in notes for item in getattr(note, "metadata", ())])
        elif get_origin(part) is Literal:
            yield from _limits(part, ())


def _profile(name: object) -> Profile:
    known = profiles()
    if not isinstance(name, str) or name not in known:
        raise UsageError(
            f"unknown profile {redact(str(name))[:40]!r}",
            hint=did_you_mean(str(name), known) or f"known: {', '.join(known)}",
        )
    return known[name]


def user_file(environ: Mapping[str, str]) -> Path | None:
    """Where a user's own settings are, for all of their deployments; None without a home."""
    home = environ.get("HOME")
    base = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
    return Path(base) / USER_FILE if base and base.startswith("/") else None


_ENV_LINE = re.compile(rf"(?:export\s+)?({ENV_PREFIX}\w+)\s*=\s*(.*)", re.ASCII)


def read_env_file(path: Path) -> dict[str, str]:
    """The GLM4_* lines of a .env file: `NAME=VALUE`, quotes and comments as Compose has them. Other lines are others'.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="make it a readable UTF-8 text file") from None
    found = {}
    for line in text.splitlines():
        if match := _ENV_LINE.fullmatch(line.strip()):
            value = match[2]
            quoted = re.fullmatch(r"""(?P<q>['"])(.*?)(?P=q)\s*(#.*)?""", value)
            found[match[1]] = quoted[2] if quoted else re.sub(r"(^|\s)#.*", "", value).strip()
    return found


_VERBATIM = frozenset({"env", "args"})


def _read_file(file: Path | None) -> Mapping[str, Any]:
    path = file or FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if file is None:
            return {}
        raise UsageError(f"no settings file at {path}", hint="check the path given with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="make it a readable UTF-8 text file") from None
    content = parse_yaml(text, path, verbatim=_VERBATIM)
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path} must contain `key: value` lines", hint="for example: port: 8080")
    return content


def _from_environ(environ: Mapping[str, str]) -> Mapping[str, Any]:
    return {
        (key := name.removeprefix(ENV_PREFIX).lower()): _group(key, value) if key in _GROUPS else _scalar(value)
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX) and name not in TOOL_VARIABLES
    }


_GROUPS = ("env", "args", "kubernetes", "digests")


def _group(key: str, text: str) -> Any:
    """A mapping in an environment variable, as JSON: GLM4_ARGS='{"seed": 7}'."""
    wrapped = parse_yaml(f'{{"{key}": {text}}}', f"{ENV_PREFIX}{key.upper()}", verbatim=_VERBATIM)
    return wrapped[key] if isinstance(wrapped, dict) else text


def _from_sets(sets: Iterable[str]) -> Mapping[str, Any]:
    layer: dict[str, Any] = {}
    for item in sets:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {item[:60]!r} is not KEY=VALUE", hint="for example: --set max_num_seqs=32")
        group, dot, name = key.partition(".")
        if not dot:
            layer[key.replace("-", "_")] = _scalar(text)
        elif group in ("env", "guard_mode_for"):
            layer.setdefault(group, {})[name] = text
        elif group == "args":
            layer.setdefault("args", {})[name.removeprefix("--").replace("_", "-")] = _flag_scalar(text)
        elif group == "kubernetes":
            layer.setdefault("kubernetes", {})[name.replace("-", "_")] = _scalar(text)
        else:
            raise UsageError(
                f"--set {key!r}: unknown group {group!r}",
                hint="use env.NAME=…, args.FLAG=…, kubernetes.KEY=… or guard_mode_for.WHAT=…",
            )
    return layer


def _scalar(text: str) -> Any:
    """A value from one line of text. Pydantic parses numbers and booleans; YAML would also read `no` as false."""
    return None if text == "null" else text


def _flag_scalar(text: str) -> Any:
    """An engine flag's value, passed on as typed except for these three words."""
    return {"true": True, "false": False, "null": None}.get(text, text)


def _refuse_unknown(layer_name: str, layer: Mapping[str, Any]) -> None:
    for key in layer:
        if key not in Settings.model_fields:
            prefix = ENV_PREFIX if layer_name == "environment" or layer_name.endswith(ENV_FILE) else ""
            shown, *known = (f"{prefix}{name.upper()}" if prefix else name for name in (key, *Settings.model_fields))
            raise UsageError(
                f"{layer_name}: unknown key {shown[:60]!r}",
                hint=did_you_mean(shown, known) or "docs/reference/settings.md lists them all",
            )


def _usage_error(error: ValidationError, origin: Mapping[str, str]) -> UsageError:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = path[0] if path else "settings"
    dotted = ".".join([key, *(part[:60] for part in path[1:2])]) if key in ("env", "args", "kubernetes") else key
    within = key == "kubernetes" and len(path) > 1
    field = Kubernetes.model_fields.get(path[1]) if within else Settings.model_fields.get(key)
    if within and field is None:
        hint = did_you_mean(path[1], Kubernetes.model_fields) or "docs/reference/settings.md lists them all"
        return UsageError(f"{origin.get(key, 'settings')}: unknown key {dotted[:60]!r}", hint=hint)
    meaning = f"{dotted}: {field.description}" if field and field.description else ""
    where = origin.get(key, "settings")
    shown = f" = {_shown(path, first['input'])}" if key not in _GROUPS or len(path) > 1 else ""
    problem = _IN_WORDS.get(str(first.get("ctx", {}).get("pattern", ""))) or first["msg"].removeprefix("Value error, ")
    return UsageError(f"{where}: {dotted}{shown}: {problem[0].lower()}{problem[1:]}", hint=meaning)


# What a pattern requires, in words, so that the user need not read the expression.
_IN_WORDS = {
    pattern: words
    for kind, words in (
        (Text, "must be text without line breaks or control characters, and not empty"),
        (Name, "must begin with a letter or digit, and contain only letters, digits, `.`, `_` and `-`"),
        (Repository, "must be an image's name without its tag, as registries accept it (lower case)"),
        (Tag, "must be an image's tag: letters, digits, `.`, `_` and `-`"),
        (Image, "must be an image's name, with or without a tag and a digest"),
        (Size, "must be a whole number with a unit: 512mb, 8gb"),
        (Quantity, "must be a whole number with Mi, Gi or Ti"),
        (EnvName, "a variable's name has only letters, digits and `_`, and does not begin with a digit"),
        (FlagName, "a flag's name has only lower-case letters, digits and `-`"),
        (DnsLabel, "must be a DNS label: lower-case letters, digits and `-`"),
        (DnsName, "must be a DNS name: lower-case letters, digits, `-` and `.`"),
        (Url, "must be an http:// or https:// address"),
        (LabelKey, "must be a label's name as Kubernetes accepts it"),
        (LabelValue, "must be a label's value as Kubernetes accepts it"),
        (Digest, "must be sha256: and 64 hexadecimal digits"),
        (VllmText, "must be a version, for example 0.31.0"),
        (User, "must be a number, UID, or two, UID:GID"),
        (BodyLimit, "must be a whole number with KB or MB"),
        (HostPort, "must be HOST:PORT"),
        (TokensTimes, "must be TOKENS,TIMES, for example 64,16"),
        (Email, "must be an e-mail address"),
        (DeviceName, "must be a GPU's index, or its UUID as `nvidia-smi -L` prints it"),
    )
    for pattern in [next(note.pattern for note in get_args(kind) if isinstance(note, StringConstraints))]
}


def _shown(path: list[str], value: object) -> str:
    """A refused value for a message, which goes to logs and screens: without secrets."""
    if any(secret_name(part) for part in path):
        return MASK
    return repr(redact(str(value))[:60])
