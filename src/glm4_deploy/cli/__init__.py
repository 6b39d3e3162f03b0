"""The command line: one thin function per command; `main` is the only place that exits. May import every room."""

import gc

# Importing makes objects that stay: collecting them every 700, Python's default, is a sixth of `render`'s time.
gc.set_threshold(100_000, 50, 50)

from glm4_deploy.cli.app import main  # noqa: E402

__all__ = ["main"]
