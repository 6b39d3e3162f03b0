"""NVIDIA's images and compose/seed.yaml and compose/gb10.yaml as they are, on a real Docker engine.

Everything is real but the silicon and the bytes of NVIDIA's image, which cannot be pulled here:

- Docker's device driver `nvidia` finds its hook (tests/default_image/nvidia-container-runtime-hook), so that the
  reservation of a GPU is granted. The hook mounts the engine's files, where the real one mounts the driver's.
- The image under each catalogued name (26.01 in seed.yaml, the default image in gb10.yaml) has an entrypoint that
  behaves like NVIDIA's, and the vLLM of that image for the CPU of this host.
- Bridged in the image, because a CPU cannot do it: the FP8 KV cache (kept in bf16), compilation (switched off), native
  NVFP4 (vLLM's own emulation) and 32,768 tokens for a demo model of 4,096 (allowed; nobody asks for so many).
  `--gpu-memory-utilization` has no effect on a CPU.
- On a host that may not raise limits, the `ulimits` of the files are lowered to what it allows (runtime).

The Docker engine is a second one with its own network and mounts: port 8080 and /models of this host stay free, and
nothing of it remains.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.kit import KIT, ROOT, Done
from glm4_deploy.catalog.images import default_image, named_image
from glm4_deploy.catalog.rows import profiles
from glm4_deploy.plan.image import program_words
from golden.render import as_committed

pytestmark = pytest.mark.e2e

NVFP4 = ROOT / "demo/glm-4-tiny-chat-nvfp4"
STAND_IN = ROOT / "tests/default_image"
SEED = f"{default_image().repository}:{profiles()['seed'].settings['image_tag']}"
DEFAULT = default_image().reference
SERVED = "/models/glm-4-9b-chat-hf-nvfp4"
ADDRESS = "http://127.0.0.1:8080"
READY_S = 420
DOCKERD = """
ip link set lo up
mount --bind {models} /models
exec dockerd --data-root {root}/data --exec-root {root}/exec -H unix://{root}/docker.sock --pidfile {root}/pid \
  --iptables=false --ip-masq=false --ip-forward=false \
  --add-runtime stand-in={stand_in}/runtime --default-runtime stand-in
"""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host with the stand-in for a GPU; commands run on its network and see its /models."""

    root: Path
    models: Path
    pid: int

    def run(self, *words: str | Path, timeout: float = READY_S) -> Done:
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", "--mount", "--", *map(str, words)],
            cwd=self.root, capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
            env=os.environ | {"DOCKER_HOST": f"unix://{self.root}/docker.sock"},
        )  # fmt: skip
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    def compose(self, name: str, *words: str) -> Done:
        return self.run(Path(sys.executable).parent / "docker-compose", "-f", ROOT / f"compose/{name}.yaml", *words)

    def kit(self, *words: str, timeout: float = READY_S) -> Done:
        return self.run(*KIT, *words, "--state-dir", str(self.root / "state"), timeout=timeout)


def version_of(image: str) -> str:
    known = named_image(image)
    assert known is not None
    assert known.vllm is not None
    return ".".join(map(str, known.vllm))


def engine_python(vllm: str) -> str:
    """The CPU engine with this vLLM."""
    done = subprocess.run([ROOT / "scripts/cpu-engine.sh", vllm], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def seed_python() -> str:
    """The CPU engine with the publisher's vLLM."""
    return engine_python(version_of(SEED))


def repaired(checkpoint: Path, image: str, output: Path) -> Path:
    words = [*KIT, "checkpoint", "repair", checkpoint, "--for", version_of(image), "--output", output]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("a second dockerd needs root and the program")
    root = Path("/tmp") / f"glm4-default-{os.getpid()}"  # the path of a socket must be short
    root.mkdir()
    made = not Path("/models").exists()
    Path("/models").mkdir(exist_ok=True)
    models = tmp_path_factory.mktemp("models")
    files = root / "files"
    env = os.environ | {"PATH": f"{STAND_IN}:{os.environ['PATH']}", "GLM4_ENGINE_FILES": str(files)}
    script = DOCKERD.format(models=models, root=root, stand_in=STAND_IN)
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec", script],
            env=env, stdout=log, stderr=log,
        )  # fmt: skip
    one = Host(root=root, models=models, pid=process.pid)
    try:
        _wait(process, one)
        yield one
    finally:
        for name in ("seed", "gb10"):
            one.compose(name, "down", "--volumes", "--timeout", "5")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        _clean(root)
        if made:
            Path("/models").rmdir()


