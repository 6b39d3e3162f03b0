"""An engine that dies with its reason in its log: the watch says that reason, beside what it means and what to do."""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from e2e.kit import free_port
from journeys.kit import Kit, alive, wait_for

NO_ROOM = (Path(__file__).parents[1] / "data/logs/h100-0.24-no-room.log").read_bytes()


def test_somebody_is_told_why_the_engine_died(kit: Kit, tmp_path: Path) -> None:
    got: list[dict[str, str]] = []

    class Inbox(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    kit.good_release()
    with ThreadingHTTPServer(("127.0.0.1", 0), Inbox) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        file = tmp_path / "notify"
        file.write_text(f"json://127.0.0.1:{server.server_address[1]}/\n")
        options = ("--port", str(free_port()), "--canary-every", "0", "--notify-file", file)
        watch = kit.start("watch", "--json", "--interval", "0.5", *options)
        wait_for(lambda: '"state": "ok"' in watch.out.read_text(), watch.out.read_text)
        pids = kit.pids().values()
        with (kit.directory / ".glm4/engine.log").open("ab") as log:
            log.write(NO_ROOM)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, pids)))
        wait_for(lambda: bool(got), watch.out.read_text)
        done = watch.end(signal.SIGTERM)
        server.shutdown()
    assert got[0]["title"].endswith("is unreachable")
    assert "cause: no-kv-room: weights and workspace use up" in got[0]["message"]
    assert "do this: raise --gpu-memory-utilization" in got[0]["message"]
    (cause,) = [row for row in map(json.loads, done.out.splitlines()) if row["event"] == "cause"]
    assert (cause["finding"], cause["hint"][:5]) == ("no-kv-room", "raise")
