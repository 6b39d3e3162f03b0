"""Files: atomic writes, and safe reading of files that users supply. May import nothing."""

import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from glm4_deploy.errors import StorageError, UsageError

# This kit's templates: the wheel has them inside the package, a source tree at its top level.
TEMPLATES = (Path(__file__).parent / "templates", Path(__file__).parents[2] / "templates")


def template_path(name: str) -> Path:
    """A file of templates/. Raises FileNotFoundError."""
    found = next((root / name for root in TEMPLATES if (root / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(name)
    return found


_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
HUB_ID = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}))?")  # OWNER/NAME[@REVISION]


def hub_id_of(path: Path) -> str | None:
    """A model's id on a hub, given where a directory is wanted: `OWNER/NAME`, and no such directory."""
    if path.is_absolute() and path.is_relative_to(Path.cwd()) and path.parts[1:-2]:  # settings have it made absolute
        path = path.relative_to(Path.cwd())
    if not HUB_ID.fullmatch(str(path)):  # before any look at the disk, which refuses names that are too long
        return None
    there = path.exists() or Path(path.parts[0]).exists()
    return None if there else str(path)


def write_text(path: Path, text: str, *, mode: int | None = None) -> None:
    """Write the whole text as UTF-8, or nothing. Raises StorageError."""
    write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write all the data or nothing: to a temporary file beside the target, flushed to disk, then renamed.

    Of a symbolic link, the file that it points to is replaced. A device or a pipe is written to, never replaced.

    Args:
        mode: permissions of the file; None keeps those of the file that is replaced, and leaves those of a new one to
            the umask.

    Raises:
        StorageError: the path is a directory, its directory is not writable, or the disk is full.
    """
    try:
        if _is_stream(path):
            path.write_bytes(data)
            return
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode is None:
            with suppress(FileNotFoundError):
                mode = stat.S_IMODE(target.stat().st_mode)
        temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}{_TEMPORARY}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode & 0o700)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if mode is not None:
                    os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


_TEMPORARY = ".glm4-tmp"


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files of writers that were killed. For a directory with one writer, who holds its lock."""
    for path in directory.glob(f".*{_TEMPORARY}"):
        with suppress(OSError):
            path.unlink()


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


MAX_BYTES = 16 << 20  # of a small file: a link in a cloned repository may lead to /dev/zero


def read_bytes(path: Path) -> bytes:
    """The bytes of a small file.

    Raises:
        UsageError: the file is missing, a directory, not readable, or has more than MAX_BYTES.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UsageError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}", hint="check the path"
        ) from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES >> 20} MiB", hint="check that it is the right file")
    return data


def read_text(path: Path) -> str:
    """As `read_bytes`, decoded; line ends are as Python reads them.

    Raises:
        UsageError: as `read_bytes`, or it is not UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: {error}", hint="check the path") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


MAX_YAML_CHARACTERS = 1_000_000
MAX_YAML_NODES = 20_000  # PyYAML reads about 20,000 in a second
MAX_YAML_VALUES = 100_000  # once aliases are expanded
# YAML 1.2's core schema: 1.1, PyYAML's own, also makes numbers of 010, 12:30:45 and 1_000, and truth of yes and on.
_CORE_SCHEMA = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
    "merge": (r"<<", "<"),
}


_BOOL = "tag:yaml.org,2002:bool"
_VERBATIM = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parse_yaml(text: str, name: object, *, verbatim: frozenset[str] = frozenset()) -> Any:
    """The content of a YAML 1.2 text.

    Aliases are limited: nested ones can make a few lines expand to billions of values.

    Args:
        name: the source, for error messages.
        verbatim: top-level keys whose entries stay text as they are written, except `true`, `false` and `null`.

    Raises:
        UsageError: not YAML, too large, a duplicate key, or too many values once aliases are expanded.
    """
    import yaml

    if len(text) > MAX_YAML_CHARACTERS:
        raise UsageError(f"{name} is too large: {len(text):,} characters", hint="check that it is the right file")
    try:
        content = yaml.load(text, _loader(name, verbatim))  # noqa: S506 (a SafeLoader)
        values = _expanded_size(content, {})
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError, TypeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise UsageError(f"{name}{line} is not valid YAML", hint="check indentation and quotes") from None
    if values > MAX_YAML_VALUES:
        raise UsageError(f"{name} expands to {values:,} values through its aliases", hint="use fewer aliases")
    return content


def _loader(name: object, verbatim: frozenset[str]) -> Any:
    """A SafeLoader with YAML 1.2's types, for which a duplicate key is an error, as it is for Compose."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own shape)
        nodes = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.nodes += 1
            if self.nodes > MAX_YAML_NODES:
                raise UsageError(f"{name} is too large: over {MAX_YAML_NODES:,} values", hint="is it the right file?")
            return super().compose_node(parent, index)

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                line = f"{name} line {key.start_mark.line + 1}"
                if not isinstance(key, yaml.ScalarNode):
                    raise UsageError(
                        f"{line}: a list or a mapping cannot be a key", hint="check indentation and quotes"
                    )
                if (key.tag, key.value) in seen:
                    raise UsageError(f"{line}: {key.value[:60]!r} is given twice", hint="keep one of them")
                seen.add((key.tag, key.value))
            return node

        def get_single_node(self) -> Any:
            root = super().get_single_node()
            for scalar in _entries(root):
                if scalar.tag in _VERBATIM or (scalar.tag == _BOOL and scalar.value not in ("true", "false")):
                    scalar.tag = "tag:yaml.org,2002:str"
            return root

    def _entries(root: Any) -> Iterator[Any]:
        for key, group in root.value if isinstance(root, yaml.MappingNode) else ():
            if key.value in verbatim and isinstance(group, yaml.MappingNode):
                yield from (value for _, value in group.value if isinstance(value, yaml.ScalarNode))

    for kind, (pattern, first) in _CORE_SCHEMA.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern})\Z"), list(first))
    return Loader


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
