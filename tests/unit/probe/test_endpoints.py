"""/metrics and /v1/models over real sockets, whatever they contain."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

import glm4_deploy
from glm4_deploy.probe.endpoints import MAX_BODY, parse_metrics, read_metrics, read_models

LABELS = {"engine": "0", "model_name": 'a "b" \\ \n {c}, =d\u2028'}


def page() -> str:
    """As vLLM writes it: with the same client library."""
    registry = CollectorRegistry()
    Counter("vllm:generation_tokens", "of all", list(LABELS), registry=registry).labels(**LABELS).inc(7)
    Gauge("vllm:num_requests_running", "now", list(LABELS), registry=registry).labels(**LABELS).set(2)
    Histogram("vllm:e2e_seconds", "whole", list(LABELS), registry=registry).labels(**LABELS).observe(0.4)
    return generate_latest(registry).decode()


def test_what_the_client_library_writes_is_read() -> None:
    metrics = parse_metrics(page())
    assert metrics.sum("vllm:generation_tokens_total") == 7
    assert metrics.sum("vllm:num_requests_running", engine="0") == 2
    assert metrics.sum("vllm:num_requests_running", engine="1") is None
    assert metrics.sum("vllm:e2e_seconds_count") == 1
    assert metrics.label("vllm:num_requests_running", "model_name") == LABELS["model_name"]


BAD = [
    "vllm:broken{ 1",
    'vllm:x{a="b} 1',
    "vllm:y notanumber",
    "vllm:z 1_000",
    f"vllm:huge {'9' * 1000}",
    f"vllm:huger {'9' * 4090}",
    "{} 1",
    "}{",
    "# TYPE a",
    "# TYPE 5a gauge",
    "# HELP",
    "\x00",
    "=,} 3",
    'a{l="' + "\\" * 4000,
    "b" * 100_000,
    "<html>",
]


@pytest.mark.parametrize("line", BAD)
def test_one_bad_line_does_not_lose_the_rest(line: str) -> None:
    metrics = parse_metrics(f"{line}\n{page()}{line}\nlast 1\n{line}")
    assert metrics.sum("vllm:generation_tokens_total") == 7
    assert metrics.sum("last") == 1
    assert not {"vllm:broken", "vllm:x", "vllm:y", "vllm:z"} & set(metrics.rows)


@given(st.lists(st.one_of(st.text(), st.text('a{}="\\,# 1._e\t'), st.sampled_from(page().split("\n")))))
def test_no_text_raises(lines: list[str]) -> None:
    metrics = parse_metrics("\n".join([*lines, "", "last 1"]))
    assert metrics.rows["last"][-1] == ({}, 1.0)


def test_infinities_are_not_summed() -> None:
    assert parse_metrics("a 1\na +Inf\na NaN\n").sum("a") == 1
    assert parse_metrics("a NaN\n").sum("a") is None


def test_a_page_beyond_the_limit_is_cut() -> None:
    metrics = parse_metrics("first 1\n" + "#" * MAX_BODY + "\nlast 1\n")
    assert set(metrics.rows) == {"first"}


@contextmanager
def server(body: bytes, *, repeat: int = 1, headers: tuple[tuple[str, str], ...] = ()) -> Iterator[str]:
    """The address of a server. `$KEY` in the body is replaced by the key of the request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.headers.get("authorization", "nothing").encode()
            self.send_response(200)
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            try:
                for _ in range(repeat):
                    self.wfile.write(body.replace(b"$KEY", key))
            except OSError:
                return  # the reader has had enough

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def test_metrics_and_models_of_a_server_are_read() -> None:
    with server(page().encode()) as url:
        metrics = read_metrics(url)
        assert metrics is not None
        assert metrics.sum("vllm:generation_tokens_total") == 7
    with server(b'{"data": [{"id": "a"}, {"id": ""}, 3, {"id": "\\u001b[2Jb\\n\\u202e"}]}') as url:
        assert read_models(url) == ("a", "␛[2Jb <RIGHT-TO-LEFT OVERRIDE>")
    with server(b'{"data": [{"id": "$KEY"}]}') as url:
        assert (read_models(url), read_models(url, key="k")) == (("nothing",), ("Bearer k",))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"data": 3}', b'{"error": "no"}', b"<html>", b"\xff", b"[" * 100_000, b'{"data": null}']
)
def test_what_is_not_a_list_of_models_is_none(body: bytes) -> None:
    with server(body) as url:
        assert read_models(url) is None


def test_nothing_there_is_none() -> None:
    for url in ("http://127.0.0.1:1", "http://no-such-host.invalid", "http://[::1", "nonsense"):
        assert read_models(url) is None
        assert read_metrics(url) is None


def test_a_flood_ends_at_the_limit_and_a_compressed_one_is_not_unpacked() -> None:
    with server(b"x 1\n" * (1 << 18), repeat=1000) as url:
        assert read_metrics(url) is None
    with server(b"\x1f\x8b" + b"\0" * 100, headers=(("content-encoding", "gzip"),)) as url:
        assert read_models(url) is None


def test_no_other_module_reads_the_text_of_metrics() -> None:
    package = Path(glm4_deploy.__file__).parent
    users = {
        path.relative_to(package) for path in package.rglob("*.py") if "prometheus_client.parser" in path.read_text()
    }
    assert users == {Path("probe/endpoints.py")}
