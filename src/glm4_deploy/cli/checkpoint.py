"""`glm4-deploy checkpoint verify | repair | quantize | fingerprint`."""

from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.catalog.images import resolve_version, transformers_major
from glm4_deploy.catalog.rows import Version, parse_version
from glm4_deploy.checkpoint.fingerprint import make_fingerprint
from glm4_deploy.checkpoint.quantize import DEFAULT_SOURCES, quantize_checkpoint
from glm4_deploy.checkpoint.repair import RepairResult, preview_repair, repair_checkpoint
from glm4_deploy.checkpoint.verify import VerifyReport, verify_checkpoint
from glm4_deploy.cli.output import JUnit, Outputs, show_steps, stdout_if
from glm4_deploy.cli.params import DryRun
from glm4_deploy.cli.progress import BytesProgress
from glm4_deploy.errors import DeployError, UsageError
from glm4_deploy.files import ensure_writable
from glm4_deploy.fingerprint.model import FILE
from glm4_deploy.report.terminal import findings_text
from glm4_deploy.report_model import make_report
from glm4_deploy.result import ok
from glm4_deploy.text import one_line

Directory = Annotated[Path, typer.Argument(help="The checkpoint: the directory that contains config.json.")]
ImageTag = Annotated[str | None, typer.Option("--image-tag", help="Judge for this image of nvcr.io/nvidia/vllm.")]
VllmVersion = Annotated[str | None, typer.Option("--vllm", help="Judge for this vLLM, for example 0.24.0.")]
For = Annotated[
    str | None, typer.Option("--for", metavar="TAG|VERSION", help="The image tag or vLLM version that will load it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Output = Annotated[Path, typer.Option("--output", help="A new directory; nothing is overwritten.")]


def verify(
    directory: Directory,
    image_tag: ImageTag = None,
    vllm: VllmVersion = None,
    full: Annotated[bool, typer.Option("--full", help="Read every tensor, not only headers and small files.")] = False,
    manifest: Annotated[
        Path | None,
        typer.Option(help="Check every file with this list in sha256sum format; written if it does not exist."),
    ] = None,
    as_json: AsJson = False,
    junit: JUnit = None,
) -> None:
    """Find what would not load, or would produce garbage.

    The checkpoint is judged for the engine that will run it.

    Exit code 0: nothing failed; 1: something failed or could not be judged; 9: there is no checkpoint.

    Example: glm4-deploy checkpoint verify /models/glm-4-9b-chat-hf-nvfp4 --image-tag 26.01-py3
    """
    outputs = Outputs(json=stdout_if(as_json), junit=junit)
    outputs.check()
    engine = _engine(image_tag, vllm)
    report = verify_checkpoint(
        directory,
        vllm=engine,
        transformers=transformers_major(image_tag) if image_tag else None,
        full=full,
        manifest=manifest,
        progress=BytesProgress("read"),
    )
    _end(outputs, "verify", report, report, _text(report))


def repair(
    directory: Directory,
    output: Output,
    for_: For = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="CHECK", help="Repair only this finding; repeat for more.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write a copy that the engine loads, and verify it.

    No data is lost, and the original is not changed.

    Exit code 0: nothing fails now; 1: with --only, something else still fails; 10: it cannot be repaired;
    18: it could not be written (nothing is left behind).

    Example: glm4-deploy checkpoint repair /models/glm-4-9b-chat-hf-nvfp4 --output /models/glm-4-9b-nvfp4-26.01
    """
    if dry_run:
        engine, major = (resolve_version(for_), transformers_major(for_)) if for_ else (None, None)
        edits = preview_repair(directory, output, vllm=engine, transformers=major, only=only or ())
        steps = [f"{edit.check}: {edit.file}: {edit.detail}" for edit in edits] or ["nothing to repair"]
        show_steps([*steps, f"write the copy to {output}, and verify it"], json_=as_json)
        return
    outcome = repair_checkpoint(
        directory,
        output,
        vllm=resolve_version(for_) if for_ else None,
        transformers=transformers_major(for_) if for_ else None,
        only=only or (),
        progress=BytesProgress("written"),
    )
    outputs = Outputs(json=stdout_if(as_json))
    _end(outputs, "repair", outcome.report, outcome, _changes_text(outcome) + _text(outcome.report))


def quantize(
    base: Annotated[
        Path, typer.Argument(help="GLM-4 in bf16, in its -hf form: the directory that contains config.json.")
    ],
    output: Output,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Local .jsonl, .json, .txt or .parquet of chats or texts, or hub:NAME[:SPLIT]; repeatable.",
            show_default="ultrachat_200k and LongAlign-10k from the hub",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="Calibration samples.")] = 512,
    seed: Annotated[int, typer.Option(help="Random seed for choosing calibration samples.")] = 0,
    for_: For = None,
    raw: Annotated[bool, typer.Option("--raw", help="Keep what llm-compressor wrote, without repairs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize GLM-4 to NVFP4 for the default image.

    It follows the model card's recipe.

    Needs the extra: pip install 'glm4-deploy[quantize]'. The base model is loaded into memory: 19 GB for 9B in bf16.

    Exit code 0: done, and verify finds no fault; 2: an unusable dataset or name; 20: the extra is missing.

    Example: glm4-deploy checkpoint quantize /models/glm-4-9b-chat-hf --output /models/glm-4-9b-chat-hf-nvfp4
    """
    outcome = quantize_checkpoint(
        base,
        output,
        sources=tuple(dataset or DEFAULT_SOURCES),
        samples=samples,
        seed=seed,
        vllm=resolve_version(for_) if for_ else None,
        raw=raw,
        note=lambda text: typer.echo(text, err=True),
    )
    if not raw:
        _add_fingerprint(base, output)
    outputs = Outputs(json=stdout_if(as_json))
    text = f"{outcome.drawn.table()}\n{_text(outcome.report)}"
    _end(outputs, "quantize", outcome.report, outcome, text, failing=not raw)


def _add_fingerprint(base: Path, output: Path) -> None:
    """What an engine must answer. The checkpoint is complete without it, so this cannot fail the command."""
    try:
        make_fingerprint([base, output], output / FILE, note=lambda text: typer.echo(text, err=True))
    except DeployError as error:
        typer.echo(f"no fingerprint: {error.message}", err=True)


def fingerprint(
    directory: Annotated[list[Path], typer.Argument(help="The model in bf16, in NVFP4, or both, in this order.")],
    output: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default=f"{FILE} in the last directory")
    ] = None,
    context: Annotated[
        int, typer.Option(min=1024, max=8192, help="Tokens of the longest text, if the model's limit allows them.")
    ] = 2048,
    as_json: AsJson = False,
) -> None:
    """Compute the log probabilities that an engine must give.

    The reference is plain arithmetic on the CPU, layer by layer: no engine, no GPU, and for 9B a few GB of memory.
    `up` and `smoke` then judge the engine by the file.

    Needs the extra: pip install 'glm4-deploy[fingerprint]'.

    Example: glm4-deploy checkpoint fingerprint /models/glm-4-9b-chat-hf /models/glm-4-9b-chat-hf-nvfp4
    """
    target = output or directory[-1] / FILE
    ensure_writable(target)
    made = make_fingerprint(directory, target, context=context, note=lambda text: typer.echo(text, err=True))
    points = sum(len(text.points) for text in made.texts)
    facts = {"output": str(target), "bytes": target.stat().st_size, "texts": len(made.texts), "points": points}
    references = [str(kind) for kind in made.arithmetics]
    shared = make_report("checkpoint fingerprint", [ok(f"{points} points under {', '.join(references)}", check="made")])
    text = f"{target}: {points} points of {len(made.texts)} texts under {', '.join(references)}\n"
    details = facts | {"references": references, "checkpoints": made.checkpoints, "tokenizer": made.tokenizer}
    Outputs(json=stdout_if(as_json)).write(shared, lambda: text, details=details)


def _engine(image_tag: str | None, vllm: str | None) -> Version | None:
    if image_tag and vllm:
        raise UsageError("--image-tag and --vllm exclude each other", hint="give one of them")
    if vllm:
        return parse_version(vllm)
    return resolve_version(image_tag) if image_tag else None


def _end(
    outputs: Outputs, command: str, report: VerifyReport, details: object, text: str, *, failing: bool = True
) -> None:
    """Write the reports and exit: 1 if a check failed or could not be judged."""
    code = None if failing else 0
    shared = make_report(f"checkpoint {command}", report.results, code=code)
    outputs.write(shared, lambda: text, details=details)
    raise typer.Exit(shared.exit_code)


def _text(report: VerifyReport) -> str:
    kind = report.quantization or "not quantised"
    size = (
        f"{report.parameters / 1e9:.3g} B parameters, {kind}, {report.tensors} tensors, {report.size / 2**30:.3g} GiB"
    )
    close = f"{report.verdict}: {report.directory} for {report.engine}; {size}; fingerprint {report.fingerprint}"
    return findings_text(report.results, close, report.verdict)


def _changes_text(outcome: RepairResult) -> str:
    lines = [f"repaired {change.check:18}{change.file}: {change.detail}" for change in outcome.changes]
    lines = lines or ["nothing to repair"]
    kept = [f"{len(names)} {word}" for word, names in (("linked", outcome.linked), ("copied", outcome.copied)) if names]
    if outcome.left_out:
        kept.append(f"left out: {', '.join(outcome.left_out[:5])}")
    lines.append(f"{outcome.output}: {len(outcome.written)} files written, {', '.join(kept)}")
    return "".join(f"{one_line(line, 600)}\n" for line in lines)


checkpoint = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Verify, repair, quantize or fingerprint a checkpoint."
)
checkpoint.command("verify")(verify)
checkpoint.command("repair")(repair)
checkpoint.command("quantize")(quantize)
checkpoint.command("fingerprint")(fingerprint)
