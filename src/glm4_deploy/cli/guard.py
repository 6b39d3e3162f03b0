"""`glm4-deploy guard`."""

import asyncio
import re
import signal
import sys
from collections.abc import Iterable
from typing import Annotated
from urllib.parse import urlsplit

import typer

from glm4_deploy.errors import ExtraMissing, UsageError
from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.host.memory import check_level

try:
    import uvloop

    from glm4_deploy.guard.proxy import GuardOptions, serving
    from glm4_deploy.guard.reader import Mode
except ModuleNotFoundError as error:
    raise ExtraMissing(
        f"the guard needs {error.name}, which is not installed", hint="pip install 'glm4-deploy[guard]'"
    ) from error

SWITCH_S = 0.0005  # for which a verdict in another thread may hold up the tokens; Python's default is 5 ms


def guard(
    engine: Annotated[str, typer.Option(metavar="URL", help="The engine's address.")] = "http://127.0.0.1:8080",
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port for clients.")] = 8081,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of its own /metrics and /healthz.")] = 9110,
    mode: Annotated[
        Mode,
        typer.Option(
            help="off: pass on. observe: judge, count and log. cut: end an answer where it loops. "
            "retry: as cut, but ask again first where nothing was sent yet, or the client asked for retry."
        ),
    ] = Mode.OBSERVE,
    mode_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=MODE",
            help="The mode for key:NAME (as in `glm4-deploy key list`, from the gateway) or model:NAME; repeatable.",
        ),
    ] = None,
    repetition_detection: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,TIMES",
            help="Where answers are cut, also let vLLM (from 0.17) end them: max_pattern_size and min_count of its own "
            "check for repeated tokens, which knows no prompt. For example 64,16.",
        ),
    ] = None,
    refuse_below_gib: Annotated[
        float,
        typer.Option(
            min=0,
            max=1000,
            help="While less of this host's memory is available, answer new questions with 503 and Retry-After; what "
            "runs goes on. 0: never.",
        ),
    ] = 0.0,
    show_text: Annotated[bool, typer.Option("--show-text", help="Also log what repeats: text of your users.")] = False,
) -> None:
    """Proxy an engine, judge its answers as they stream, and cut off those that loop.

    It writes one line of JSON per finding, without the text.

    Example: glm4-deploy guard --engine http://127.0.0.1:8080 --mode cut
    """
    address = urlsplit(engine)
    if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
        raise UsageError("--engine is not the address of a server", hint="for example http://127.0.0.1:8080")
    check_level("--refuse-below-gib", refuse_below_gib)
    options = GuardOptions(
        engine=engine,
        mode=mode,
        mode_for=dict(_modes_for(mode_for or ())),
        repetition_detection=_tokens_times(repetition_detection),
        refuse_below_gib=refuse_below_gib,
    )
    ledger = Ledger(_write, show_text=show_text)
    sys.setswitchinterval(SWITCH_S)
    uvloop.run(_run(options, ledger, listen, port, metrics_port))


def _modes_for(given: Iterable[str]) -> Iterable[tuple[str, Mode]]:
    for text in given:
        what, _, mode = text.rpartition("=")
        kind, _, name = what.partition(":")
        if kind not in ("key", "model") or not name or mode not in set(Mode):
            hint = f"for example key:ada=cut or model:glm-4-9b-chat=off; the modes are {', '.join(Mode)}"
            raise UsageError(f"--mode-for {text[:80]!r} is not WHAT=MODE", hint=hint)
        yield what, Mode(mode)


def _tokens_times(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if not re.fullmatch("[1-9][0-9]{0,3},([2-9]|[1-9][0-9]{1,3})", given):
        hint = "two numbers, for example 64,16: a pattern of up to 64 tokens, 16 times (2 or more)"
        raise UsageError(f"--repetition-detection {given[:80]!r} is not TOKENS,TIMES", hint=hint)
    tokens, times = given.split(",")
    return int(tokens), int(times)


async def _run(options: GuardOptions, ledger: Ledger, listen: str, port: int, metrics_port: int) -> None:
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    async with serving(options, ledger, listen, port, metrics_port):
        ledger.event("listening", port=port, metrics_port=metrics_port, mode=options.mode.value)
        await stop.wait()
    ledger.event("ended")


def _write(line: str) -> None:
    print(line, flush=True)  # noqa: T201 (flushed: a pipe must not delay a line)
