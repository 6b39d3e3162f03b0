"""Answers that are only observed are judged after their bytes were passed on."""

import asyncio
import socket

import pytest

from glm4_deploy.guard.reader import BACKLOG, Backlog, Mode
from servers.guarded import CHAT, DONE, PATIENCE_S, Engine, guarded, post, streamed, token


def test_one_batch_is_judged_in_each_round_of_the_event_loop() -> None:
    async def rounds() -> list[int]:
        backlog, judged, seen = Backlog(), [], []
        for number in range(3):
            backlog.put(lambda number=number: judged.append(number))
        for _ in range(4):
            seen.append(len(judged))
            await asyncio.sleep(0)
        assert judged == [0, 1, 2]
        return seen

    assert asyncio.run(rounds()) == [0, 1, 2, 3]


def test_more_than_may_wait_is_judged_at_once() -> None:
    async def put() -> list[int]:
        backlog, judged = Backlog(), list[int]()
        for number in range(BACKLOG + 3):
            backlog.put(lambda number=number: judged.append(number))
        return list(judged)

    assert asyncio.run(put()) == [0, 1, 2]


def test_a_batch_that_cannot_be_judged_holds_up_no_other() -> None:
    async def put() -> list[int]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        backlog, judged = Backlog(), list[int]()
        backlog.put(lambda: judged.append(1 // 0))
        backlog.put(lambda: judged.append(1))
        for _ in range(3):
            await asyncio.sleep(0)
        return judged

    assert asyncio.run(put()) == [1]


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.CUT])
def test_a_client_that_leaves_at_the_end_mark_has_its_answer_judged(mode: Mode) -> None:
    engine = Engine(*streamed(*(token("\ufffd") for _ in range(40)), token("", finish="stop"), DONE))
    with guarded(engine, mode) as guard:
        body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
        with socket.create_connection(("127.0.0.1", guard.port)) as client:
            client.sendall(
                b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body
            )
            seen = b""
            client.settimeout(PATIENCE_S)
            while DONE not in seen:
                piece = client.recv(65536)
                assert piece, "the guard closed the connection"
                seen += piece
        guard.until(lambda: guard.count("streams") == 0)
        assert guard.count("answers_total", model="m", outcome="sick") == 1
        assert guard.count("unjudged_total", reason="broken off") == 0


def test_what_waits_is_judged_before_the_verdict() -> None:
    """The end of a short answer has filled no batch yet."""
    with guarded(Engine(*streamed(token("\ufffd" * 40), token("", finish="stop"), DONE)), Mode.OBSERVE) as guard:
        post(guard)
        guard.until(lambda: guard.count("answers_total", model="m", outcome="sick") == 1)
