"""Files: atomic writes, and safe reading of files that users supply. May import nothing."""

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from glm4_deploy.errors import StorageError, UsageError


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write the whole text as UTF-8, or nothing. Raises StorageError."""
    write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write all the data or nothing: to a temporary file beside the target, flushed to disk, then renamed.

    Of a symbolic link, the file that it points to is replaced. A device or a pipe is written to, never replaced.

    Raises:
        StorageError: the path is a directory, its directory is not writable, or the disk is full.
    """
    try:
        if _is_stream(path):
            path.write_bytes(data)
            return
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(mode)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def sync_directory(directory: Path) -> None:
    """Flush a directory: without it, new names may not survive a power cut. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ensure_writable(path: Path) -> None:
    """Check before long work that `write_text` will be able to write this path. Leaves no file behind.

    Raises:
        StorageError: the path is a directory, or its directory cannot be created or written.
    """
    try:
        if _is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        parent = path.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            return
    except OSError as error:
        raise _cannot_write(path, error) from error


def _is_stream(path: Path) -> bool:
    """Whether the path is a device, a pipe, a socket, or a link to one. Raises OSError for a directory."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    return not stat.S_ISREG(kind)


def _cannot_write(path: Path, error: OSError) -> StorageError:
    directory = isinstance(error, IsADirectoryError)
    hint = "name a file in it" if directory else "check the directory, its owner and free space"
    return StorageError(f"cannot write {path}: {error.strerror or error}", hint=hint)


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        UsageError: the file is missing, a directory, not readable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}", hint="check the path"
        ) from None


MAX_YAML_CHARACTERS = 2_000_000
MAX_YAML_VALUES = 100_000


def parse_yaml(text: str, name: object) -> Any:
    """The content of a YAML text. `name`: the source, for error messages.

    Aliases are limited: nested ones can make a few lines expand to billions of values.

    Raises:
        UsageError: not YAML, too large, a duplicate key, or too many values once aliases are expanded.
    """
    import yaml

    if len(text) > MAX_YAML_CHARACTERS:
        raise UsageError(f"{name} is too large: {len(text):,} characters", hint="check that it is the right file")
    try:
        content = _load_yaml(text, name)
        values = _expanded_size(content, {})
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise UsageError(f"{name}{line} is not valid YAML", hint="check indentation and quotes") from None
    if values > MAX_YAML_VALUES:
        raise UsageError(f"{name} expands to {values:,} values through its aliases", hint="use fewer aliases")
    return content


def _load_yaml(text: str, name: object) -> Any:
    """Load YAML with duplicate keys as an error, as in Compose; PyYAML itself silently keeps the last one."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if (key.tag, str(key.value)) in seen:
                    line = f"{name} line {key.start_mark.line + 1}"
                    raise UsageError(f"{line}: {str(key.value)[:60]!r} is given twice", hint="keep one of them")
                seen.add((key.tag, str(key.value)))
            return node

    return yaml.load(text, Loader)  # noqa: S506 (a SafeLoader)


def _expanded_size(value: Any, known: dict[int, int]) -> int:
    """The number of values once aliases are expanded. Raises ValueError for a node that contains itself."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if id(value) in known:
        if known[id(value)] == 0:
            raise ValueError("a node contains itself")
        return known[id(value)]
    known[id(value)] = 0
    children = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
    known[id(value)] = 1 + sum(_expanded_size(child, known) for child in children)
    return known[id(value)]
