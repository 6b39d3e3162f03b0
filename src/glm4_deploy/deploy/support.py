"""The support bundle: what others need to know of a deployment to help with it, masked, in one archive of plain text.

Every part is masked by one `Masker`, so that a name or an address is the same `HOST-1` or `IP-1` in all of them. A part
that cannot be had is a line in CONTENTS.txt, never a failure of the whole.
"""

import gzip
import io
import json
import os
import pwd
import re
import socket
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from glm4_deploy.errors import DeployError, StorageError, UsageError
from glm4_deploy.files import parse_yaml, write_bytes
from glm4_deploy.host.system import gather
from glm4_deploy.text import ANSI, MASK, PASTED_COLOR, clean_text, head_and_tail, one_line, redact, secrets_in

CONTENTS = "CONTENTS.txt"
ROOT = "glm4-support"
SECONDS = 60.0  # for all parts; they are read at the same time
LARGEST = 16 << 20  # bytes: no file that this kit writes is larger
TEXT_BYTES, LOG_BYTES = 128 << 10, 1 << 20  # of one member, at most: under 5 MB in all

# Masking.

_BEFORE = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"  # a word begins; inside JSON, a line too
_AFTER = r"(?![A-Za-z0-9])"
_EMAIL = re.compile(r"[A-Za-z0-9.+_-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}" + _AFTER)
_HOME = r"/(?:home|Users)/[A-Za-z0-9._-]{1,64}|[A-Za-z]:\\{1,2}Users\\{1,2}[A-Za-z0-9._-]{1,64}"
_URL_HOST = re.compile(r"(?<=://)(?:[^\s/@\"']{1,200}@)?([A-Za-z0-9_.-]{1,253})")
_REGISTRY = re.compile(  # of an image: `registry.lan:5000/team/vllm:tag`
    r"(?<![\w./@-])(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}"
    r"(?=(?::[0-9]{1,5})?/[a-z0-9][a-z0-9._/-]{0,200}(?::[A-Za-z0-9]|@sha256:))"
)
_NAME = r"(?:[A-Za-z0-9_-]{1,63}\.)"
_LOCAL_NAME = re.compile(
    rf"{_BEFORE}(?:{_NAME}{{1,8}}(?:local|lan|internal|intranet|corp|localdomain|home\.arpa)"
    r"|ip(?:-[0-9]{1,3}){4})(?![\w(-]|\.\w)"
)
_GPU = re.compile(r"\b(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_MAC = re.compile(r"(?<![0-9A-Fa-f:-])[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:-])")
# Not a version, as in `cudnn==9.1.0.70` or WSL2's kernel.
_IPV4 = re.compile(r"(?<![0-9.])(?<!==)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9]|-microsoft)")
_IPV6 = re.compile(r"(?:(?<![\w:.])|(?<=\\[nrt]))(?=[0-9A-Fa-f]*:[0-9A-Fa-f]*:)[0-9A-Fa-f:]{3,39}(?![\w:])")
# Hosts that everybody may know, and words that are no secret as the name of a user or a host.
_PUBLIC = re.compile(
    r"(?i)(?:^|\.)(?:github(?:usercontent)?\.com|huggingface\.co|hf\.co|nvidia\.com|nvcr\.io|docker\.(?:com|io|internal)"
    r"|ghcr\.io|quay\.io|vllm\.ai|pytorch\.org|python\.org|pypi\.org|kernel\.org|w3\.org|json-schema\.org"
    r"|(?:ubuntu|debian|kubernetes|apache|prometheus)\.(?:com|org|io)|readthedocs\.io|monitoring\.svc|example\.(?:com|org|net))$"
)
_ORDINARY = (
    "root", "user", "admin", "nobody", "ubuntu", "debian", "docker", "podman", "vllm", "nvidia", "cuda", "gpu", "dgx",
    "spark", "server", "engine", "python", "model", "localhost", "gateway", "prometheus", "grafana",
)  # fmt: skip
SHORTEST = 3  # characters of a user's or a host's name that is masked: a shorter one is part of everything


