"""What `up` and `rollback` share: one hand at a time, an end that can be interrupted, and how the outcome is told."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from glm4_deploy.cli.progress import Progress
    from glm4_deploy.engine.outcome import Outcome
    from glm4_deploy.errors import DeployError


@contextmanager
def deploying(state_dir: Path, what: str, progress: "Progress") -> Iterator[None]:
    """Hold the lock; say what an earlier deployment left; end like Ctrl-C on SIGTERM and on a lost terminal.

    Raises:
        Locked, StorageError
    """
    from glm4_deploy.engine.journal import cut_off, in_words
    from glm4_deploy.engine.lock import hold

    with hold(state_dir, what):
        if (left := cut_off(state_dir)) is not None:
            sentence, _ = in_words(state_dir, at_work=False)
            progress.note(f"an earlier {sentence}")
            if left.touched:
                progress.note(f"this {what} goes on from what is there")
        before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
        for name, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(name, signal.default_int_handler)
        try:
            yield
        except KeyboardInterrupt:
            sentence, unjudged = in_words(state_dir, at_work=False)
            left_as = f" ({sentence})" if unjudged else ""
            progress.note(
                f"interrupted: the engine is left as it is{left_as}; see `glm4-deploy status`, end it with `down`"
            )
            raise
        finally:
            progress.close()
            for name, handler in before.items():
                signal.signal(name, handler)


def tell(outcome: "Outcome", error: "DeployError | None", progress: "Progress", *, json_: bool) -> None:
    """The report on stdout, then the error that the command ends in."""
    if json_:
        from glm4_deploy.report.wire import dumps

        typer.echo(dumps(outcome))
    else:
        for one in (outcome, outcome.restored):
            if one is not None and one.results:
                progress.table(one.results)
                release = f", release {one.release}" if one.release else ""
                typer.echo(f"{one.record.base_url}/v1 serves {one.record.model!r}: {one.verdict}{release}")
    if error is not None:
        raise error
