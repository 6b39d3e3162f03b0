"""Settings → what the services beside the engine need to know. Their images are pinned in services.yaml."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from glm4_deploy.catalog import load
from glm4_deploy.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """host: the name in its certificate. published: the host address of its ports. body_limit: Caddy's size."""

    image: str
    host: str
    published: str
    port: int
    ui_port: int
    tls: str
    body_limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitoring:
    """Images and host ports. gpu_exporter: host:port of an exporter of NVIDIA's metrics, None where there is none."""

    prometheus: str
    node_exporter: str
    grafana: str
    prometheus_port: int
    grafana_port: int
    gpu_exporter: str | None


def monitoring(settings: Settings) -> Monitoring:
    return Monitoring(
        prometheus=image("prometheus", settings),
        node_exporter=image("node-exporter", settings),
        grafana=image("grafana", settings),
        prometheus_port=settings.prometheus_port,
        grafana_port=settings.grafana_port,
        gpu_exporter=settings.gpu_exporter,
    )


def gateway(settings: Settings) -> Gateway:
    return Gateway(
        image=image("caddy", settings),
        host=settings.gateway_host,
        published=f"[{settings.gateway_bind}]" if ":" in settings.gateway_bind else settings.gateway_bind,
        port=settings.gateway_port,
        ui_port=settings.gateway_ui_port,
        tls=settings.gateway_tls,
        body_limit=settings.gateway_body_limit,
    )


def pinned(reference: str, digests: Mapping[str, str]) -> str:
    """`repository:tag`, with its digest where `glm4-deploy lock` wrote one."""
    return f"{reference}@{digests[reference]}" if reference in digests else reference


def image(name: str, settings: Settings) -> str:
    """A row of services.yaml as a reference."""
    row = load("services")["images"][name]
    return pinned(f"{row['repository']}:{row['tag']}", settings.digests)


def references(engine: str, extras: Iterable[str]) -> tuple[str, ...]:
    """Every `repository:tag` of a deployment, without digests."""
    used = {"gateway": ("caddy",), "monitoring": ("prometheus", "node-exporter", "grafana"), "ui": ("ui",)}
    rows = load("services")["images"]
    names = [name for extra in extras for name in used.get(extra, ())]
    return (engine.partition("@")[0], *(f"{rows[name]['repository']}:{rows[name]['tag']}" for name in names))
