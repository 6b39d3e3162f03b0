"""Cost of the detector, compared with zlib on the same text and with vLLM's rule for the same pattern length.

    python -m benchmarks.detector.speed

Needs the corpus (python -m benchmarks.detector). Every figure is the best of several runs in one process; machines
differ, so read the ratios.
"""

import argparse
import random
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from string import ascii_lowercase

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


CHINESE_CHARS_PER_TOKEN = 1.5
SAMPLE = 60_000  # characters
FAMILIES = {
    "prose": ("licences", "verse", "fortunes", "constitution", "restructuredtext"),
    "code": ("code-python", "code-c", "code-shell-perl"),
    "JSON rows": ("json-records", "json-iso-codes"),
    "Chinese": ("chinese-manuals", "chinese-poems"),
}
LOOP = "an allowed loop"
ASKED = "Repeat this sentence 5000 times: All work and no play makes Jack a dull boy."


def sample(name: str, size: int = SAMPLE) -> str:
    """Good texts of the corpus, from these families in no order; or the loop that ASKED asks for."""
    if name == LOOP:
        return ("All work and no play makes Jack a dull boy. " * (size // 44 + 1))[:size]
    halves = (document for half in ("development", "test") for document in read(cache() / f"{half}.jsonl"))
    good = [document.text for document in halves if document.family in FAMILIES[name]]
    random.Random(0).shuffle(good)
    return "\n\n".join(good)[:size]


def stream(text: str, step: int = CHARS_PER_TOKEN, *, prompt: str | None = None) -> Stream:
    """A stream that has taken this text, but not yet its end."""
    out = Stream(prompt=prompt)
    for at in range(0, len(text), step):
        out.feed(text[at : at + step])
    return out


def long_period(period_tokens: int, copies: float, text: str) -> str:
    """A text that repeats after so many tokens, just short of an alarm: the worst case for a comparison."""
    period = period_tokens * CHARS_PER_TOKEN
    return (text[:period] * 4)[: int(period * copies)]


def lines() -> list[str]:
    """The tables, as Markdown lines."""
    rows = ["### Cost", ""]
    rows.append(
        f"{SAMPLE:,} characters of sane text in one process, {CHARS_PER_TOKEN} per chunk; CPU time; best of 15 runs."
    )
    rows.append(f"A token is {CHARS_PER_TOKEN} characters, or {CHINESE_CHARS_PER_TOKEN} of Chinese.")
    rows += ["", "| text | zlib, ns per character | Stream, ns per character | µs per token | one feed, p99, ms |"]
    rows[-1] += " the end of 4,000 characters, ms |"
    rows.append("|---|---|---|---|---|---|")
    rows += [_cost(name) for name in (*FAMILIES, LOOP)]
    text = sample("prose", 200_000)
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


def _cost(name: str) -> str:
    text, prompt = sample(name), ASKED if name == LOOP else None
    raw = text.encode()
    if stream(text, prompt=prompt).final is not None:
        raise SystemExit(f"{name}: an alarm ends the search, so its cost cannot be measured")
    runs = (lambda: zlib.compress(raw), lambda: stream(text, prompt=prompt))
    zipped, streamed = (best(run, 15) / len(text) * 1e9 for run in runs)
    per_token = streamed * (CHINESE_CHARS_PER_TOKEN if name == "Chinese" else CHARS_PER_TOKEN) / 1e3
    slowest = min(_feeds(text, prompt) for _ in range(5)) * 1e3
    end = min(_end(text[:4000], prompt) for _ in range(15)) * 1e3
    cost = f"{streamed:.0f} ({streamed / zipped:.0f} × zlib) | {per_token:.2f}"
    return f"| {name} | {zipped:.0f} | {cost} | {slowest:.3f} | {end:.1f} |"


def _feeds(text: str, prompt: str | None) -> float:
    """The time that one feed in a hundred exceeds."""
    out, seconds = Stream(prompt=prompt), []
    for at in range(0, len(text), CHARS_PER_TOKEN):
        start = time.process_time()
        out.feed(text[at : at + CHARS_PER_TOKEN])
        seconds.append(time.process_time() - start)
    return statistics.quantiles(seconds, n=100)[-1]


def _end(text: str, prompt: str | None) -> float:
    """The time that the verdict at the end takes."""
    out = stream(text, 64, prompt=prompt)
    start = time.process_time()
    out.close("stop")
    return time.process_time() - start


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

    held, sizes, most = Stream(), [], 0
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for at in range(0, 1_000_000 * CHARS_PER_TOKEN + 1, 64):
        if at % 6_400 == 0:
            most = max(most, tracemalloc.get_traced_memory()[0] - before)
        if at in (40_000, 400_000, 4_000_000):
            sizes.append(f"{most / 2**20:.1f} MiB")
        # Other letters each time round, so that nothing repeats.
        held.feed(text[at % len(text) :][:64].translate(_ROTATED[at // len(text) % 26]))
    tracemalloc.stop()
    if held.final is not None:
        raise SystemExit(f"{held.final.why}: an alarm ends the search, so its memory cannot be measured")
    return (
        f"A stream holds at most {sizes[0]}, {sizes[1]} and {sizes[2]} in its first 10,000, 100,000 and 1,000,000 tokens "
        "of prose.",
        f"Exact loops are found up to a period of {REACH} characters.",
    )


_ROTATED = [str.maketrans(ascii_lowercase, ascii_lowercase[by:] + ascii_lowercase[:by]) for by in range(26)]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("\n".join(lines()))
