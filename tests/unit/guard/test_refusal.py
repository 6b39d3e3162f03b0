"""While the host is short of memory, new questions wait and what runs goes on."""

import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

import preloaded
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.candidates import preflight
from glm4_deploy.errors import UsageError
from glm4_deploy.guard import reader
from glm4_deploy.guard.reader import GIB, Mode, Reserve
from glm4_deploy.host.memory import MemoryFacts
from glm4_deploy.render.compose import COMPOSE, rendered
from servers.guarded import (
    DONE,
    PATIENCE_S,
    Engine,
    Turns,
    guarded,
    loop,
    looping_body,
    post,
    streamed,
    token,
    whole,
)


class Host:
    """What a host says of its memory, in GiB; None: it cannot be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: float | None = 9.0
        self.looks = 0
        monkeypatch.setattr(reader, "read_memory", self.read)

    def read(self) -> MemoryFacts:
        self.looks += 1
        return MemoryFacts(available=None if self.left is None else int(self.left * GIB))


def test_it_is_short_below_the_level_until_a_tenth_more_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    host, reserve = Host(monkeypatch), Reserve(8.0)
    seen = []
    for second, left in enumerate((9.0, 7.9, 8.5, 8.9, 7.9, None, 7.9)):
        host.left = left
        seen.append(reserve.look(float(second)))
    assert seen == [False, True, True, False, True, False, True]
    host.left = 20.0
    assert reserve.look(6.5) and host.looks == 7, "one look a second"
    host.left = 8.2  # this host never has a tenth more
    assert [reserve.look(second) for second in (7.0, 35.0, 37.0)] == [True, True, False], "half a minute of quiet"
    looks = host.looks
    assert not any(Reserve(0.0).look(float(second)) for second in range(3)) and host.looks == looks


def test_new_questions_are_refused_and_those_that_run_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LOOK_S", 0.0)
    host, engine = Host(monkeypatch), Engine(*streamed(token("a"), token("b"), DONE))
    engine.go, begun, ended = threading.Event(), threading.Event(), []
    with guarded(engine, refuse_below_gib=8.0) as guard:
        running = threading.Thread(target=lambda: ended.append(post(guard, begun=begun).content))
        running.start()
        assert begun.wait(PATIENCE_S)
        host.left = 5.0
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"):
            answer = httpx.post(guard.url + path, json={"model": "m"}, trust_env=False, timeout=PATIENCE_S)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
        error = {"type": "ServiceUnavailable", "param": None, "code": 503}
        why = "guard: the host is short of memory: less than 8 GiB, now or just before"
        assert answer.json()["error"] == error | {"message": why}
        assert len(engine.requests) == 1, "the engine heard nothing of them"
        assert guard.count("refuses") == 1
        engine.go.set()
        running.join(PATIENCE_S)
        assert b'"content": "b"' in ended[0] and DONE in ended[0]
        assert httpx.get(guard.url + "/v1/models", trust_env=False, timeout=PATIENCE_S).status_code == 200
        host.left = 9.0
        assert post(guard).status_code == 200
        assert (guard.count("refused_total"), guard.count("refuses")) == (5, 0)
        told = [(line["refuses"], line["available_gib"]) for line in guard.lines if line["event"] == "memory"]
    assert told == [(True, 5.0), (False, 9.0)]


@pytest.mark.parametrize("how", ["whole", "a stream of which nothing was sent", "a stream that was asked for so"])
def test_meanwhile_no_answer_is_asked_for_once_more(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Memory runs low while an answer that loops is under way: it is cut as in the mode `cut`."""
    monkeypatch.setattr(reader, "LOOK_S", 0.0)
    host = Host(monkeypatch)
    body = looping_body()
    events = [token("Once."), *loop(), DONE] if "asked" in how else [b"".join(loop()), DONE]
    engine = Turns(whole(body) if how == "whole" else streamed(*events))

    def answer(connection: socket.socket) -> None:
        host.left = 5.0  # after the question was let through
        engine(connection)

    asked = {"x-glm4-guard": "retry"} if "asked" in how else {}
    with guarded(answer, Mode.RETRY, refuse_below_gib=8.0) as guard:
        raw = post(guard, stream=how != "whole", headers=asked).content
        assert guard.count("answers_total", model="m", outcome="cut") == 1
        assert guard.count("answers_total", model="m", outcome="retried") == 0
        assert b'"action":"cut"' in raw and b'"retried"' not in raw
    assert len(engine.requests) == 1, "the engine was asked once"


def test_a_rendered_guard_refuses_where_the_settings_say_so() -> None:
    extras = {"profile": "gb10", "extras": ["gateway", "guard"]}
    assert "--refuse-below-gib" not in rendered(resolve_spec(extras))[COMPOSE]
    text = rendered(resolve_spec(extras, sets=("guard_refuse_below_gib=12.5",)))[COMPOSE]
    assert '- "--refuse-below-gib"\n      - "12.5"\n' in text
    for wrong in ("0", "-1", "2000", "much"):
        with pytest.raises(UsageError):
            resolve_spec(extras, sets=(f"guard_refuse_below_gib={wrong}",))


def test_a_level_that_no_host_has_is_refused(tmp_path: Path) -> None:
    done = preloaded.run("guard", "--refuse-below-gib", "1000", cwd=tmp_path)
    assert done.returncode == 2
    assert "and no engine leaves it that much" in done.stderr and "at most half of the host's memory" in done.stderr


def test_up_refuses_such_a_level_before_it_stops_anything(tmp_path: Path) -> None:
    settings = {"extras": ["gateway", "guard"], "guard_refuse_below_gib": 1000.0}
    with pytest.raises(UsageError, match="guard_refuse_below_gib 1000: this host has"):
        preflight(SimpleNamespace(settings=settings), tmp_path, force=False, note=print)  # type: ignore[arg-type]
