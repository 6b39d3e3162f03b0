"""One level of load against an engine that was just started, from where its vLLM is installed."""

import os
from pathlib import Path

from glm4_deploy.deploy.endpoint import Endpoint
from glm4_deploy.deploy.keys import secret_key
from glm4_deploy.plan.spec import CONTAINER_PORT, MODELS
from glm4_deploy.probe.bench import BenchLoad, bench_levels, in_container
from glm4_deploy.probe.limits import Slo
from glm4_deploy.report_model import BenchLevel


def measure_started(
    endpoint: Endpoint,
    started: str,
    *,
    concurrency: int,
    input_len: int,
    output_len: int,
    slo: Slo | None = None,
    limit_s: float | None = None,
) -> BenchLevel:
    """Send the load and read the figures.

    Args:
        started: the id of the engine's container; not needed for a process.
        limit_s: seconds for the whole, with the generator's own start; None: its own limit.

    Raises:
        LoadTimeout: limit_s is over.
        ExtraMissing, Judged: the generator could not run, or failed.
    """
    inside = endpoint.in_container
    load = BenchLoad(
        base_url=f"http://127.0.0.1:{CONTAINER_PORT}" if inside else endpoint.base_url,
        model=endpoint.model,
        tokenizer=f"{MODELS}/{Path(endpoint.model_dir).name}" if inside else endpoint.model_dir,
        concurrency=(concurrency,),
        input_len=input_len,
        output_len=output_len,
    )
    key = secret_key(endpoint.api_key_file)
    python = in_container(started) if inside else [os.environ.get("GLM4_CPU_PYTHON", "python3")]
    (level,) = bench_levels(
        python, load, slo=slo, key=key.get_secret_value() if key else None, on_level=lambda _: None, limit_s=limit_s
    )
    return level
