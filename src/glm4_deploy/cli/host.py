"""`glm4-deploy audit`."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy.audit import ORDER, AuditFinding, AuditSeverity, audit_compose, has_vllm, lint
from glm4_deploy.catalog.rows import Gpu, default_tag, gpu_by_name, gpu_by_size, parse_capability, resolve_version
from glm4_deploy.checkpoint.model import BadConfigError, stored_model
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.cli.params import Bind, Config, ImageTag, ModelDir, Port, ProfileName, SetOptions
from glm4_deploy.deploy.candidates import holds_own_port, runner_of
from glm4_deploy.deploy.plan_check import load_observations
from glm4_deploy.deploy.state import expected_record
from glm4_deploy.doctor import HostVerdict, Needs, doctor_results, gather_host
from glm4_deploy.errors import DeployError, Judged, PlanRefused, UsageError
from glm4_deploy.files import parse_yaml, read_text
from glm4_deploy.host.gpu import gpu_row, read_gpus
from glm4_deploy.host.system import read_host
from glm4_deploy.plan.engine_rules import KV_BYTES, StoredModel, WeightFormat, glm4_9b, kernel_path
from glm4_deploy.plan.memory import MemoryRequest, estimate
from glm4_deploy.plan.sizing import advice, parse_load, sharpen, solve
from glm4_deploy.plan.spec import Fraction, plan_deployment
from glm4_deploy.report.terminal import plan_text, print_results
from glm4_deploy.report.wire import dumps, to_wire
from glm4_deploy.settings import load_settings
from glm4_deploy.text import one_line

# `glm4-deploy plan | doctor`.

Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]


def plan(
    gpu: Annotated[str | None, typer.Option(help="GPU by name: gb10, rtx-5090, h100 … [the one that is here]")] = None,
    gpu_total_mib: Annotated[
        float | None,
        typer.Option(min=2048, max=10_000_000, help="Its memory, MiB, as nvidia-smi or cudaMemGetInfo tells."),
    ] = None,
    compute_capability: Annotated[str | None, typer.Option(help="With --gpu-total-mib: 12.1, 9.0 …")] = None,
    unified: Annotated[
        bool, typer.Option("--unified", help="With --gpu-total-mib: one memory for CPU and GPU.")
    ] = False,
    gpu_free_mib: Annotated[
        float | None, typer.Option(min=0, max=10_000_000, help="What is free on it now, MiB.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Take the model's shape from this directory.")] = None,
    weights: Annotated[str, typer.Option(help="nvfp4 or bf16, without --checkpoint.")] = "nvfp4",
    vllm: Annotated[str | None, typer.Option(help="vLLM version, for example 0.24.0.")] = None,
    image_tag: Annotated[str | None, typer.Option(help="Image tag instead of --vllm. [26.01-py3]")] = None,
    max_model_len: Annotated[int, typer.Option(min=1, help="Context, tokens.")] = 32768,
    max_num_seqs: Annotated[int, typer.Option(min=1, max=65536, help="Requests served at once.")] = 64,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, bfloat16, fp8, fp8_e4m3 or fp8_e5m2.")] = "fp8",
    gpu_memory_utilization: Annotated[
        str, typer.Option(help="Fraction above 0 and at most 1; auto solves for it.")
    ] = "auto",
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens a step. [vLLM's choice]")] = None,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="No compilation, no CUDA graphs.")] = False,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, max=64, help="GPUs that one engine is split over.")] = 1,
    host_reserve_gib: Annotated[
        float, typer.Option(min=0, max=1000, help="Unified memory: what stays for the host.")
    ] = 8.0,
    first_start: Annotated[
        bool,
        typer.Option("--first-start/--later-start", help="Compiling takes KV cache away once; a later start has more."),
    ] = True,
    load: Annotated[str | None, typer.Option("--for", help='Solve for a load: "64 users, 8k context".')] = None,
    state_dir: Annotated[Path, typer.Option(help="Where earlier starts on this host are recorded.")] = Path(".glm4"),
    as_json: Json = False,
) -> None:
    """Say what a GPU's memory will hold, before anything is started.

    Example: glm4-deploy plan --gpu gb10 --for "64 users, 8k context"
    """
    from dataclasses import replace

    wanted = parse_load(load) if load else None
    wish = MemoryRequest(
        gpu=_gpu(gpu, gpu_total_mib, compute_capability, unified),
        model=_model(checkpoint, weights),
        vllm=_version(vllm, image_tag),
        gpu_memory_utilization=_fraction(gpu_memory_utilization) or 0.5,
        max_model_len=(wanted and wanted.context) or max_model_len,
        max_num_seqs=(wanted and wanted.requests) or max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_dtype=_dtype(kv_cache_dtype),
        enforce_eager=enforce_eager,
        tensor_parallel_size=tensor_parallel_size,
        free_bytes=None if gpu_free_mib is None else round(gpu_free_mib * 2**20),
        first_start=first_start,
    )
    if gpu is None and gpu_total_mib is None:
        wish = sharpen(wish, load_observations(state_dir))
    solved = ""
    if _fraction(gpu_memory_utilization) is None:
        solution = solve(wish, host_reserve_gib=host_reserve_gib)
        wish, solved = replace(wish, gpu_memory_utilization=solution.fraction), solution.reason
        answer = solution.plan
    else:
        answer = estimate(wish)
    kernel = kernel_path(wish.gpu.compute_capability, wish.model.weights, wish.vllm)
    hints = advice(wish, answer, host_reserve_gib=host_reserve_gib)
    if as_json:
        settings = {
            "gpu": wish.gpu.label,
            "vllm": ".".join(map(str, wish.vllm)),
            "gpu_memory_utilization": wish.gpu_memory_utilization,
            "solved": solved or None,
            "max_model_len": wish.max_model_len,
            "max_num_seqs": wish.max_num_seqs,
            "kv_cache_dtype": wish.kv_cache_dtype,
            "tensor_parallel_size": wish.tensor_parallel_size,
        }
        typer.echo(dumps({**settings, **_rounded(to_wire(answer)), "kernel_path": kernel, "advice": hints}))
    else:
        color = sys.stdout.isatty()
        typer.echo(plan_text(wish, answer, kernel=kernel, advice=hints, solved=solved, color=color), nl=False)
    if not answer.fits:
        why = f": {answer.refusal}" if as_json else ""  # the text above has said it
        raise PlanRefused(f"this cannot start on {wish.gpu.label}{why}", hint=answer.remedy)


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """MiB are the finest that a plan can tell."""
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}


def _gpu(name: str | None, total_mib: float | None, capability: str | None, unified: bool) -> "Gpu":
    """The GPU that was named, or given by its figures, or that is here."""
    if total_mib is not None:
        if capability is None:
            raise UsageError("--gpu-total-mib needs --compute-capability", hint="for example --compute-capability 12.0")
        return gpu_by_size(total_mib, parse_capability(capability), unified=unified, label=name or "")
    if name is not None:
        return gpu_by_name(name)
    if capability is not None or unified:
        raise UsageError("--compute-capability and --unified need --gpu-total-mib", hint="or name the GPU with --gpu")
    return _gpu_here()


def _gpu_here() -> "Gpu":
    report = read_gpus()
    row = gpu_row(report, read_host())
    if row is None:
        raise UsageError(
            f"no GPU to plan for: {report.trouble or 'its memory is not known'}",
            hint="name one: glm4-deploy plan --gpu gb10 (or --gpu-total-mib with --compute-capability)",
        )
    return row


def _model(checkpoint: Path | None, weights: str) -> StoredModel:
    if checkpoint is not None:
        try:
            return stored_model(checkpoint.resolve().name, read_checkpoint(checkpoint))
        except BadConfigError as error:
            hint = f"see what it lacks: glm4-deploy checkpoint verify {checkpoint}"
            raise UsageError(f"{checkpoint}: {error}", hint=hint) from None
    try:
        return glm4_9b(WeightFormat(weights))
    except ValueError:
        raise UsageError(f"unknown weights {weights[:20]!r}", hint="nvfp4 or bf16") from None


def _version(vllm: str | None, image_tag: str | None) -> tuple[int, ...]:
    if vllm and image_tag:
        raise UsageError("--vllm and --image-tag exclude each other", hint="give one of them")
    return resolve_version(vllm or image_tag or default_tag())


def _fraction(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UsageError(f"gpu_memory_utilization {text[:20]!r} is no fraction", hint="above 0 and at most 1, or auto")
    return value


def _dtype(text: str) -> str:
    if text not in KV_BYTES:
        raise UsageError(f"unknown kv_cache_dtype {text[:20]!r}", hint=f"one of {', '.join(KV_BYTES)}")
    return text


def doctor(
    profile: ProfileName = None,
    port: Port = None,
    bind: Bind = None,
    model_dir: ModelDir = None,
    image_tag: ImageTag = None,
    sets: SetOptions = None,
    config: Config = None,
    state_dir: Annotated[Path, typer.Option(help="Where `up` kept its record.")] = Path(".glm4"),
    as_json: Json = False,
) -> None:
    """Say what this host is and whether it can run the deployment. Read-only, and done within 3 s.

    Verdicts: ready, slow (no FP4 arithmetic), blocked, unknown. Exit code 0 for ready and slow, 1 otherwise.

    Example: glm4-deploy doctor --profile gb10 --json
    """
    flags = {"profile": profile, "port": port, "bind": bind, "model_dir": model_dir, "image_tag": image_tag}
    settings, row = load_settings(flags, file=config, sets=sets or ())
    needs = Needs(settings=settings, profile=row)
    diagnosis = doctor_results(gather_host(needs, partial(_holds_port, needs, state_dir)), needs)
    if as_json:
        typer.echo(dumps(diagnosis))
    else:
        print_results(diagnosis.results)
        typer.echo(f"\n{diagnosis.verdict}: for profile {row.name} ({row.summary})")
    raise typer.Exit(0 if diagnosis.verdict in (HostVerdict.READY, HostVerdict.SLOW) else 1)


def _holds_port(needs: Needs, state_dir: Path) -> bool:
    """Whether the port is held by this deployment's own engine, as `up` would see it."""
    expected = expected_record(plan_deployment(needs.settings, needs.profile, Fraction(value=None)))
    try:
        return holds_own_port(expected.base_url, state_dir, lambda: runner_of(expected, state_dir))
    except DeployError:
        return False  # no Docker, no Compose: nothing of ours can run


