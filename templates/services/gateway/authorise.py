"""Decides for the gateway whether a request may pass: its key must be known and within its rate limit.

The gateway sends GET /authorise with the client's headers before it forwards a request. 200 lets the request through,
with the engine's own key in place of the client's; 401, 403 and 429 go back to the client. Standard library only, so
that it runs in the engine's image. The key file contains SHA-256 sums of random keys, never a key; it is read again
when it changes, so a revoked key stops working at once.

Usage: python3 authorise.py KEYS_FILE [PORT] [HOST]
"""

import hashlib
import hmac
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

ENGINE_KEY = Path(os.environ.get("ENGINE_KEY_FILE", "/run/secrets/engine_api_key"))
MAX_KEY = 512


class Keys:
    """The known keys, each with a token bucket that refills at `rate` requests per minute."""

    def __init__(self, path):
        self._path = path
        self._lock = threading.Lock()
        self._stamp = None
        self._rows = ()
        self._buckets = {}

    def admit(self, token, uri):
        """(status, name, seconds to wait). uri: what the client asked for."""
        row = self._find(token)
        if row is None:
            return 401, "", 0
        if row["paths"] and not allowed(uri, row["paths"]):
            return 403, row["name"], 0
        with self._lock:
            return self._spend(row["name"], row["rate"])

    def _find(self, token):
        found = None
        given = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        for row in self._read():
            # Compare every row in constant time: the duration reveals nothing about the known keys.
            if hmac.compare_digest(row["sha256"], given):
                found = row
        return found

    def _read(self):
        """The rows of the key file; if it is unreadable, nobody gets in."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != self._stamp:
                rows = json.loads(self._path.read_text())["keys"]
                self._rows = tuple(
                    {
                        "name": str(row["name"]),
                        "sha256": str(row["sha256"]),
                        "rate": int(row["rate"]),
                        "paths": tuple(map(str, row.get("paths", ()))),
                    }
                    for row in rows
                )
                self._stamp = stamp
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            sys.stderr.write(f"authorise: cannot read {self._path}: {error}\n")
            self._stamp, self._rows = None, ()
        return self._rows

    def _spend(self, name, rate):
        now = time.monotonic()
        left, then = self._buckets.get(name, (float(rate), now))
        left = min(float(rate), left + (now - then) * rate / 60.0)
        if left < 1.0:
            self._buckets[name] = (left, now)
            return 429, name, (1.0 - left) * 60.0 / rate
        self._buckets[name] = (left - 1.0, now)
        return 200, name, 0


class Authorise(BaseHTTPRequestHandler):
    """Answers one question per request. Connections are kept alive; an idle one is closed after a minute."""

    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self):
        # The gateway appends the client's query.
        if self.path.partition("?")[0] != "/authorise":
            self._answer(200 if self.path == "/health" else 404, b"", {})
            return
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        known = kind.lower() == "bearer" and 0 < len(token) <= MAX_KEY
        uri = self.headers.get("X-Forwarded-Uri", "")
        status, name, wait = self.server.keys.admit(token, uri) if known else (401, "", 0)
        if status == 200:
            self._answer(200, b"", {"X-Key-Name": name, **engine_authorization()})
        elif status == 403:
            self._refuse(403, f"key {name}: not for this path", "path_not_allowed", {})
        elif status == 429:
            words = f"key {name}: too many requests; wait {wait:.0f} s"
            self._refuse(429, words, "rate_limit_exceeded", {"Retry-After": str(int(wait) + 1)})
        else:
            self._refuse(401, "the API key is missing or unknown", "invalid_api_key", {"WWW-Authenticate": "Bearer"})

    def _refuse(self, status, message, code, headers):
        # The format of OpenAI's errors: clients show the message.
        error = {"error": {"message": message, "type": code, "param": None, "code": code}}
        self._answer(status, json.dumps(error).encode(), {"Content-Type": "application/json", **headers})

    def _answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self):
        return "glm4-deploy"

    def log_message(self, *args):
        """Silent: the gateway writes the access log, and no header is ever logged here."""


def allowed(uri, paths):
    """Whether a request's path, exactly as the engine will read it, is one of `paths` below /v1, or lies below one."""
    path = unquote(uri.partition("?")[0])
    if any(part in ("", ".", "..") for part in path.split("/")[1:]):
        return False
    return any(path == f"/v1/{one}" or path.startswith(f"/v1/{one}/") for one in paths)


def engine_authorization():
    try:
        return {"Authorization": "Bearer " + ENGINE_KEY.read_text().strip()}
    except OSError:
        return {}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, keys):
        self.keys = keys
        super().__init__(address, Authorise)


if __name__ == "__main__":
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 9180
    host = sys.argv[3] if len(sys.argv) > 3 else ""
    Server((host, port), Keys(Path(sys.argv[1]))).serve_forever()
