"""A service of somebody's Compose file, as far as the audit reads it: words, environment, addresses. Pure."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SEPARATE = re.compile(r"^--[A-Za-z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A published port. host: "" is every interface; None: a variable decides, so it is not known."""

    text: str
    host: str | None

    @property
    def open(self) -> bool:
        return self.host is not None and not (
            self.host.startswith("127.") or self.host in ("::1", "[::1]", "localhost")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """words: entrypoint and command as the shell would split them, an inner `sh -c` script too."""

    name: str
    raw: Mapping[str, Any]
    image: str
    words: tuple[str, ...]
    environment: Mapping[str, str | None]
    ports: tuple[Port, ...]

    @property
    def is_vllm(self) -> bool:
        """By its words; by its image where the words name no other program."""
        if any("vllm_router" in word for word in self.words):
            return False  # it passes requests on, and has none of an engine's switches
        other = len(self.words) > 1 and self.words[0].rpartition("/")[2] in ("python", "python3", "sh", "bash")
        return any("vllm" in word for word in self.words) or ("vllm" in self.image.lower() and not other)

    def flag(self, *names: str) -> str | None:
        """The value of `--name VALUE` or `--name=VALUE` ("" for a bare flag), None where it is not there."""
        for index, word in enumerate(self.words):
            name, equals, value = word.partition("=")
            if name.replace("_", "-") not in {f"--{known}" for known in names}:
                continue
            follower = self.words[index + 1] if index + 1 < len(self.words) else ""
            return value if equals else "" if SEPARATE.match(follower) else follower
        return None


def services(content: object) -> Iterator[Service]:
    """The services of a parsed file; a part of another type than Compose allows is taken as absent."""
    mapping = content.get("services") if isinstance(content, dict) else None
    for name, raw in mapping.items() if isinstance(mapping, dict) else ():
        if isinstance(raw, dict):
            yield Service(
                name=_text(name),
                raw=raw,
                image=_text(raw.get("image")),
                words=tuple(_inner((*_words(raw.get("entrypoint")), *_words(raw.get("command"))))),
                environment=_environment(raw.get("environment")),
                ports=tuple(_ports(raw)),
            )


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _words(value: object) -> list[str]:
    if isinstance(value, list):
        return [_text(item) for item in value]
    try:
        return shlex.split(_text(value))
    except ValueError:
        return _text(value).split()


def _inner(words: tuple[str, ...]) -> Iterator[str]:
    """A script after -c is looked into: flags hide there."""
    for before, word in zip(("", *words), words, strict=False):
        yield word
        if before == "-c" and " " in word:
            yield from _words(word)


def _environment(value: object) -> Mapping[str, str | None]:
    if isinstance(value, dict):
        return {_text(name): _scalar(item) for name, item in value.items()}
    pairs = [_text(item).partition("=") for item in value] if isinstance(value, list) else []
    return {name: item if equals else None for name, equals, item in pairs}


def _scalar(value: object) -> str | None:
    return str(value).lower() if isinstance(value, bool) else None if value is None else _text(value)


def _ports(raw: Mapping[str, Any]) -> Iterator[Port]:
    if raw.get("network_mode") == "host":
        yield Port(text="network_mode: host", host="")
    listed = raw.get("ports")
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict):
            host = _text(item.get("host_ip"))
            yield Port(
                text=f"{host or '*'}:{_text(item.get('published'))}:{_text(item.get('target'))}", host=_known(host)
            )
        else:
            yield Port(text=_text(item), host=_host(_text(item)))


def _host(text: str) -> str | None:
    """`8080:8080` → "", `127.0.0.1:8080:8080` → 127.0.0.1, `[::1]:80:80` → [::1], `${BIND}:80:80` → None."""
    plain = re.sub(r"\$\{[^}]*\}|\$\w+", "$", text)
    head, _, _ = plain.rpartition(":")
    host, _, _ = head.rpartition(":")
    return _known(host)


def _known(host: str) -> str | None:
    return None if "$" in host else host
