"""The image that the settings name, and the words that start the server in it."""

from dataclasses import replace

from glm4_deploy.catalog.changes import serve_from
from glm4_deploy.catalog.images import CommandShape, EngineImage, find_image
from glm4_deploy.catalog.rows import Version, parse_version
from glm4_deploy.settings import Settings

MODULE = "vllm.entrypoints.openai.api_server"
# Where the name of Python in an image is unknown: `python3` or `python`, else what runs its `vllm`.
FIND_PYTHON = (
    'for p in python3 python; do command -v $p >/dev/null && exec $p "$@"; done; '
    'read -r first <"$(command -v vllm)" && exec ${first#??} "$@"'
)


def engine_image(settings: Settings) -> EngineImage:
    """What is known of the requested image: its row in the catalog, then what the settings answer."""
    image = find_image(settings.image_repository, settings.image_tag or "", settings.image_digest)
    vllm, command = image.vllm, image.command
    if settings.image_vllm is not None:
        vllm = parse_version(settings.image_vllm)
    if settings.image_command is not None:
        command = CommandShape(settings.image_command)
    return replace(image, vllm=vllm, command=command)


def engine_version(settings: Settings) -> Version | None:
    """The vLLM in the requested image; None if neither the catalog nor the settings know it."""
    return engine_image(settings).vllm


def python_words(image: EngineImage) -> tuple[str, ...]:
    """What runs Python 3 in the image."""
    return (image.python,) if image.python else ("/bin/sh", "-c", FIND_PYTHON, "python")


def program_words(image: EngineImage) -> tuple[str, ...]:
    """What starts the server in the image, before its arguments. An unknown image is assumed to be recent."""
    by_version = image.vllm is None or image.vllm >= serve_from()
    serve = image.command in (None, CommandShape.SERVE) or (image.command is CommandShape.PROGRAM and by_version)
    return ("vllm", "serve") if serve else (*python_words(image), "-m", MODULE)
