"""Flags and variables by version: which of them a vLLM knows, and what takes the place of those that are gone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from glm4_deploy.catalog.images import versions_tested
from glm4_deploy.catalog.rows import Version, load_catalog, parse_version


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The versions that know a name. since, gone: the first tested ones with it and without; None: no such limit."""

    since: Version | None = None
    gone: Version | None = None

    def knows(self, version: Version) -> bool | None:
        """None for a release between two tested ones, of which one knows it and the other does not."""
        if self.since is not None and version < self.since:
            return False if version <= _tested_before(self.since) else None
        if self.gone is not None and version > _tested_before(self.gone):
            return False if version >= self.gone else None
        return True


def _tested_before(version: Version) -> Version:
    return max((tested for tested in versions_tested() if tested < version), default=())


@cache
def flags() -> dict[str, Span]:
    """The flags that not every version has, without their dashes."""
    return dict(_spans("flags"))


@cache
def variables() -> dict[str, Span]:
    """The environment variables that vLLM stopped reading, and when it began to."""
    return dict(_spans("variables"))


def _spans(section: str) -> Iterator[tuple[str, Span]]:
    for row in load_catalog("changes")[section]:
        since, gone = (parse_version(str(row[key])) if key in row else None for key in ("since", "gone"))
        yield from ((name, Span(since=since, gone=gone)) for name in row["names"])


def serve_from() -> Version:
    """The first vLLM that is started with `vllm serve` where the command names its program."""
    return parse_version(str(load_catalog("changes")["serve_from"]))


def value_from(flag: str, value: str) -> Version | None:
    """The first vLLM whose flag takes this value; None if all do."""
    first = load_catalog("changes")["values"].get(flag, {}).get(value)
    return parse_version(str(first)) if first is not None else None


def successor(variable: str, value: str, version: Version) -> tuple[str, str] | None:
    """The flag that does in this version what a variable did, and its value there; None if the variable is read."""
    span, row = variables().get(variable, Span()), load_catalog("changes")["instead"].get(variable, {})
    if "flag" not in row or span.gone is None or version < span.gone:
        return None
    old, new = row.get("from_to", "--")
    return str(row["flag"]), value.replace(old, new)


def flag_trouble(name: str, version: Version) -> str:
    """Why this vLLM does not take a flag, or will not for long; '' if nothing is known against it.

    name: without dashes in front; `no-` and what follows a dot (`config.key`) are not part of it.
    """
    name = name.removeprefix("no-").partition(".")[0]
    span = flags().get(name, Span())
    if trouble := _trouble(name, span, version, "know"):
        return trouble
    deprecated = load_catalog("changes")["deprecated"].get(name)
    if deprecated is not None and version >= parse_version(str(deprecated)):
        return f"vLLM {_shown(version)} says that it will go{_advice(name)}"
    return ""


def variable_trouble(name: str, version: Version) -> str:
    """Why this vLLM does not read a variable; '' if nothing is known against it."""
    return _trouble(name, variables().get(name, Span()), version, "read")


def _trouble(name: str, span: Span, version: Version, verb: str) -> str:
    if span.knows(version) is not False:
        return ""
    if span.since is not None and version < span.since:
        return f"vLLM {_shown(version)} does not {verb} it; {_shown(span.since)} does"
    return f"vLLM {_shown(version)} no longer {verb}s it{_advice(name)}"


def _advice(name: str) -> str:
    row = load_catalog("changes")["instead"].get(name, {})
    text = f"set args.{row['flag']} instead" if "flag" in row else row.get("advice", "")
    return f"; {text}" if text else ""


def _shown(version: Version) -> str:
    return ".".join(map(str, version))