def _wait(process: "subprocess.Popen[bytes]", host: Host) -> None:
    deadline = time.monotonic() + 90
    while host.run("docker", "info").code != 0:
        assert process.poll() is None, (host.root / "log").read_text()[-2000:]
        assert time.monotonic() < deadline, (host.root / "log").read_text()[-2000:]
        time.sleep(0.2)


def _clean(root: Path) -> None:
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in sorted((point for point in points if point.startswith(f"{root}/")), reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False)
    shutil.rmtree(root, ignore_errors=True)


def provide(host: Host, image: str) -> None:
    """The image, and at /models the checkpoint that its vLLM loads."""
    build(host, engine_python(version_of(image)), image)
    served = host.models / Path(SERVED).name
    shutil.rmtree(served, ignore_errors=True)
    repaired(NVFP4, image, served)


def up(host: Host, name: str) -> str:
    """`docker compose up` of the file as it is, until its own health check passes; the engine's log."""
    done = host.compose(name, "up", "--detach", "--wait", "--wait-timeout", str(READY_S))
    log = host.run("docker", "logs", "glm4-9b-fp4")
    assert done.code == 0, done.err[-1000:] + log.out[-3000:] + log.err[-3000:]
    return log.out + log.err


def environment(host: Host) -> set[str]:
    """What the engine's process was given."""
    done = host.run("docker", "exec", "glm4-9b-fp4", "cat", "/proc/1/environ")
    return set(done.out.split("\0"))


def test_the_publishers_example_starts_and_answers_soundly(host: Host) -> None:
    provide(host, SEED)
    log = up(host, "seed")
    assert log.index("== vLLM ==") < log.index("non-default args"), "the entrypoint runs first"
    assert "NVIDIA_VISIBLE_DEVICES=0" in environment(host), "Docker granted the device"
    smoke = host.kit("smoke", "--base-url", ADDRESS, "--model", "glm-4-9b-chat", "--suite", "gate")
    assert smoke.code == 0, smoke.out
    assert host.compose("seed", "down", "--volumes").code == 0


@pytest.mark.parametrize(
    "image", [DEFAULT, pytest.param("nvcr.io/nvidia/vllm:26.10-py3", marks=pytest.mark.matrix)], ids=version_of
)
def test_up_deploys_the_file_of_its_profile_and_passes_its_gate(host: Host, image: str) -> None:
    provide(host, image)
    other = () if image == DEFAULT else ("--image", image)
    deployed = host.kit("up", "--profile", "gb10", *other, "--json")
    assert deployed.code == 0, deployed.err
    log = host.run("docker", "logs", "glm4-9b-fp4")
    assert "'kv_cache_dtype': 'fp8'" in log.out + log.err
    assert "'max_model_len': 32768" in log.out + log.err
    rendered = (host.root / "state/compose.yaml").read_text()
    if image == DEFAULT:
        example = (ROOT / "compose/gb10.yaml").read_text()
        assert as_committed(rendered) == example, "the file of its profile is what `up` starts"
    known = named_image(image)
    assert known is not None
    assert tuple(command(host)[0])[: len(program_words(known)) + 1] == (*known.entrypoint, *program_words(known))
    assert json.loads(deployed.out)["verdict"] in ("ok", "warn")
    assert host.kit("status").code == 0
    diagnosis = host.kit("diagnose", "--json")
    assert diagnosis.code == 0, diagnosis.out
    assert diagnosis.json["version"] == version_of(image)
    assert host.kit("down", "--volumes", "--yes").code == 0


# Images that are started in other ways, and images that nobody knows.

