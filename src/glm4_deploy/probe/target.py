"""Where the questions go, and what is expected to answer there."""

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from glm4_deploy.errors import UsageError

API_PATHS = ("/completions", "/models", "/health", "/metrics")


class Secret(Protocol):
    """pydantic's SecretStr, or anything that hides its value the same way."""

    def get_secret_value(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An OpenAI-compatible endpoint.

    base_url: http(s)://host[:port][/prefix]; a trailing /v1 is dropped.
    model: the served name that must answer; None takes the only one that is served.
    started_at: epoch seconds; the engine must have started at or after this (the container's start).
    vllm_version: must equal what GET /version says ("0.13.0" also accepts "0.13.0+local").
    max_model_len: tokens, where the server does not tell.
    timeout_s: how long a first token may take (a cold engine compiles on its first request).
    """

    base_url: str
    model: str | None = None
    api_key: Secret | None = None
    started_at: float | None = None
    vllm_version: str | None = None
    max_model_len: int | None = None
    timeout_s: float = 120.0

    @property
    def root(self) -> str:
        """The address without a trailing slash or /v1.

        Raises:
            UsageError: not an http(s) address, or one that carries a user name or password.
        """
        url = self.base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
        hint = "write it like http://localhost:8000"
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise UsageError(f"base URL {url[:80]!r}: {error}", hint=hint) from error
        if "@" in parts.netloc:
            raise UsageError("the base URL carries a user name or a password", hint="give a key with --api-key-file")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"base URL {url[:80]!r} is not an http(s) address", hint=hint)
        if parts.path.endswith(API_PATHS):
            raise UsageError(f"base URL {url[:80]!r} is one address of the API", hint="leave off what follows the port")
        return url

    @property
    def key(self) -> str | None:
        """The key as it goes into the header.

        Raises:
            UsageError: it is empty or holds what no HTTP header can carry.
        """
        if self.api_key is None:
            return None
        key = self.api_key.get_secret_value().strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError("the API key is empty or holds a space or a control character", hint="check the key file")
        return key
