"""A pull on a terminal: one bar for the whole and one for each layer that is on its way, through Rich."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from glm4_deploy.engine.images import PullState

SHOWN = 8  # layers at once: the image has dozens


def in_words(state: "PullState") -> str:
    rate = state.fetched / 1e6 / state.seconds if state.seconds > 0 else 0.0
    sizes = f"{state.fetched / 1e9:.2f} of {state.total / 1e9:.2f} GB, {rate:.0f} MB/s"
    return f"{state.done} of {len(state.layers)} layers, {sizes}, {state.seconds:.0f} s"


class Bars:
    """Opened by the first state that is shown; `close` leaves the terminal as it was."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, state: "PullState") -> None:
        progress = self._open()
        self._set(progress, "image", in_words(state), state.fetched, state.total)
        moving = [layer for layer in state.layers if not layer.done and layer.total][:SHOWN]
        for layer in moving:
            self._set(progress, layer.id, f"{layer.id} {layer.status.lower()}", layer.current, layer.total)
        for name in set(self._tasks) - {"image", *(layer.id for layer in moving)}:
            progress.remove_task(self._tasks.pop(name))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}

    def _open(self) -> "Progress":
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
        return self._progress

    def _set(self, progress: "Progress", name: str, text: str, current: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = progress.add_task(text, total=total or None)
        progress.update(self._tasks[name], description=text, completed=current, total=total or None)
