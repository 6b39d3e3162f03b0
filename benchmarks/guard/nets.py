"""Which net catches a loop first: the guard, or vLLM's own check (`repetition_detection`), on a real engine.

    python -m benchmarks.guard.nets --engine URL [--answers 40] [--tokens 600] [--temperature 0.7]

The engine is any vLLM from 0.17. Each prompt is answered once without a net, with its number as the seed; the same
tokens are then judged: by the guard's reader as the stream that the engine sent, and by the engine itself, asked again
with `repetition_detection` and the same seed. Where the second answer is not a beginning of the first, the engine's
sampling was not the same twice: such answers are counted and left out.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx
from benchmarks.detector.documents import cache, read

from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.guard.question import Api, read_question
from glm4_deploy.guard.reader import EventReader, Judging, Mode

CHECKS = ((64, 4), (64, 8), (64, 16), (20, 8))


@dataclass(frozen=True, slots=True)
class Ended:
    """One streamed answer: its text, tokens (events with text) until the end, and why it ended."""

    text: str
    tokens: int
    reason: str
    raw: tuple[bytes, ...] = ()


def prompts(number: int) -> Iterator[str]:
    """What people ask, from the detector's good answers."""
    seen = set()
    for document in read(cache() / "test.jsonl"):
        if document.prompt and len(document.prompt) < 400 and not document.degenerate and document.prompt not in seen:
            seen.add(document.prompt)
            yield document.prompt
            if len(seen) == number:
                return


def ask(client: httpx.Client, body: dict[str, Any]) -> Ended:
    text, tokens, reason, raw = "", 0, "", []
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            raw.append(line.encode() + b"\n\n")
            (choice,) = json.loads(line[6:])["choices"]
            more = choice["delta"].get("content") or ""
            tokens += bool(more)
            text += more
            reason = choice["finish_reason"] or reason
    return Ended(text, tokens, reason, tuple(raw))


def guard_cuts_at(body: dict[str, Any], answer: Ended) -> int | None:
    """The token at which the guard would have cut; None if never."""
    question = read_question(Api.CHAT, json.dumps(body).encode())
    assert question is not None
    reader = EventReader(Judging(ledger=Ledger(lambda _: None), question=question, mode=Mode.CUT, room=lambda _: None))
    tokens = 0
    for event in answer.raw:
        tokens += b'"content":""' not in event
        if reader.feed(event) is not None:
            return tokens
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--answers", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--temperature", type=float, default=0.7)
    options = parser.parse_args()
    with httpx.Client(base_url=options.engine, timeout=600, trust_env=False) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        both: dict[tuple[int, int], list[tuple[int | None, int | None]]] = {check: [] for check in CHECKS}
        strayed = looping = 0
        for seed, prompt in enumerate(prompts(options.answers)):
            body = {"model": model, "stream": True, "seed": seed, "max_tokens": options.tokens}
            body["temperature"] = options.temperature
            body["messages"] = [{"role": "user", "content": prompt}]
            whole = ask(client, body)
            at = guard_cuts_at(body, whole)
            looping += at is not None
            for tokens, times in CHECKS:
                check = {"max_pattern_size": tokens, "min_count": times}
                again = ask(client, body | {"repetition_detection": check})
                if not whole.text.startswith(again.text):
                    strayed += 1
                    continue
                both[tokens, times].append((at, again.tokens if again.reason == "repetition" else None))
    print(f"{options.answers} answers of up to {options.tokens} tokens; the guard would cut {looping} of them")
    print(
        "| vLLM's check | both | guard first, by tokens (median) | vLLM first, by tokens | guard alone | vLLM alone |"
    )
    print("|---|---|---|---|---|---|")
    for (tokens, times), pairs in both.items():
        caught = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
        ahead = [theirs - ours for ours, theirs in caught if ours < theirs]
        behind = [ours - theirs for ours, theirs in caught if theirs < ours]
        cells = [f"{len(caught)}", f"{len(ahead)}, by {median(ahead or [0]):.0f}"]
        cells += [f"{len(behind)}, by {median(behind or [0]):.0f}"]
        cells += [f"{sum(ours is not None and theirs is None for ours, theirs in pairs)}"]
        cells += [f"{sum(ours is None and theirs is not None for ours, theirs in pairs)}"]
        print(f"| {tokens}, {times} | {' | '.join(cells)} |")
    print(f"left out, because the same seed gave other tokens: {strayed} of {options.answers * len(CHECKS)}")


if __name__ == "__main__":
    main()
