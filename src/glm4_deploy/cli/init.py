"""`glm4-deploy init`."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy.catalog.rows import profiles
from glm4_deploy.checkpoint.hub import PUBLISHED
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.checkpoint.verify import VerifyReport, verify_checkpoint
from glm4_deploy.cli.images import judge_images
from glm4_deploy.cli.params import HostCards, Requested
from glm4_deploy.cli.pull import fetch_model, judge
from glm4_deploy.doctor import Needs, doctor_results, gather_host, readiness
from glm4_deploy.errors import DeployError, ModelMissing, PlanRefused, UsageError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.host.system import PortState, read_disk, read_docker, read_host, read_port
from glm4_deploy.plan.image import engine_image
from glm4_deploy.plan.resolved import ResolvedPlan
from glm4_deploy.plan.sizing import parse_load
from glm4_deploy.report.terminal import results_text
from glm4_deploy.result import Status
from glm4_deploy.run import run_program
from glm4_deploy.settings import FILE, Settings
from glm4_deploy.text import one_line

# Where checkpoints usually lie.
PLACES = ("/models", "~/models", "models", "/data/models", "/mnt/models", "/srv/models")
HUB_CACHES = ("~/.cache/huggingface/hub",)
MOST_LOOKED_AT = 64  # directories with a config.json
PORTS_TRIED = 20
DEMO_SECONDS = 3600
DEFAULTS = Settings.model_validate({})
NO_FILE = Path("/dev/null")  # an empty settings file


@dataclass(slots=True, kw_only=True)
class Answers:
    """What goes into the file: key → value, and why, and who may be asked."""

    ask: bool
    chosen: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def choose(self, key: str, value: object, why: str) -> None:
        self.chosen[key] = (value, why)

    def prompt(self, question: str, default: str) -> str:
        """The user's answer; the default in a non-interactive run."""
        return str(typer.prompt(question, default=default, err=True)).strip() if self.ask else default

    def confirm(self, question: str, *, default: bool) -> bool:
        return typer.confirm(question, default=default, err=True) if self.ask else default

    @property
    def requested(self) -> Requested:
        """What was chosen so far, and nothing of an earlier file."""
        return Requested(flags={key: value for key, (value, _) in self.chosen.items()}, config=NO_FILE)