DEMO = ROOT / "demo/glm-4-tiny-chat"
ON_A_CPU = "ENV TORCHDYNAMO_DISABLE=1 PYTHONDONTWRITEBYTECODE=1"  # no compilation, which takes minutes


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bf16 demo checkpoint, repaired for this vLLM."""
    return repaired(DEMO, SEED, tmp_path_factory.mktemp("demo") / "repaired")


def build(host: Host, python: str, image: str, *instructions: str) -> None:
    built = host.run(STAND_IN / "build.sh", image, python, host.root / "files", *instructions)
    assert built.code == 0, built.err


def up_cpu(host: Host, image: str, model: Path) -> Done:
    done = host.kit(
        "up",
        "--profile",
        "cpu",
        "--image",
        image,
        "--model-dir",
        str(model),
        "--timeout",
        "1200",
        "--json",
        timeout=1800,
    )
    assert "Traceback" not in done.err, done.err
    return done


def command(host: Host) -> tuple[list[str], str]:
    """The words that start the engine, without the shell that counts its starts, and the user it runs as."""
    row = json.loads(host.run("docker", "inspect", "glm4-9b-fp4").out)[0]
    words = [row["Path"], *row["Args"]]
    shell = words.index("/bin/sh")
    assert (words[shell + 1], words[shell + 3]) == ("-c", "engine")
    return [*words[:shell], *words[shell + 4 :]], row["Config"]["User"]


def test_an_image_whose_entrypoint_is_vllm_serve(host: Host, seed_python: str, demo: Path) -> None:
    """vllm/vllm-openai through a private mirror: known by its name."""
    image = f"mirror.example/proxy/vllm/vllm-openai:v{version_of(SEED)}"
    build(host, seed_python, image, 'ENTRYPOINT ["vllm", "serve"]', ON_A_CPU)
    done = up_cpu(host, image, demo)
    assert done.code == 0, done.err
    assert "it is asked" not in done.err
    words, _ = command(host)
    assert words[:3] == ["vllm", "serve", f"/mnt/models/{demo.name}"]
    build(host, seed_python, "somebody/engine:next", "ENV PATH=/opt/bin")
    planned = host.kit("upgrade", "somebody/engine:next", "--dry-run", "--json")
    assert (planned.code, f"image_vllm={version_of(SEED)}" in planned.err) == (0, True), planned.err
    assert "image" in {change["name"] for change in planned.json["changes"]}, "asked, then planned"
    assert host.kit("down", "--volumes", "--yes").code == 0


def test_an_unknown_image_with_a_user_and_without_python3_on_its_path(host: Host, seed_python: str, demo: Path) -> None:
    image = "somebody/engine:mine"
    build(host, seed_python, image, "ENV PATH=/opt/bin", "USER 1000:1000", ON_A_CPU)
    done = up_cpu(host, image, demo)
    assert done.code == 0, done.err
    assert f"image_vllm={version_of(SEED)}" in done.err
    words, user = command(host)
    assert (words[:2], user) == (["vllm", "serve"], "0:0")
    check = json.loads(host.run("docker", "inspect", "glm4-9b-fp4").out)[0]["Config"]["Healthcheck"]["Test"]
    health = host.run("docker", "exec", "glm4-9b-fp4", *check[1:])
    assert (check[0], health.code) == ("CMD", 0), health.out + health.err
    assert host.kit("down", "--volumes", "--yes").code == 0


@pytest.mark.parametrize(
    ("instructions", "code", "said"),
    [
        (("ENV PATH=/opt/none",), 2, "cannot be queried for its vLLM version"),
        (("ENV PATH=/usr/bin:/bin",), 2, "holds no Python package vllm"),
        (('ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]',), 9, "image_vllm=0.13.0+cpu, image_command=program"),
        (('ENTRYPOINT ["/bin/false"]',), 9, "image_vllm=0.13.0+cpu, image_command=vllm-serve"),
        (('ENTRYPOINT ["/opt/bin/vllm", "serve"]',), 9, "image_vllm=0.13.0+cpu, image_command=vllm-serve"),
    ],
)
def test_an_unknown_image_is_asked_before_anything_is_rendered(
    host: Host, seed_python: str, tmp_path: Path, instructions: tuple[str, ...], code: int, said: str
) -> None:
    """With an empty model directory, which ends `up` after it has asked."""
    build(host, seed_python, "somebody/engine:asked", *instructions)
    done = up_cpu(host, "somebody/engine:asked", tmp_path)
    assert (done.code, said in done.err) == (code, True), done.err
    left = host.run("docker", "ps", "--all", "--quiet", "--filter", "ancestor=somebody/engine:asked")
    assert left.out == "", "the throw-away container is gone"
