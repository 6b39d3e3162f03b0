"""(Settings, Profile) → what the engine's container may not do, each with its reason, on or off."""

from collections.abc import Iterator
from dataclasses import dataclass

from glm4_deploy.catalog.profiles import Profile
from glm4_deploy.settings import Settings

SECRET = "engine_api_key"  # noqa: S105 (a name, not a secret)
SECRET_PATH = f"/run/secrets/{SECRET}"
# The key goes from the file into the environment of the engine's process alone: `docker inspect` shows the file's
# name, `ps` shows "$@". An empty key would mean no key to vLLM, so it ends the start.
WITH_KEY = (
    f'VLLM_API_KEY=$(cat {SECRET_PATH}) && [ -n "$VLLM_API_KEY" ] || '
    '{ echo "the API key file is empty or cannot be read" >&2; exit 78; }; export VLLM_API_KEY; exec "$@"'
)
UNVERIFIED = "not verified with NVIDIA's image: its entrypoint and its compilers may write outside of the cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardening:
    """Limits of the engine's container. `off` says why a limit is not set: (Compose key, reason).

    mem_limit: Docker's size. user: UID or UID:GID. api_key_file: path on the host, None: no key is asked for.
    """

    cap_drop: bool
    no_new_privileges: bool
    read_only: bool
    pids_limit: int | None
    mem_limit: str | None
    user: str | None
    api_key_file: str | None
    off: tuple[tuple[str, str], ...]


def harden(settings: Settings, profile: Profile) -> Hardening:
    """The wishes, with the reason beside each limit that is off."""
    return Hardening(
        cap_drop=settings.cap_drop,
        no_new_privileges=settings.no_new_privileges,
        read_only=settings.read_only,
        pids_limit=settings.pids_limit,
        mem_limit=settings.mem_limit,
        user=settings.user,
        api_key_file=settings.api_key_file,
        off=tuple(_off(settings, profile)),
    )


def _off(settings: Settings, profile: Profile) -> Iterator[tuple[str, str]]:
    wished = f"switched off in the {'profile' if profile.name == 'seed' else 'settings'}"
    reasons = {
        "cap_drop": wished,
        "no_new_privileges": wished,
        "read_only": UNVERIFIED if profile.engine == "nvcr" else wished,
        "pids_limit": wished,
        "mem_limit": "pinned memory and the page cache of the weights count too, and on unified memory the GPU's part "
        "does; the planner keeps the memory instead",
        "user": "root without capabilities: the cache volume belongs to root, and NVIDIA's image was not verified "
        "with another user",
    }
    for name, reason in reasons.items():
        if not getattr(settings, name):
            yield name, reason


def is_loopback(bind: str) -> bool:
    return bind == "::1" or bind.startswith("127.")
