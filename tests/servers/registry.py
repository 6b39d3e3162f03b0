"""A container registry that serves one small image over HTTP: enough of the OCI distribution protocol for a pull."""

import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(kw_only=True)
class Registry:
    """A running registry; Docker trusts one on loopback."""

    port: int = 0
    digest: str = ""
    """Of the image's manifest."""
    slow: float = 0.0
    """Seconds that each layer takes."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """By digest: the manifest, the config and the layers."""

    @property
    def image(self) -> str:
        return f"127.0.0.1:{self.port}/glm4-test"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer(name: str, size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = size
        tar.addfile(entry, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


def _fill(registry: Registry, layers: int, size: int) -> None:
    raw = [_layer(f"file{number}", size) for number in range(layers)]
    packed = [gzip.compress(layer, 1) for layer in raw]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in raw]},
        }
    ).encode()
    kinds = ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": kinds[0], "size": len(config), "digest": _digest(config)},
            "layers": [{"mediaType": kinds[1], "size": len(blob), "digest": _digest(blob)} for blob in packed],
        }
    ).encode()
    registry.blobs = {_digest(blob): blob for blob in (config, manifest, *packed)}
    registry.digest = _digest(manifest)


@contextmanager
def registry(tag: str = "1", *, layers: int = 3, size: int = 2 << 20) -> Iterator[Registry]:
    """Serve one image under `tag` until the block ends. size: bytes of each layer."""
    served = Registry()
    _fill(served, layers, size)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            kind, _, name = self.path.rpartition("/")
            known = name if name.startswith("sha256:") else served.digest if name == tag else ""
            if self.path == "/v2/":
                self._send(b"{}", "application/json")
            elif known in served.blobs:
                is_manifest = kind.endswith("manifests")
                self._send(served.blobs[known], MANIFEST if is_manifest else "application/octet-stream", known)
            else:
                unknown = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
                self._send(json.dumps(unknown).encode(), "application/json", status=404)

        def _send(self, data: bytes, kind: str, digest: str = "", status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command == "HEAD":
                return
            layer = len(data) > 1 << 16
            parts = 10 if layer else 1
            step = len(data) // parts + 1
            for start in range(0, len(data), step):
                time.sleep(served.slow / parts if layer else 0)
                self.wfile.write(data[start : start + step])

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