class Masker:
    """Masks secrets, and replaces each name and address by a number, the same one in every text.

    Args:
        secrets: values to mask wherever they occur.
        homes, users, hosts: of this machine.
        keep: names of hosts that are no secret: the services of a Compose file.
    """

    def __init__(
        self,
        *,
        secrets: Iterable[str] = (),
        homes: Iterable[str] = (),
        users: Iterable[str] = (),
        hosts: Iterable[str] = (),
        keep: Iterable[str] = (),
    ) -> None:
        self.counts: Counter[str] = Counter()
        """How often each kind was masked."""
        texts = {secret for secret in secrets if MASK not in secret}
        self._secrets = texts | {json.dumps(secret)[1:-1] for secret in texts}
        self._keep = {*_ORDINARY, *keep}
        self._aliases: dict[str, dict[str, int]] = {}
        hosts = {part for host in hosts for part in (host, host.partition(".")[0])}
        homes = sorted((home for home in homes if home not in ("/", "/root")), key=len, reverse=True)
        paths = "|".join([*(re.escape(home) + r"(?![A-Za-z0-9._-])" for home in homes), _HOME])
        self._rules: list[tuple[str, re.Pattern[str]]] = [
            ("email", _EMAIL),
            ("home directory", re.compile(paths)),
            ("host", _URL_HOST),
            ("host", _REGISTRY),
            *(("host", pattern) for pattern in _words(hosts)),
            ("host", _LOCAL_NAME),
            *(("user", pattern) for pattern in _words(users)),
            ("gpu", _GPU),
            ("mac", _MAC),
            ("ip", _IPV4),
            ("ip", _IPV6),
        ]

    @classmethod
    def of_this_host(cls, *, secrets: Iterable[str], keep: Iterable[str]) -> "Masker":
        """For the names of this machine and of the user who calls. Nothing is looked up over a network."""
        names = ("USER", "LOGNAME", "SUDO_USER", "USERNAME")
        users, homes = {os.environ.get(name, "") for name in names}, {str(Path.home())}
        with suppress(KeyError):
            own = pwd.getpwuid(os.getuid())
            users, homes = users | {own.pw_name}, homes | {own.pw_dir}
        hosts = {socket.gethostname(), os.environ.get("HOSTNAME", ""), *_names_in(Path("/etc/hosts"))}
        return cls(secrets=secrets, homes=homes - {""}, users=users, hosts=hosts, keep=keep)

    def mask(self, text: str) -> str:
        """The text as others may see it, without control characters and colours."""
        text = redact(clean_text(PASTED_COLOR.sub("", ANSI.sub("", text))), self._secrets)
        self.counts["secret"] += text.count(MASK)
        for kind, pattern in self._rules:
            text = pattern.sub(partial(self._replace, kind), text)
        return text

    def _replace(self, kind: str, match: re.Match[str]) -> str:
        whole = match[0]
        value = match[1] if match.re is _URL_HOST else whole
        if (kind == "ip" and not _is_address(value)) or (match.re is _URL_HOST and self._shown(value)):
            return whole
        if kind == "host" and _PUBLIC.search(value):
            return whole
        self.counts[kind] += 1
        name = "HOME" if kind == "home directory" else kind.upper()
        known = self._aliases.setdefault(name, {})
        number = known.setdefault(value.lower(), len(known) + 1)
        return f"{whole[: len(whole) - len(value)]}{name}-{number}"

    def _shown(self, host: str) -> bool:
        """Whether the host of a URL stays: an ordinary word, a service, an address (masked later), a mask."""
        return host in self._keep or re.fullmatch(r"[0-9.]+|(?:HOST|IP|EMAIL)-[0-9]+", host) is not None


def _words(names: Iterable[str]) -> Iterator[re.Pattern[str]]:
    """One pattern for the names that say something, the longest first."""
    telling = {name for name in names if len(name) >= SHORTEST and name.lower() not in _ORDINARY}
    if telling:
        longest_first = sorted(telling, key=lambda name: (-len(name), name))
        yield re.compile(f"(?i){_BEFORE}(?:{'|'.join(map(re.escape, longest_first))}){_AFTER}")


