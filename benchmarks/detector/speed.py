"""Cost of the detector, compared with zlib on the same text and with vLLM's rule for the same pattern length.

    python -m benchmarks.detector.speed

Needs the corpus (python -m benchmarks.detector). Every figure is the best of several runs in one process; machines
differ, so read the ratios.
"""

import argparse
import time
import zlib
from collections.abc import Callable, Sequence

from benchmarks.detector.baselines import vllm_step
from benchmarks.detector.documents import cache, read

from glm4_deploy.detect import scan
from glm4_deploy.detect.stream import Stream
from glm4_deploy.detect.thresholds import REACH

CHARS_PER_TOKEN = 4


def best(run: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


PROSE = ("licences", "verse", "fortunes", "chinese-manuals", "constitution", "songs-poems", "restructuredtext")


def sample(size: int, *, prose: bool) -> str:
    """Good text of the corpus: prose, or rows, markup and code."""
    halves = (document for half in ("development", "test") for document in read(cache() / f"{half}.jsonl"))
    good = (document for document in halves if not document.degenerate and (document.family in PROSE) is prose)
    return "\n\n".join(document.text for document in good)[-size:]


def stream(text: str, step: int = CHARS_PER_TOKEN) -> Stream:
    out = Stream()
    for at in range(0, len(text), step):
        out.feed(text[at : at + step])
    out.close("stop")
    return out


def long_period(period_tokens: int, copies: float, text: str) -> str:
    """A text that repeats after so many tokens, just short of an alarm: the worst case for a comparison."""
    period = period_tokens * CHARS_PER_TOKEN
    return (text[:period] * 4)[: int(period * copies)]


def lines() -> list[str]:
    """The tables, as Markdown lines."""
    rows = ["### Cost", "", "30,000 characters of sane text in one process; CPU time; the best of 25 runs."]
    rows += ["", "| text | zlib, ns per character | scan | Stream, 4 characters per chunk | Stream, µs per token |"]
    rows.append("|---|---|---|---|---|")
    for name, prose in (("prose", True), ("rows, markup and code", False)):
        rows.append(_cost(name, sample(200_000, prose=prose)[-30_000:]))
    text = sample(200_000, prose=True)
    rows += [
        "",
        "| pattern reach, tokens | vLLM's rule, µs per token | Stream, µs per token | ratio |",
        "|---|---|---|---|",
    ]
    rows += [_reach(reach, text) for reach in (20, 64, 256, 1024, 4096)]
    letters = "a" * 10_000_000
    start = time.process_time()
    scan(letters)
    rows += ["", f"10 MB of one letter: {(time.process_time() - start) * 1e3:.1f} ms.", *_memory(text)]
    return rows


def _cost(name: str, text: str) -> str:
    raw, size = text.encode(), len(text)
    runs = (lambda: zlib.compress(raw), lambda: scan(text), lambda: stream(text))
    zipped, whole, streamed = (best(run, 25) / size * 1e9 for run in runs)
    shown = f"{whole:.0f} ({whole / zipped:.0f} × zlib) | {streamed:.0f} ({streamed / zipped:.0f} × zlib)"
    return f"| {name} | {zipped:.0f} | {shown} | {streamed * CHARS_PER_TOKEN / 1e3:.2f} |"


def _reach(reach: int, text: str) -> str:
    """Both for the same pattern length, on a text of that period just short of an alarm; vLLM's min_count is 3."""
    sample = long_period(reach, 2.9, text)
    ids = [hash(sample[at : at + CHARS_PER_TOKEN]) for at in range(0, len(sample), CHARS_PER_TOKEN)]
    looks: Sequence[int] = range(len(ids) - min(64, len(ids) // 2), len(ids))
    rule = best(lambda: [vllm_step(ids[:to], reach, 1, 3) for to in looks], 3) / len(looks)
    ours = best(lambda: stream(sample), 3) / (len(sample) / CHARS_PER_TOKEN)
    return f"| {reach} | {rule * 1e6:.1f} | {ours * 1e6:.2f} | {rule / ours:.0f} |"


def _memory(text: str) -> tuple[str, str]:
    import tracemalloc

    sizes = []
    for copies in (10, 50):
        long = "".join(f"{text[at : at + 997]}\n{at} {copies}\n" for at in range(0, len(text), 997)) * (copies // 10)
        tracemalloc.start()
        held = stream(long, 4096)
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        del held
    return (
        f"A stream holds {sizes[0] / 1e6:.1f} MB after {len(text) // 1000} thousand characters, and "
        f"{sizes[1] / 1e6:.1f} MB after five times as many.",
        f"Exact loops are found up to a period of {REACH} characters.",
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("\n".join(lines()))
