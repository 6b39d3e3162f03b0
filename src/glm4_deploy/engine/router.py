"""vLLM's router over HTTP: which engines it knows, taking one out, putting it back (its own endpoints, 0.1.17)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from glm4_deploy.errors import Unreachable

SERVICE = "router"
PORT = 8080  # of the engines, inside their containers
ADD_SECONDS = 30.0  # an engine is put back only after it has answered, so this is one look of the router's own
READY_SECONDS = 60.0
IDLE_LOOKS = 2  # a request may be on its way from the router while the engine counts none


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterClient:
    """base_url: where this host reaches the router."""

    base_url: str

    def workers(self) -> Mapping[str, bool]:
        """Address of each engine → whether the router holds it for healthy.

        Raises:
            Unreachable
        """
        try:
            rows = self._ask("GET", "/workers").json()["workers"]
            return {str(row["url"]): bool(row["is_healthy"]) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(
                f"{self.base_url}/workers answers, but not as a router does", hint="see what holds the port: ss -ltnp"
            ) from error

    def take_out(self, service: str) -> None:
        """No new request goes to this engine from here on; those that it has go on. An unknown one is no error."""
        self._ask("POST", "/remove_worker", url=address_of(service))

    def put_back(self, service: str) -> None:
        """It must answer /health already; one that is there is no error.

        Raises:
            Unreachable
        """
        if address_of(service) not in self.workers():
            self._ask("POST", "/add_worker", url=address_of(service))

    def wait_ready(self, services: tuple[str, ...]) -> None:
        """Until it holds exactly these engines, all healthy.

        Raises:
            Unreachable: it does not in READY_SECONDS.
        """
        wanted = {address_of(service): True for service in services}
        deadline = time.monotonic() + READY_SECONDS
        seen = ""
        while time.monotonic() < deadline:
            try:
                now = self.workers()
                if now == wanted:
                    return
                seen = ", ".join(f"{url} {'healthy' if well else 'unhealthy'}" for url, well in now.items()) or "none"
            except Unreachable as error:
                seen = error.message
            time.sleep(0.5)
        raise Unreachable(
            f"the router at {self.base_url} is not ready with {len(services)} engines: {seen}",
            hint="see its log: glm4-deploy logs",
        )

    def _ask(self, method: str, path: str, **query: str) -> httpx.Response:
        try:
            answer = httpx.request(method, self.base_url + path, params=query, timeout=ADD_SECONDS, trust_env=False)
        except httpx.HTTPError as error:
            raise Unreachable(
                f"the router at {self.base_url} does not answer {path}: {type(error).__name__}",
                hint="see its log: glm4-deploy logs",
            ) from None
        if answer.status_code != httpx.codes.OK:
            raise Unreachable(
                f"the router refuses {path}: HTTP {answer.status_code} {answer.text[:200]}",
                hint="see its log: glm4-deploy logs",
            )
        return answer


def address_of(service: str) -> str:
    """An engine's address on the project's network, as the rendered file gives it to the router."""
    return f"http://{service}:{PORT}"


def wait_idle(base_url: str, seconds: float) -> float | None:
    """Block until the engine at `base_url` runs and queues no request: what are left after `seconds`, None where the
    engine does not tell (it does not answer, so nothing of it can be waited for)."""
    deadline = time.monotonic() + seconds
    quiet = 0
    while True:
        left = _requests(base_url)
        if left is None:
            return None
        quiet = quiet + 1 if left == 0 else 0
        if quiet >= IDLE_LOOKS or time.monotonic() >= deadline:
            return left
        time.sleep(0.5)


def _requests(base_url: str) -> float | None:
    try:
        text = httpx.get(f"{base_url}/metrics", timeout=10, trust_env=False).text
    except httpx.HTTPError:
        return None
    rows = (line.rpartition(" ") for line in text.splitlines())
    counts = [_number(value) for name, _, value in rows if name.startswith(_GAUGES)]
    return sum(counts) if counts else None


_GAUGES = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