def init(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take what is found and the defaults.")] = False,
    profile: Annotated[str | None, typer.Option(help="Host profile.", show_default="that of this host's GPU")] = None,
    model_dir: Annotated[
        str | None, typer.Option("--model-dir", help="Checkpoint directory.", show_default="the first sound one found")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The engine's image.", show_default="the profile's, if it fits this host"),
    ] = None,
    load: Annotated[
        str | None, typer.Option("--for", help='The load: "64 users, 8k context".', show_default="the profile's")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.", show_default="8080, or the next free")
    ] = None,
    pull: Annotated[
        bool | None, typer.Option("--pull/--no-pull", help="Whether to fetch a missing model.", show_default="ask")
    ] = None,
    start: Annotated[bool | None, typer.Option("--up/--no-up", help="Whether to start it.", show_default="ask")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing settings file without asking.")] = False,
    file: Annotated[Path, typer.Option("--file", help="The settings file to write.")] = FILE,
) -> None:
    """Inspect this host, ask a few questions, and write glm4.yaml.

    It finds GPU, Docker, disk and models, chooses profile, image and settings with reasons, writes them down as
    comments, and shows the plan. At most five questions; none with --yes or without a terminal. Nothing is fetched or
    started unless you say so, and an existing file is replaced only if you say so.

    Example: glm4-deploy init --yes --for "16 users, 8k context"
    """
    answers = Answers(ask=not yes and sys.stdin.isatty() and sys.stderr.isatty())
    seen = HostCards(gpus=read_gpus(), host=read_host())
    for line in host_lines(seen):
        _say(line)
    _profile(answers, seen, profile)
    settings, _ = answers.requested.load()
    _model(answers, settings, model_dir, pull)
    _image(answers, seen, image)
    _repair(answers)
    _load(answers, settings, load)
    _port(answers, settings, port)
    plan = _planned(answers, seen)
    _write(file, answers, force=force)
    _show(plan)
    _start(answers, file, Path(plan.settings.model_dir), start)


def host_lines(seen: HostCards) -> Iterator[str]:
    """What this host has, for people."""
    gib = 2**30
    if seen.gpus.gpus:
        card = seen.card(1)
        memory = f", {card.gpu.total_mib / 1024:.1f} GiB" if card else ""
        names = ", ".join(gpu.name for gpu in seen.gpus.gpus)
        yield f"GPU: {names}, driver {seen.gpus.driver or 'not known'}{memory}"
    else:
        yield f"GPU: none ({seen.gpus.trouble})"
    memory_total = seen.host.memory_total
    yield f"memory: {memory_total / gib:.0f} GiB" if memory_total else "memory: not known"
    docker = read_docker(DEFAULTS.image)
    gpus = "" if docker.trouble or not seen.gpus.gpus else f", GPUs in containers: {'yes' if docker.nvidia else 'no'}"
    yield f"Docker: {docker.trouble or docker.version}{gpus}"
    disk = read_disk(Path(DEFAULTS.model_dir))
    yield f"disk: {disk.free / 1e9:.0f} GB free for {DEFAULTS.model_dir}" if disk else "disk: not known"


def _profile(answers: Answers, seen: HostCards, named: str | None) -> None:
    """The first choice, which the others build on.

    Raises:
        PlanRefused: no GPU, and no profile was named.
        UsageError: no such profile.
    """
    if named is not None:
        answers.choose("profile", named, "as you said")
        answers.requested.load()
        return
    if seen.gpus.gpus:
        row = seen.profile()
        answers.choose("profile", row.name, f"this host has {seen.gpus.gpus[0].name}: {row.summary}")
        return
    demo = Path(__file__).parents[3] / "scripts/demo.sh"
    question = "No NVIDIA GPU here. Run the demo on the CPU (a tiny model, some minutes)?"
    if demo.is_file() and answers.confirm(question, default=False):
        raise typer.Exit(run_program(str(demo), timeout=DEMO_SECONDS, show=True).code or 0)
    raise PlanRefused(
        f"no NVIDIA GPU was found on this host ({seen.gpus.trouble}), so there is nothing to set up for it",
        hint=(
            f"the demo needs none: {'make demo' if demo.is_file() else 'make demo, in a checkout of this project'}",
            f"for another host name its profile: --profile {', '.join(name for name in profiles() if name != 'seed')}",
        ),
    )


def found_models(places: Iterable[str] = PLACES, caches: Iterable[str] = HUB_CACHES) -> list[tuple[Path, VerifyReport]]:
    """The GLM-4 checkpoints in the usual places, NVFP4 and sound ones first. Reads headers only."""
    found: list[tuple[Path, VerifyReport]] = []
    roots = [Path(place).expanduser().absolute() for place in places]
    patterns = [(root, pattern) for root in roots for pattern in ("config.json", "*/config.json", "*/*/config.json")]
    patterns += [(Path(cache).expanduser(), "models--*/snapshots/*/config.json") for cache in caches]
    paths = [path for root, pattern in patterns for path in _glob(root, pattern)][:MOST_LOOKED_AT]
    for path in dict.fromkeys(paths):
        with suppress(DeployError, OSError, ValueError):
            if "glm" in str(json.loads(read_text(path)).get("architectures")).lower():
                found.append((path.parent, verify_checkpoint(path.parent)))
    return sorted(found, key=lambda one: (one[1].quantization is None, one[1].verdict is Status.FAIL, str(one[0])))


def _glob(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []


def _model(answers: Answers, settings: Settings, named: str | None, pull: bool | None) -> None:
    """Question 1: where the model is, or whether to fetch it."""
    if named is not None:
        answers.choose("model_dir", str(Path(named).absolute()), "as you said")
        return
    models = found_models()
    for number, (path, report) in enumerate(models[:9], 1):
        kind = report.quantization or "not quantized"
        _say(f"model {number}: {path}: {report.parameters / 1e9:.3g} B, {kind}, for {report.engine}: {report.verdict}")
    if models:
        wanted = answers.prompt("Which model? A number, or another directory", "1")
        index = int(wanted) - 1 if wanted.isdigit() else -1
        if 0 <= index < len(models):
            path, report = models[index]
            why = f"found here: {report.quantization or 'not quantized'}, {report.verdict} for {report.engine}"
            answers.choose("model_dir", str(path), why)
        else:
            answers.choose("model_dir", str(Path(wanted).absolute()), "as you said")
        return
    directory = Path(settings.model_dir)
    question = f"No GLM-4 checkpoint was found. Fetch {PUBLISHED} into {directory} (about 7 GB)?"
    if answers.confirm(question, default=False) if pull is None else pull:
        fetch_model(PUBLISHED, directory)
        answers.choose("model_dir", str(directory), f"fetched: {PUBLISHED}")
    else:
        answers.choose("model_dir", str(directory), f"not there yet: glm4-deploy pull --output {directory}")


def _image(answers: Answers, seen: HostCards, named: str | None) -> None:
    """The profile's image if nothing known speaks against it, else the one that `images` recommends."""
    if named is not None:
        answers.choose("image", named, "as you said")
        return
    settings, row = answers.requested.load()
    card = seen.card(1)
    checkpoint = None
    with suppress(ModelMissing):
        checkpoint = read_checkpoint(Path(settings.model_dir))
    rows = judge_images(settings, card.gpu if card else None, seen.gpus.driver, checkpoint)
    chosen = next(one for one in rows if one.chosen)
    best = next((one for one in rows if one.recommended), None)
    native = "" if chosen.native_fp4 is None else f", {'native' if chosen.native_fp4 else 'no native'} FP4 on this card"
    if chosen.fits or best is None:
        answers.choose("image", chosen.image, f"vLLM {chosen.vllm}, the default of profile {row.name}{native}")
        return
    against = chosen.trouble or ("the driver is too old" if chosen.driver_ok is False else "it is not tested")
    answers.choose("image", best.image, f"vLLM {best.vllm}; not {chosen.image}: {against}")


def _repair(answers: Answers) -> None:
    """Question 2, if that image cannot load that checkpoint as it is."""
    settings, _ = answers.requested.load()
    directory = Path(settings.model_dir)
    if not directory.is_dir():
        return
    verdict, need = judge(directory, engine_image(settings), None if answers.ask else False)
    if need is not None and need.made:
        answers.choose("model_dir", need.output, f"a copy of {directory}, {verdict.observed}")
    elif verdict.status is not Status.OK:
        _say(f"warning: {verdict.observed}")
        _say(f"  → {verdict.remedy}")


def _load(answers: Answers, settings: Settings, given: str | None) -> None:
    """Question 3: how many requests of which length."""
    default = f"{settings.max_num_seqs} users, {settings.max_model_len} context"
    text = given or answers.prompt("How many users at once, with how long a context (tokens)?", default)
    if text == default:
        return
    wanted = parse_load(text)
    if wanted.requests is not None:
        answers.choose("max_num_seqs", wanted.requests, f"requests at once: {text!r}")
    if wanted.context is not None:
        answers.choose("max_model_len", wanted.context, f"tokens of prompt and answer: {text!r}")


def _port(answers: Answers, settings: Settings, given: int | None) -> None:
    """The default port if it is free, else the next one that is."""
    if given is not None:
        answers.choose("port", given, "as you said")
        return
    ports = range(settings.port, min(settings.port + PORTS_TRIED, 65536))
    free = next((port for port in ports if read_port(settings.bind, port) is PortState.FREE), settings.port)
    if free != settings.port:
        answers.choose("port", free, f"{settings.port} is taken on this host")


def _planned(answers: Answers, seen: HostCards) -> ResolvedPlan:
    """What these settings deploy: on this host's card if the profile is this host's.

    Raises:
        PlanRefused: the settings do not fit.
    """
    here = bool(seen.gpus.gpus) and seen.profile().name == answers.chosen["profile"][0]
    return answers.requested.plan_here() if here else answers.requested.plan()


def settings_text(answers: Answers) -> str:
    """The settings file: each value under the reason for it."""
    lines = ["# Written by `glm4-deploy init`. What is not here has its default: docs/reference/settings.md lists all."]
    for key, (value, why) in answers.chosen.items():
        lines += [f"# {one_line(why, 300)}", f"{key}: {json.dumps(value, ensure_ascii=False)}"]
    return "\n".join(lines) + "\n"


def _write(file: Path, answers: Answers, *, force: bool) -> None:
    """Question 4, if there is another file already.

    Raises:
        StorageError
        UsageError: it exists, and the user did not allow it to be replaced.
    """
    text = settings_text(answers)
    if (
        file.exists()
        and read_text(file) != text
        and not force
        and not answers.confirm(f"Replace {file}?", default=False)
    ):
        raise UsageError(f"{file} exists and is not replaced", hint="--force replaces it, --file writes another")
    write_text(file, text)
    _say(f"wrote {file}:")
    typer.echo(text, nl=False)


def _show(plan: ResolvedPlan) -> None:
    memory = plan.deployment.memory
    if memory is not None:
        _say(
            f"plan: {memory.requested_gib:.1f} GiB for the engine: weights {memory.weights_gib:.1f}, KV cache "
            f"{memory.kv_cache_gib:.1f} GiB = {memory.kv_cache_tokens:,} tokens (glm4-deploy plan shows more)"
        )
    for warning in plan.deployment.warnings:
        _say(f"warning: {warning}")
    needs = Needs(settings=plan.settings, profile=plan.profile)
    rows = doctor_results(gather_host(needs), needs)
    _say(f"doctor: {readiness(rows)}")
    if bad := [row for row in rows if row.status not in (Status.OK, Status.SKIPPED)]:
        typer.echo(results_text(bad), err=True, nl=False)


def _start(answers: Answers, file: Path, model_dir: Path, wanted: bool | None) -> None:
    """Question 5."""
    argv = ["up", *(["--config", str(file)] if file != FILE else [])]
    if wanted is None and not model_dir.is_dir():
        _say(f"next: glm4-deploy pull --output {model_dir}, then glm4-deploy {' '.join(argv)}")
        return
    if answers.confirm("Start it now?", default=False) if wanted is None else wanted:
        from glm4_deploy.cli.app import app

        app(argv, standalone_mode=False)
    else:
        _say(f"next: glm4-deploy {' '.join(argv)}")


def _say(text: str) -> None:
    typer.echo(one_line(text, 600), err=True)
