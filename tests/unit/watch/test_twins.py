"""The watch against servers with one fault each, over a real socket: the state that it reports."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from httpx import AsyncClient

from glm4_deploy.guard import reader
from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.guard.proxy import GuardOptions, serving
from glm4_deploy.guard.question import Api, read_question
from glm4_deploy.host.memory import MemoryFacts
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.judge import Limits, State
from glm4_deploy.watch.loop import Schedule, judge_engine
from servers import broken
from servers.reference import Reference
from servers.serve import mounted

LIMITS = Limits(interval_s=0.1, stall_s=1.0, start_grace_s=0)
SICK = [
    (broken.Hangs, State.HUNG),
    (broken.ErrorAmidStream, State.HUNG),
    (broken.ProxyGaveUp, State.HUNG),
    (broken.Sick, State.HUNG),
    (broken.NullLogprobs, State.BABBLING),
    (broken.Corrupts, State.BABBLING),
    (broken.Mute, State.BABBLING),
    (broken.OtherProgram, State.WRONG_ENGINE),
    (broken.Redirects, State.WRONG_ENGINE),
]


def states(server: Any, wanted: State | None, seconds: float) -> list[State]:
    """All states seen until the wanted one, or for a number of seconds."""
    seen: list[State] = []

    async def run(url: str) -> None:
        target = ProbeTarget(base_url=url, timeout_s=LIMITS.stall_s)
        schedule = Schedule(every_s=0.3, max_tokens=32)
        moments = judge_engine(target, LIMITS, schedule, Exporter(stale_s=60), lambda *_, **__: None)
        try:
            async with asyncio.timeout(seconds):
                async for moment in moments:
                    seen.append(moment.state)
                    if moment.state is wanted:
                        return
        except TimeoutError:
            pass
        finally:
            await moments.aclose()  # type: ignore[attr-defined]  # it is a generator

    with mounted(server) as url:
        asyncio.run(run(url))
    return seen


def bad(seen: list[State]) -> set[State]:
    return set(seen) - {State.OK, State.BUSY, State.UNKNOWN}


def test_a_sound_server_is_ok_and_never_anything_bad() -> None:
    seen = states(Reference(), None, 1.5)
    assert bad(seen) == set()
    assert seen[-1] is State.OK


def test_one_that_works_for_others_is_never_hung() -> None:
    assert bad(states(broken.Busy(), None, 2.5)) == set()


@pytest.mark.parametrize(("sick", "wanted"), SICK, ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_fault_has_its_state(sick: Any, wanted: State) -> None:
    seen = states(sick(), wanted, 20)
    assert seen[-1] is wanted
    assert bad(seen) == {wanted}


def test_a_guard_that_finds_the_answers_sick_makes_the_engine_babbling() -> None:
    """Its counters, read over a socket, while the canaries are sound."""
    ledger = Ledger(lambda _: None)
    question = read_question(Api.CHAT, b'{"model": "m", "messages": []}')
    assert question is not None

    async def run(url: str) -> None:
        options = GuardOptions(engine=url)
        async with serving(options, ledger, "127.0.0.1", 0, 0) as (_, port):
            beside = ProbeTarget(base_url=f"http://127.0.0.1:{port}")
            target = ProbeTarget(base_url=url)
            moments = judge_engine(target, LIMITS, None, Exporter(stale_s=60), lambda *_, **__: None, beside)
            async with asyncio.timeout(60):
                async for moment in moments:
                    if moment.state is State.BABBLING:
                        break
                    for _ in range(25):
                        ledger.answer(question, "cut")
            await moments.aclose()  # type: ignore[attr-defined]  # it is a generator

    with mounted(Reference()) as url:
        asyncio.run(run(url))


def test_a_guard_that_cannot_be_read_is_reported_once_and_proves_nothing() -> None:
    """An address where another server answers; and one where nobody does."""
    events: list[tuple[str, dict[str, Any]]] = []

    async def run(url: str, guard: str) -> str:
        exporter = Exporter(stale_s=60)
        moments = judge_engine(
            ProbeTarget(base_url=url), replace(LIMITS, canaries=False), None, exporter,
            lambda event, /, **fields: events.append((event, fields)), ProbeTarget(base_url=guard),
        )  # fmt: skip
        seen = [await anext(moments) for _ in range(3)]
        await moments.aclose()  # type: ignore[attr-defined]  # it is a generator
        assert exporter.registry.get_sample_value("glm4_watch_guard_read") == 0
        assert seen[-1].state is State.OK
        return seen[-1].why

    with mounted(Reference()) as url:
        assert "without a guard's counters" in asyncio.run(run(url, url))
        assert "what the guard finds is unknown" in asyncio.run(run(url, "http://127.0.0.1:1"))
    assert [(event, fields["state"]) for event, fields in events] == [("guard", "unknown")] * 2


def test_a_guard_that_refuses_new_questions_is_told_once_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shortage begins, lasts, and ends, with a question in each phase; the verdict on the engine stays."""
    host = SimpleNamespace(left=9)
    monkeypatch.setattr(reader, "LOOK_S", 0.0)
    monkeypatch.setattr(reader, "read_memory", lambda: MemoryFacts(available=host.left * 2**30))
    events: list[tuple[str, dict[str, Any]]] = []

    async def run(url: str) -> None:
        options, ledger = GuardOptions(engine=url, refuse_below_gib=8.0), Ledger(lambda _: None)
        async with serving(options, ledger, "127.0.0.1", 0, 0) as (port, metrics), AsyncClient(trust_env=False) as ask:
            moments = judge_engine(
                ProbeTarget(base_url=url), replace(LIMITS, canaries=False), None, Exporter(stale_s=60),
                lambda event, /, **fields: events.append((event, fields)),
                ProbeTarget(base_url=f"http://127.0.0.1:{metrics}"),
            )  # fmt: skip
            statuses, states = [], []
            for host.left in (9, 5, 5, 9, 9):
                answer = await ask.post(f"http://127.0.0.1:{port}/v1/embeddings", json={"model": "m"})
                statuses.append(answer.status_code == 503)
                states.append((await anext(moments)).state)
            await moments.aclose()  # type: ignore[attr-defined]  # it is a generator
            assert statuses == [False, True, True, False, False]
            assert State.OK in states and not {*states} - {State.OK, State.UNKNOWN}

    with mounted(Reference()) as url:
        asyncio.run(run(url))
    assert [(event, fields["state"]) for event, fields in events] == [("guard", "refuses"), ("guard", "well")]
    assert events[0][1]["why"] == "the host is short of memory; 1 refused since its start"
    assert events[1][1]["why"] == "it takes new questions again; 2 refused since its start"
