"""The systemd unit that brings a Compose project up with its host."""

from collections.abc import Sequence

from glm4_deploy.render.words import render_template


def unit_name(project: str) -> str:
    return f"glm4-deploy-{project}.service"


def unit_file(*, project: str, compose: Sequence[str], files: Sequence[str]) -> str:
    """The unit's text.

    Args:
        compose: the words that call Compose, the first an absolute path (systemd knows no PATH of a user's).
        files: absolute paths of the compose files.
    """
    base = [*compose, "--project-name", project, *(word for file in files for word in ("--file", file))]
    return render_template(
        "autostart.service.j2",
        project=project,
        up=[*base, "up", "--detach", "--no-build", "--remove-orphans"],
        stop=[*base, "stop"],
    )
