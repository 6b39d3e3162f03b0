"""Ask many things at once, none of them for long: one hanging driver must not hang the report."""

import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any


def gather(probes: Mapping[str, Callable[[], Any]], *, timeout: float) -> dict[str, Any]:
    """Run every probe in a thread of its own; what did not answer within `timeout` seconds is left out.

    A probe that raises is left out too. Threads are daemons: a hanging one does not keep the program alive.
    """
    found: dict[str, Any] = {}

    def ask(name: str, probe: Callable[[], Any]) -> None:
        try:
            found[name] = probe()
        except Exception:  # noqa: BLE001 (whatever a probe dies of, its fact is unknown and the others count)
            return

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in probes.items()]
    for thread in threads:
        thread.start()
    end = monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - monotonic()))
    return dict(found)
