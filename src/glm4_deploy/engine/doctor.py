"""Ask every probe at once for `doctor`. Read-only: nothing here changes the host."""

from functools import partial
from pathlib import Path

from glm4_deploy.facts.docker import DockerFacts, read_compose, read_docker
from glm4_deploy.facts.gather import gather
from glm4_deploy.facts.gpu import read_gpus
from glm4_deploy.facts.host import read_disk, read_host, read_port
from glm4_deploy.plan.doctor import Needs, Seen
from glm4_deploy.plan.fraction import engine_version
from glm4_deploy.result import Result, Status

SECONDS = 2.1  # the whole of `doctor` is to stay under 3 s, whatever hangs


def look(needs: Needs) -> Seen:
    """What the probes found within SECONDS."""
    settings = needs.settings
    found = gather(
        {
            "gpu": read_gpus,
            "host": read_host,
            "docker": partial(read_docker, needs.image),
            "compose": read_compose,
            "port": partial(read_port, settings.bind, settings.port),
            "model_disk": partial(read_disk, Path(settings.model_dir)),
            "checkpoint": partial(check_checkpoint, needs),
        },
        timeout=SECONDS,
    )
    docker: DockerFacts | None = found.get("docker")
    return Seen(
        gpu=found.get("gpu"),
        host=found.get("host"),
        docker=docker,
        compose=found.get("compose"),
        port=found.get("port"),
        model_disk=found.get("model_disk"),
        docker_disk=read_disk(Path(docker.root)) if docker and docker.root else None,
        checkpoint=found.get("checkpoint"),
    )


def check_checkpoint(needs: Needs) -> Result:
    """The checkpoint's quick verification (headers and small files) as one row."""
    from glm4_deploy.checkpoint.verify import verify
    from glm4_deploy.errors import ModelMissing

    directory = Path(needs.settings.model_dir)
    version = engine_version(needs.settings, needs.profile)
    expected = "a checkpoint that this engine loads"
    try:
        report = verify(directory, vllm=version)
    except ModelMissing as error:
        return Result(check="checkpoint", status=Status.SKIPPED, expected=expected, reason=error.message)
    bad = [row for row in report.results if row.status is report.verdict and row.status is not Status.OK]
    if not bad:
        observed = f"sound by its headers, for {report.engine}"
        return Result(check="checkpoint", status=Status.OK, observed=observed, expected=expected)
    first = bad[0]
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return Result(
        check="checkpoint",
        status=report.verdict,
        observed=f"{first.check}: {first.observed or first.reason}{more}",
        expected=expected,
        remedy=f"glm4-deploy checkpoint verify {directory}",
        reason=first.reason,
    )
