"""The gateway as rendered: the real Caddy and the authoriser in front of a real vLLM."""

import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from e2e.engine import NAME, Engine
from e2e.gateway import Gateway, gateway
from glm4_deploy.deploy.keys import add_key, revoke_key

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def front(healthy: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    address = urlsplit(healthy.base_url).netloc
    with gateway(address, tmp_path_factory.mktemp("gateway"), sets=("gateway_body_limit=1MB",)) as running:
        yield running


@pytest.fixture(scope="module")
def ada(front: Gateway) -> str:
    return add_key(front.keys, "ada", rate=100_000)


def chat(words: str, *, max_tokens: int = 16, stream: bool = False) -> dict[str, object]:
    message = {"role": "user", "content": words}
    return {"model": NAME, "messages": [message], "max_tokens": max_tokens, "stream": stream, "ignore_eos": stream}


def test_a_known_key_is_answered_over_tls_with_the_gateways_own_authority(front: Gateway, ada: str) -> None:
    with front.client(ada) as client:
        answer = client.post("/v1/chat/completions", json=chat("What is 17 + 25? Answer with the number only."))
    assert answer.status_code == 200, answer.text
    assert "42" in answer.json()["choices"][0]["message"]["content"]
    assert "server" not in answer.headers or "uvicorn" not in answer.headers["server"]
    with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as stranger:
        stranger.get(front.url + "/health")


@pytest.mark.parametrize("key", [None, "glm4-wrong", "ada", "x" * 5000, "é"])
def test_v1_requires_a_known_key(front: Gateway, ada: str, key: str | None) -> None:
    headers = {} if key is None else {"authorization": f"Bearer {key}".encode()}
    with front.client() as client:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("OPTIONS", "/v1/models")):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/tokenize", "/docs", "/openapi.json", "/version", "/ping", "/invocations", "/pause", "/", "/v1",
     "/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/..%2fmetrics", "//metrics", "/V1/models", "/health/../metrics",
     "/v1/load_lora_adapter", "/v1/modelsx", "/v1/"],
)  # fmt: skip
def test_other_paths_are_404_even_with_a_key(front: Gateway, ada: str, path: str) -> None:
    # A raw request: a client library would normalise the path.
    context = ssl.create_default_context(cafile=str(front.root))
    with (
        socket.create_connection(("localhost", front.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wire,
    ):
        request = f"GET {path} HTTP/1.1\r\nHost: localhost:{front.port}\r\nAuthorization: Bearer {ada}\r\n"
        wire.sendall(f"{request}Connection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: wire.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"301", b"308"), answer[:200]
    assert b"vllm:" not in answer
    assert b"openapi" not in answer


def test_health_needs_no_key_and_accepts_only_get(front: Gateway) -> None:
    with front.client() as client:
        assert client.get("/health").status_code == 200
        assert client.post("/health").status_code == 405


def test_a_big_body_is_413_however_it_is_sent(front: Gateway, ada: str) -> None:
    body = json.dumps(chat("x" * 1_500_000)).encode()

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    headers = {"content-type": "application/json"}
    with front.client(ada) as client:
        assert client.post("/v1/chat/completions", content=body, headers=headers).status_code == 413
        assert client.post("/v1/chat/completions", content=chunks(), headers=headers).status_code == 413


def test_tokens_are_streamed_as_they_are_generated(front: Gateway, ada: str) -> None:
    # With a buffer all would arrive at once at the end, every time; on a busy machine that happens only by bad luck.
    spreads = []
    for _ in range(3):
        arrivals = _arrivals(front, ada)
        assert len(arrivals) > 150
        spreads.append((arrivals[-1] - arrivals[0], len({round(at, 2) for at in arrivals})))
        if spreads[-1][0] > 0.2 and spreads[-1][1] > 15:
            return
    raise AssertionError(f"(seconds from first to last, moments): {spreads}")


def _arrivals(front: Gateway, key: str) -> list[float]:
    arrivals = []
    body = chat("Count from 1 to 160, separated by commas.", max_tokens=200, stream=True)
    with front.client(key) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                arrivals.append(time.monotonic())
    return arrivals


def test_a_revoked_key_stops_working_at_once(front: Gateway, ada: str) -> None:
    token = add_key(front.keys, "bob", rate=1000)
    with front.client(token) as client:
        assert client.get("/v1/models").status_code == 200
        revoke_key(front.keys, "bob")
        assert client.get("/v1/models").status_code == 401
    with front.client(ada) as client:
        assert client.get("/v1/models").status_code == 200


def test_too_many_requests_are_429_for_that_key_only(front: Gateway, ada: str) -> None:
    token = add_key(front.keys, "eager", rate=3)
    with front.client(token) as client:
        answers = [client.get("/v1/models") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 21
    assert "eager" in answers[-1].json()["error"]["message"]
    with front.client(ada) as client:
        assert client.get("/v1/models").status_code == 200


def test_a_key_for_one_path_gets_no_other(front: Gateway) -> None:
    with front.client(add_key(front.keys, "reader", rate=100, paths=("models",))) as client:
        assert client.get("/v1/models?beta=true").status_code == 200, "with a query, as some clients send it"
        refused = client.post("/v1/chat/completions", json=chat("Hello"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "path_not_allowed")
        assert client.get("/v1/models/../completions").status_code in (403, 404)


def test_slow_clients_do_not_block_the_engine(front: Gateway, ada: str) -> None:
    """Twenty that send one byte per second, and twenty that request a stream and never read: others are served."""
    context = ssl.create_default_context(cafile=str(front.root))
    body = json.dumps(chat("Count.", max_tokens=400, stream=True)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{front.port}\r\nAuthorization: Bearer {ada}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    opened = []
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(1):
            for wire in opened[:20]:
                wire.send(b" ")

    try:
        for index in range(40):
            plain = socket.create_connection(("localhost", front.port), timeout=20)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire = context.wrap_socket(plain, server_hostname="localhost")
            opened.append(wire)
            wire.sendall(head if index < 20 else head + body)
        threading.Thread(target=drip, daemon=True).start()
        time.sleep(2)
        with front.client(ada) as client:
            begin = time.monotonic()
            answer = client.post("/v1/chat/completions", json=chat("What is 12 * 12? Answer with the number only."))
            assert answer.status_code == 200
            assert time.monotonic() - begin < 30
    finally:
        stop.set()
        for wire in opened:
            wire.close()


def test_the_gateways_log_and_files_contain_no_key(front: Gateway, ada: str) -> None:
    with front.client(ada) as client:
        assert client.get("/v1/models").status_code == 200
    log = front.log.read_text()
    assert "/v1/models" in log
    assert ada not in log
    directory = Path(front.keys).parent
    assert not [path for path in directory.rglob("*") if path.is_file() and ada.encode() in path.read_bytes()]


def test_the_engine_sees_its_own_key_and_never_the_clients(tmp_path: Path) -> None:
    """A server that records the headers that reach the engine, which vLLM cannot show."""
    seen: list[dict[str, str]] = []

    class Record(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Record)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for index, engine_key in enumerate(("engine-s3cret", "")):
            place = tmp_path / str(index)
            place.mkdir()
            with gateway(f"127.0.0.1:{server.server_port}", place, engine_key=engine_key) as front:
                token = add_key(front.keys, "ada", rate=10)
                with front.client(token) as client:
                    assert client.get("/v1/models", headers={"cookie": "a=b"}).status_code == 204
            headers = {name.lower(): value for name, value in seen[-1].items()}
            assert token not in str(headers)
            assert headers.get("authorization", "") == (f"Bearer {engine_key}" if engine_key else "")
            assert "cookie" not in headers
    finally:
        server.shutdown()
        server.server_close()