MAX_BYTES = 1 << 20


def audit(
    file: Annotated[Path | None, typer.Argument(help="A Compose file. [what `up` rendered here]")] = None,
    fail_on: Annotated[str, typer.Option(help="Exit 1 from this severity on: critical, high, medium or low.")] = "high",
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Find what is risky in a vLLM Compose file, ours or anybody's, with severity and mend.

    Rules named CL-… are those of compose-lint; what could not be judged is `unknown` and fails too.

    Example: glm4-deploy audit docker-compose.yml
    """
    if fail_on not in ORDER[:-1]:
        raise UsageError(f"--fail-on {fail_on[:40]!r} is no severity", hint=f"one of {', '.join(ORDER[:-1])}")
    path = file or Path(".glm4/compose.yaml")
    findings = _findings(path)
    if json_:
        typer.echo(dumps({"schema": 1, "file": str(path), "findings": findings}))
    else:
        _show(path, findings)
    bad = [
        row
        for row in findings
        if row.severity is AuditSeverity.UNKNOWN or ORDER.index(row.severity) <= ORDER.index(AuditSeverity(fail_on))
    ]
    if bad:
        raise Judged(f"{path}: {len(bad)} finding(s) of {fail_on} or above, or not judged", hint=bad[0].remedy)


def _findings(path: Path) -> "tuple[AuditFinding, ...]":
    """compose-lint's and ours, worst first.

    Raises:
        UsageError: not a readable Compose file, or one that is made to hurt.
    """
    if path.exists() and (not path.is_file() or path.stat().st_size > MAX_BYTES):
        raise UsageError(
            f"{path} is no file of at most {MAX_BYTES >> 20} MiB, so no Compose file", hint="check the path"
        )
    text = read_text(path)
    report = lint(path)  # first: it refuses what would blow up on loading
    content = parse_yaml(text, path)
    common = [
        AuditFinding(rule=row.rule, severity=AuditSeverity(row.severity), service=row.service, line=row.line,
                observed=row.message, remedy=row.fix)
        for row in report.findings
    ]  # fmt: skip
    unseen = [
        AuditFinding(
            rule="not-seen",
            severity=AuditSeverity.UNKNOWN,
            service="",
            observed=gap,
            remedy="audit the merged file: docker compose config",
        )
        for gap in report.gaps
    ]
    if not has_vllm(content):
        typer.echo(f"{path}: no service looks like vLLM; only the rules for any container were applied", err=True)
    rows = (*common, *audit_compose(content), *unseen)
    return tuple(sorted(rows, key=lambda row: (ORDER.index(row.severity), row.service, row.rule)))


def _show(path: Path, findings: "tuple[AuditFinding, ...]") -> None:
    from collections import Counter

    for row in findings:
        where = one_line(f"{row.service}:{row.line}" if row.line else row.service, 80)
        typer.echo(f"{row.severity:8} {row.rule:17} {where}: {one_line(row.observed, 200)}")
        typer.echo(f"{'':8} → {one_line(row.remedy, 160)}")
    counts = Counter(str(row.severity) for row in findings)
    typer.echo(f"{path}: " + (", ".join(f"{number} {name}" for name, number in counts.items()) or "nothing found"))