def _is_address(text: str) -> bool:
    """Whether it is an IP address that says something about a machine."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _names_in(hosts: Path) -> Iterator[str]:
    with suppress(OSError):
        for line in hosts.read_text(encoding="utf-8", errors="replace").splitlines():
            names = line.partition("#")[0].split()[1:]
            yield from (name for name in names if not name.startswith("ip6-"))


def secrets_of(value: Any) -> Iterator[str]:
    """The values that are named like a secret, at any depth of a document, also as `NAME=value` in a list."""
    if isinstance(value, Mapping):
        yield from secrets_in({name: one for name, one in value.items() if isinstance(one, str | int)})
        for one in value.values():
            yield from secrets_of(one)
    elif isinstance(value, list | tuple):
        pairs = [one.partition("=") for one in value if isinstance(one, str)]
        yield from secrets_in({name: secret for name, _, secret in pairs})
        for one in value:
            yield from secrets_of(one)


def document(path: Path) -> Any:
    """The content of a YAML or JSON file; None if it is not there or is neither."""
    with suppress(DeployError):
        return parse_yaml(read_kept(path.resolve()), path)
    return None


def read_compose_file(path: Path) -> str:
    """As `read_kept`; a record that came with a cloned repository could name any file.

    Raises:
        UsageError, StorageError: it cannot be had, or is not a Compose file.
    """
    text, content = read_kept(path), document(path)
    if not isinstance(content, dict) or "services" not in content:
        raise UsageError(f"{path.name} is not a Compose file")
    return text


# Collecting.


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One member of the archive.

    Attributes:
        name: chosen here; a name of the user's could not be masked.
        read: returns its text; a DeployError says why it cannot be had.
        limit: bytes; of a longer text, the beginning and the end are kept.
    """

    name: str
    read: Callable[[], str]
    limit: int = TEXT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportBundle:
    """What was written. members: bytes by name. missing: why, by name. masked: how often, by kind."""

    file: str
    size: int
    members: Mapping[str, int]
    missing: Mapping[str, str]
    masked: Mapping[str, int]

    def rows(self) -> Iterator[str]:
        """What is inside, what is not, and what was masked, for people."""
        for name, size in self.members.items():
            yield f"{name:16} {size:>9,} bytes"
        for name, why in self.missing.items():
            yield f"{name:16} not included: {why}"
        masked = ", ".join(f"{number} × {kind}" for kind, number in self.masked.items())
        yield f"masked: {masked or 'nothing'}"


def write_support_bundle(path: Path, parts: Iterable[Part], masker: Masker) -> SupportBundle:
    """Read every part, mask it, and write the archive: all of it or nothing.

    Raises:
        StorageError: the archive cannot be written.
    """
    wanted = tuple(parts)
    read = gather({part.name: partial(_attempt, part.read) for part in wanted}, timeout=SECONDS)
    texts, missing = {}, {}
    for part in wanted:
        text, why = read.get(part.name, ("", f"no answer within {SECONDS:g} s"))
        if why or not text.strip():
            missing[part.name] = one_line(masker.mask(why or "it is empty"), 300)
        else:
            texts[part.name] = head_and_tail(masker.mask(_shortened(text, 2 * part.limit)), part.limit)
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    masked = {kind: number for kind, number in sorted(masker.counts.items()) if number}
    written = SupportBundle(file=str(path), size=0, members=sizes, missing=missing, masked=masked)
    data = _archive({CONTENTS: "\n".join(written.rows()) + "\n", **texts})
    write_bytes(path, data, mode=0o600)
    return SupportBundle(file=str(path), size=len(data), members=sizes, missing=missing, masked=masked)


def _attempt(read: Callable[[], str]) -> tuple[str, str]:
    """The text, or why there is none."""
    try:
        return read(), ""
    except DeployError as error:
        return "", error.message
    except Exception as error:  # noqa: BLE001 (however a part fails, the others are wanted)
        return "", f"{type(error).__name__}: {error}"


def _shortened(text: str, limit: int) -> str:
    """Whole lines of the beginning and the end of a long text: half a secret would not be recognised."""
    if len(text) <= limit:
        return text
    head, _, _ = text[: limit // 8].rpartition("\n")
    _, _, tail = text[-(limit - limit // 8) :].partition("\n")
    return f"{head}\n… the middle is left out …\n{tail}"


def read_kept(path: Path) -> str:
    """A file of a deployment, if it is one: a link or a pipe may lead to anything.

    Raises:
        UsageError, StorageError: it cannot be had.
    """
    try:
        if path.is_symlink():
            raise UsageError(f"{path.name} is a link, which is not followed")
        if not path.is_file():
            raise UsageError(f"there is no file {path.name}")
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path.name} is too large: {path.stat().st_size:,} bytes")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StorageError(f"cannot read {path.name}: {error.strerror or error}") from None


def _archive(texts: Mapping[str, str]) -> bytes:
    """The same bytes for the same texts: no times and no owner."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in texts.items():
            data = text.encode()
            member = tarfile.TarInfo(f"{ROOT}/{name}")
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(tarred.getvalue(), mtime=0)
