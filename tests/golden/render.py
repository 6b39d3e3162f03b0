"""Settings whose rendered files are compared with committed copies (GOLDEN), or only checked by the target's program.

Committed copies, also those of compose/, name the newest release of CHANGELOG.md: the version of a working tree changes
with every commit.

python -m tests.golden.render        # write the copies again (make compose)
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glm4_deploy import __version__
from glm4_deploy.catalog.rows import profiles
from glm4_deploy.plan.spec import choose_fraction, plan_deployment
from glm4_deploy.render.targets import render_target
from glm4_deploy.settings import load_settings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RELEASE = next(re.finditer(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE))[1]
# name → target and settings
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "kubernetes-three": (
        "kubernetes",
        (
            "profile=b200",
            "replicas=3",
            "kubernetes.namespace=llm",
            "kubernetes.max_replicas=6",
            "kubernetes.api_key_secret=glm4-key",
            "kubernetes.model_claim=models",
        ),
    ),
    "compose-two-b200": (
        "compose",
        ("profile=b200", "replicas=2", "tensor_parallel_size=2", "api_key_file=/etc/glm4/engine.key"),
    ),
    "compose-three-named": ("compose", ("profile=hopper", "replicas=3", "devices=4,GPU-5c1e,6")),
    "quadlet-tools": ("quadlet", ("profile=rtx-5090", "tools=true")),
    "quadlet-gb10": ("quadlet", ("profile=gb10",)),
    "quadlet-cpu": (
        "quadlet",
        (
            "profile=cpu",
            "bind=::1",
            "env.NOTE=50% of $it",
            "model_dir=/models, new/glm-4-tiny-chat",
            "mem_limit=16gb",
            "user=1000:1000",
            "cpus=1.5",
            "api_key_file=/etc/glm4/api key",
        ),
    ),
}
# One for each target, for people to read. The others are only checked by the target's own program.
GOLDEN = ("kubernetes-three", "compose-two-b200", "quadlet-gb10")


def render(target: str, *sets: str, **values: Any) -> dict[str, str]:
    """File name → text. sets: settings as for `--set`; values: settings as in glm4.yaml."""
    settings, profile = load_settings(values, environ={}, sets=sets)
    spec = plan_deployment(settings, profile, choose_fraction(settings, profile))
    return dict(render_target(target, spec, settings, profile))


def render_case(name: str) -> dict[Path, str]:
    """Path → text of one case."""
    target, sets = CASES[name]
    return {HERE / name / file: text for file, text in render(target, *sets).items()}


def as_committed(text: str) -> str:
    """The text as a rendering by the newest release."""
    return re.sub(rf"(kit[:=] ?\"?){re.escape(__version__)}\b", rf"\g<1>{RELEASE}", text)


def committed(name: str) -> dict[Path, str]:
    """Path → text of the committed copies of one case or, for a profile's name, of compose/."""
    if name in profiles():
        (text,) = render("compose", f"profile={name}").values()
        return {ROOT / f"compose/{name}.yaml": as_committed(text)}
    return {path: as_committed(text) for path, text in render_case(name).items()}


def files() -> Iterator[tuple[Path, str]]:
    for name in (*GOLDEN, *profiles()):
        yield from committed(name).items()


def main() -> None:
    for path, text in files():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
