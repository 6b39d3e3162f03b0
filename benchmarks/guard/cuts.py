"""What the guard would cut of the detector's corpora: good answers, none; looping ones, how many and how soon.

    python -m benchmarks.detector judge      (once: it builds the corpora)
    python -m benchmarks.guard.cuts

Every document is sent as the events of a chat, four characters in each, through the reader that the proxy uses.
"""

import json
from collections import Counter
from statistics import median

from benchmarks.detector.documents import Document, cache, read

from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.guard.question import Api, read_question
from glm4_deploy.guard.reader import EventReader, Judging, Mode

LOOPS = {"EXACT_LOOP", "COUNTER_LOOP", "NEAR_DUPLICATE"}


def cut_after(document: Document) -> int | None:
    """Characters that had passed when the answer was cut; None if it was not."""
    messages = [{"role": "user", "content": document.prompt or ""}]
    question = read_question(Api.CHAT, json.dumps({"model": "m", "messages": messages}).encode())
    assert question is not None
    judging = Judging(ledger=Ledger(lambda _: None), question=question, mode=Mode.CUT, room=lambda _: None)
    reader = EventReader(judging)
    for at in range(0, len(document.text), 4):
        last = at + 4 >= len(document.text)
        choice = {"index": 0, "delta": {"content": document.text[at : at + 4]}}
        choice["finish_reason"] = (document.finish_reason or "stop") if last else None
        if reader.feed(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"):
            return at + 4
    return None


def main() -> None:
    print("| half | good answers | cut | looping answers | cut | characters from the loop's start to the cut, median |")
    print("|---|---|---|---|---|---|")
    for half in ("development", "test", "confirmation"):
        good, bad, wrong, caught, delays = 0, 0, Counter[str](), 0, []
        for document in read(cache() / f"{half}.jsonl"):
            if document.degenerate and not set(document.expected) & LOOPS:
                continue
            after = cut_after(document)
            good += not document.degenerate
            bad += document.degenerate
            if after is not None and not document.degenerate:
                wrong[document.family] += 1
            if after is not None and document.degenerate:
                caught += 1
                if document.start is not None:
                    delays.append(after - document.start)
        delay = median(delays or [0])
        print(f"| {half} | {good} | {sum(wrong.values())} | {bad} | {caught} | {delay:.0f} |", flush=True)
        if wrong:
            print(f"wrong: {dict(wrong)}")


if __name__ == "__main__":
    main()
