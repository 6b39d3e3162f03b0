"""A bundle loaded without any network: a real Docker engine, a network namespace without routes, and wheels that are
installed from the bundle only."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.kit import KIT, MODEL, Kit

pytestmark = pytest.mark.e2e
NO_NETWORK = ["unshare", "--net", "--map-root-user"]


def image_id(reference: str) -> str:
    done = subprocess.run(
        ["docker", "inspect", "-f", "{{.Id}}", reference], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """An SSH key, and in the same directory an allowed_signers file that lists it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    (tmp_path / "signers").write_text(f"ops@example {(tmp_path / 'key.pub').read_text()}")
    return tmp_path / "key"


def test_a_bundle_deploys_on_a_host_without_a_network(kit: Kit, override: Path, key: Path) -> None:
    bundle, compose = kit.directory / "bundle", kit.directory / "compose.yaml"
    other = f"glm4-deploy/bundle-test:{kit.project}"
    kit.run("render", *kit.settings(MODEL), "-o", compose)
    reference = "glm4-deploy/vllm-cpu:0.32.0"
    subprocess.run(["docker", "tag", reference, other], check=True)
    compose.write_text(compose.read_text().replace(reference, other))
    words = ("bundle", "create", compose, "--checkpoint", MODEL, "--sign", key, "-o", bundle)

    subprocess.run(["docker", "rmi", other], check=True, capture_output=True)
    cut_off = kit.run(*words)
    assert cut_off.code == 19, cut_off.err
    assert kit.run("bundle", "verify", bundle).code == 2, "an unfinished bundle is not a bundle"
    subprocess.run(["docker", "tag", reference, other], check=True)
    made = kit.run(*words)
    assert made.code == 0, made.err
    assert "copying compose/compose.yaml" not in made.err, "files that were copied are not copied again"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)
    assert {path.parts[0] for path in (p.relative_to(bundle) for p in bundle.rglob("*"))} >= {
        "compose", "images", "wheels", "checkpoint",
    }  # fmt: skip

    before = image_id(other)
    subprocess.run(["docker", "rmi", other], check=True, capture_output=True)
    loaded = subprocess.run(
        [*NO_NETWORK, *KIT, "bundle", "load", bundle, "--signers", key.parent / "signers"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    assert image_id(other) == before
    subprocess.run(["docker", "rmi", other], check=True, capture_output=True)

    venv = kit.directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin/pip", "install", "-q", "--no-index", "--find-links", bundle / "wheels", "glm4-deploy"]
    subprocess.run([*NO_NETWORK, *install], check=True)
    rendered = subprocess.run(
        [*NO_NETWORK, venv / "bin/glm4-deploy", "render"], capture_output=True, text=True, check=True
    )
    assert "nvcr.io/nvidia/vllm" in rendered.stdout, "the wheel contains its templates"


def test_a_changed_bundle_is_refused(kit: Kit, key: Path) -> None:
    bundle, compose = kit.directory / "bundle", kit.directory / "compose.yaml"
    compose.write_text("services: {}\n")
    made = kit.run("bundle", "create", compose, "--no-wheels", "--sign", key, "-o", bundle)
    assert made.code == 0, made.err
    signers = key.parent / "signers"
    assert kit.run("bundle", "verify", bundle, "--signers", signers).code == 0
    again = kit.run("bundle", "create", compose, "--no-wheels", "-o", bundle)
    assert (again.code, "already" in again.err) == (2, True)

    def refused(change: str) -> str:
        copy = kit.directory / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(bundle, copy)
        if change == "content":
            (copy / "compose/compose.yaml").write_text("services: {evil: {image: x}}\n")
        elif change == "more":
            (copy / "compose/extra.yaml").write_text("")
        elif change == "less":
            (copy / "compose/compose.yaml").unlink()
        elif change == "sums":
            (copy / "compose/compose.yaml").write_text("services: {evil: {image: x}}\n")
            subprocess.run(["sh", "-c", "sha256sum bundle.json compose/* > SHA256SUMS"], cwd=copy, check=True)
        elif change == "unsigned":
            (copy / "SHA256SUMS.sig").unlink()
        elif change == "signer":
            signers.write_text(
                "ops@example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n"
            )
        elif change == "outside":
            (copy / "SHA256SUMS").write_text(f"{'0' * 64}  ../../etc/passwd\n")
        done = kit.run("bundle", "load", copy, *(("--signers", signers) if change != "outside" else ()))
        assert done.code in (1, 2), change
        return done.err

    assert "differs" in refused("content")
    assert "not listed" in refused("more")
    assert "missing" in refused("less")
    assert "does not match" in refused("sums")
    assert "not signed" in refused("unsigned")
    assert "invalid line" in refused("outside")
    assert "not signed by anyone" in refused("signer")
    assert json.loads((bundle / "bundle.json").read_text())["images"] == []
