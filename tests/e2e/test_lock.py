"""lock against a real Docker engine: an image that was pulled from a registry, and one that was not."""

import gzip
import hashlib
import http.server
import io
import json
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from e2e.kit import Kit

pytestmark = pytest.mark.e2e
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@contextmanager
def registry() -> Iterator[tuple[str, str]]:
    """The few answers of a registry that `docker pull` needs, for one image of one empty file.

    It stands for nvcr.io, which cannot be reached where the tests run. Docker trusts a registry on loopback.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w:gz", compresslevel=0) as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    blob = layer.getvalue()

    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {}, "history": [],
         "rootfs": {"type": "layers", "diff_ids": [digest(gzip.decompress(blob))]}}
    ).encode()  # fmt: skip
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(config),
                "digest": digest(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "size": len(blob),
                    "digest": digest(blob),
                }
            ],
        }
    ).encode()
    blobs = {digest(config): config, digest(blob): blob}

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            last = self.path.rpartition("/")[2]
            found = manifest if "/manifests/" in self.path else blobs.get(last, b"{}")
            self.send_response(200)
            self.send_header("Content-Type", MANIFEST if found is manifest else "application/octet-stream")
            self.send_header("Docker-Content-Digest", digest(found))
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found)

        do_HEAD = do_GET  # noqa: N815 (the name is the library's)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}/vllm", digest(manifest)
    finally:
        server.shutdown()
        server.server_close()


def test_a_pulled_image_is_pinned_by_its_digest(kit: Kit, override: object) -> None:
    with registry() as (repository, expected):
        reference = f"{repository}:26.01-py3"
        assert kit.run("lock", "--set", f"image_repository={repository}").code == 19, "not here yet"
        subprocess.run(["docker", "pull", reference], check=True, capture_output=True)
        try:
            (kit.directory / "glm4.yaml").write_text(f"# mine\nimage_repository: {repository}\n")
            done = kit.run("lock")
            assert done.code == 0, done.err
            assert done.out.strip() == f"{reference}@{expected}"
            assert (kit.directory / "glm4.yaml").read_text().startswith("# mine\n")
            rendered = yaml.safe_load(kit.run("render").out)
            pinned = rendered["services"]["glm4-9b-nvfp4"]["image"]
            assert pinned == f"{reference}@{expected}"
            subprocess.run(["docker", "image", "inspect", pinned], check=True, capture_output=True)
        finally:
            subprocess.run(["docker", "rmi", reference], check=True, capture_output=True)


def test_an_image_that_was_built_here_has_no_digest(kit: Kit, override: object) -> None:
    done = kit.run("lock", "--profile", "cpu")
    assert done.code == 1
    assert "built here" in done.err
    assert not (kit.directory / "glm4.yaml").exists()
