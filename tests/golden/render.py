"""The golden files of what compose/ does not hold, and the wishes that they are rendered from.

python -m tests.golden.render        # write them anew (make compose)
"""

from pathlib import Path

from glm4_deploy.plan.spec import choose_fraction, plan_deployment
from glm4_deploy.render.targets import render_target
from glm4_deploy.settings import load_settings

HERE = Path(__file__).parent
SHARED = ("replicas=3", "kubernetes.api_key_secret=glm4-key", "kubernetes.model_claim=models")
LIMITS = ("mem_limit=16gb", "user=1000:1000", "api_key_file=/etc/glm4/api key")
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "kubernetes-b200": ("kubernetes", ("profile=b200",)),
    "kubernetes-three": (
        "kubernetes",
        ("profile=b200", "kubernetes.namespace=llm", "kubernetes.max_replicas=6", *SHARED),
    ),
    "kubernetes-restricted": (
        "kubernetes",
        (
            "profile=gb10",
            "kubernetes.runtime_class=nvidia",
            "kubernetes.model_claim=models",
            "user=1000:1000",
            "mem_limit=64gb",
        ),
    ),
    "compose-two-b200": (
        "compose",
        ("profile=b200", "replicas=2", "tensor_parallel_size=2", "api_key_file=/etc/glm4/engine.key"),
    ),
    "compose-three-named": ("compose", ("profile=hopper", "replicas=3", "devices=4,GPU-5c1e,6")),
    "quadlet-gb10": ("quadlet", ("profile=gb10",)),
    "quadlet-cpu": (
        "quadlet",
        ("profile=cpu", "bind=::1", "env.NOTE=50% of $it", "model_dir=/models, new/glm-4-tiny-chat", *LIMITS),
    ),
}


def render_case(name: str) -> dict[Path, str]:
    """Path → text of one case."""
    target, sets = CASES[name]
    settings, profile = load_settings(environ={}, sets=sets)
    deployment = plan_deployment(settings, profile, choose_fraction(settings, profile))
    return {HERE / name / file: text for file, text in render_target(target, deployment, settings, profile).items()}


def main() -> None:
    for name in CASES:
        for path, text in render_case(name).items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main()
