"""A model hub over HTTP, as huggingface.co answers: listing, redirects to another origin, ranges, ETags, gates.

Checked against its own client: `huggingface_hub.snapshot_download` with HF_ENDPOINT fetches a model from it.
"""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which a file is in Git LFS, and so on the other origin


@dataclass(kw_only=True)
class Hub:
    """A running hub with one model.

    Attributes:
        files: name → bytes, as listed.
        sent: name → other bytes that are sent in their place.
        cuts: name → how many bytes come before the connection is cut, in each of the next answers.
        gated, token: the model needs this token.
        ranges: whether ranges are honoured.
        busy: how many answers of the other origin are 503 first.
        requests: (origin, path, range, authorization) of each request.
    """

    id: str = "owner/glm-4-tiny"
    licence: str = "glm-4"
    files: dict[str, bytes]
    sent: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    gated: bool = False
    token: str = "hf_right"
    ranges: bool = True
    busy: int = 0
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    port: int = 0
    cdn_port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listing(self) -> dict[str, Any]:
        rows = []
        for name, data in self.files.items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
            row: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if len(data) >= LARGE:
                row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            rows.append(row)
        return {
            "id": self.id,
            "modelId": self.id,
            "sha": COMMIT,
            "private": False,
            "gated": "auto" if self.gated else False,
            "cardData": {"license": "other", "license_name": self.licence},
            "siblings": rows,
        }

    def tree(self) -> list[dict[str, Any]]:
        """The same, as the hub's own client asks for it."""
        rows: list[dict[str, Any]] = []
        for row in self.listing()["siblings"]:
            rows.append({"type": "file", "oid": row["blobId"], "size": row["size"], "path": row["rfilename"]})
            if "lfs" in row:
                rows[-1]["lfs"] = {"oid": row["lfs"]["sha256"], "size": row["size"], "pointerSize": 134}
        return rows


def _handler(hub: Hub, origin: str) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args: object) -> None:
            return

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            seen = self.headers.get("range"), self.headers.get("authorization")
            hub.requests.append((origin, path, *seen))
            if origin == "cdn":
                self._bytes(path.removeprefix("/cdn/"))
            elif hub.gated and seen[1] != f"Bearer {hub.token}":
                self._error(401, "GatedRepo", f"Access to model {hub.id} is restricted. You must be authenticated.")
            elif path.startswith(f"/api/models/{hub.id}/revision/"):
                revision = path.rpartition("/")[2]
                if revision in ("main", "v1", COMMIT):
                    self._json(hub.listing())
                else:
                    self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            elif path.startswith(f"/api/models/{hub.id}/tree/"):
                self._json(hub.tree())
            elif path.startswith(f"/{hub.id}/resolve/"):
                self._resolve(path.removeprefix(f"/{hub.id}/resolve/").partition("/")[2])
            else:
                self._error(401, "RepoNotFound", "Repository not found")

        def _resolve(self, name: str) -> None:
            if name not in hub.files:
                self._error(404, "EntryNotFound", "Entry not found")
                return
            data = hub.files[name]
            sha256 = hashlib.sha256(data).hexdigest()
            if len(data) < LARGE:
                self._bytes(name)  # a small file comes from the hub itself
                return
            self.send_response(302)
            self.send_header("location", f"http://127.0.0.1:{hub.cdn_port}/cdn/{name}")
            self.send_header("x-repo-commit", COMMIT)
            self.send_header("x-linked-etag", f'"{sha256}"')
            self.send_header("x-linked-size", str(len(data)))
            self.send_header("content-length", "0")
            self.end_headers()

        def _bytes(self, name: str) -> None:
            if origin == "cdn" and hub.busy:
                hub.busy -= 1
                self._error(503, "", "busy")
                return
            data = hub.sent.get(name, hub.files[name])
            start = 0
            asked = self.headers.get("range") if hub.ranges else None
            if asked:
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                if start >= len(data):
                    self._error(416, "", "range not satisfiable")
                    return
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
            self.send_header("etag", f'"{blob}"')
            self.send_header("x-repo-commit", COMMIT)
            self.send_header("accept-ranges", "bytes")
            self.send_header("content-length", str(len(data) - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            cuts = hub.cuts.get(name)
            if cuts:
                self.wfile.write(data[start : start + cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            with suppress(ConnectionError):  # the client has enough
                self.wfile.write(data[start:])

        def _json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _error(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("x-error-code", code)
            self.send_header("x-error-message", message)
            self.send_header("content-length", "0")
            self.end_headers()

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve the hub and its other origin on free ports of 127.0.0.1."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, name)) for name in ("hub", "cdn")]
    hub.port, hub.cdn_port = (server.server_address[1] for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
