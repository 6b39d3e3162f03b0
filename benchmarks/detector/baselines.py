"""Other projects' rules, re-implemented from their descriptions, to compare with the detector on the same rows.

Each takes a document and returns whether the rule would call it degenerate. None is the original's code. Each is run
once at the end of the text or at every step, whichever the original does. Where the original works on tokens and a row
has no token ids, the words, punctuation and spaces of the text stand in for tokens.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from benchmarks.detector.documents import Document

_TOKEN = re.compile(r"\s?[^\W\d_]{1,6}|\d|\s+|[^\w\s]|_")


def tokens(document: Document) -> Sequence[object]:
    return document.token_ids or _TOKEN.findall(document.text)


def vllm_step(ids: Sequence[object], most: int, least: int, count: int) -> bool:
    """vLLM >= 0.17 `repetition_detection`, after one token: whether the last `count` blocks of some length are equal."""
    for length in range(least, most + 1):
        if length * count > len(ids):
            return False
        tail = ids[-length:]
        if all(ids[-length * (back + 1) : -length * back] == tail for back in range(1, count)):
            return True
    return False


def repeats(ids: Sequence[object], most: int, least: int, count: int, every: int = 1) -> bool:
    """Whether `count` equal blocks in a row end at a multiple of `every` tokens (or at the end)."""
    codes = np.array([hash(token) for token in ids], dtype=np.int64)
    size = len(codes)
    for length in range(least, min(most, size // count) + 1):
        same = codes[length:] == codes[:-length]
        # The run of equal pairs that ends at each token.
        at = np.arange(1, len(same) + 1)
        run = at - np.maximum.accumulate(np.where(same, 0, at))
        ends = np.flatnonzero(run >= (count - 1) * length) + length + 1
        if np.any((ends % every == 0) | (ends == size)):
            return True
    return False


def vllm(most: int, least: int, count: int) -> Callable[[Document], bool]:
    """vLLM's rule after every token of a document: `vllm_step` at each of them, vectorized."""
    return lambda document: repeats(tokens(document), most, least, count)


def llama_cpp(document: Document) -> bool:
    """llama.cpp #26039: a tail of 16 to 1024 tokens that repeats four times, checked every 16 tokens."""
    return repeats(tokens(document), 1024, 16, 4, every=16)


def gemini_cli(document: Document) -> bool:
    """gemini-cli: ten equal 50-character chunks, at most 250 characters apart on average; off in code, reset at lists."""
    seen: dict[str, list[int]] = {}
    base = 0
    text = document.text
    fence = False
    for line in text.split("\n"):
        fence ^= line.lstrip().startswith("```")
        if fence or re.match(r"\s*(?:[-*+|#>]|\d+\.)\s?|^[=─]+$", line):
            seen.clear()
            base += len(line) + 1
            continue
        for place in range(base, base + len(line) + 1):
            chunk = text[place : place + 50]
            if len(chunk) < 50:
                break
            places = seen.setdefault(chunk, [])
            places.append(place)
            if len(places) >= 10 and (places[-1] - places[-10]) / 9 <= 5 * 50:
                return True
        base += len(line) + 1
    return False


def whisper(document: Document) -> bool:
    """Whisper: zlib compresses the text by a factor above 2.4."""
    raw = document.text.encode("utf-8", "surrogatepass")
    return len(raw) > 2.4 * len(zlib.compress(raw)) if raw else False


def gopher(document: Document) -> bool:
    """Gopher's repetition rules: duplicate lines and paragraphs, top and duplicate n-grams of words."""
    text = document.text
    for between, most in (("\n\n", 0.3), ("\n", 0.3)):
        parts = [part for part in text.split(between) if part.strip()]
        if len(parts) > 1 and 1 - len(set(parts)) / len(parts) > most:
            return True
    words = text.split()
    whole = sum(map(len, words)) or 1
    for size, most in ((2, 0.20), (3, 0.18), (4, 0.16)):
        grams = Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))
        if grams and (top := grams.most_common(1)[0])[1] > 1 and sum(map(len, top[0])) * top[1] / whole > most:
            return True
    for size, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)):
        seen: set[tuple[str, ...]] = set()
        repeated = at = 0
        while at + size <= len(words):
            gram = tuple(words[at : at + size])
            if gram in seen:
                repeated += sum(map(len, gram))
                at += size
            else:
                seen.add(gram)
                at += 1
        if repeated / whole > most:
            return True
    return False


def chandra(document: Document) -> bool:
    """chandra OCR: the end of the text repeats a unit more than 4 (1 + 3 / length) times."""
    text = document.text.rstrip()
    for length in range(1, min(len(text) // 4, 500) + 1):
        unit, times, place = text[-length:], 1, len(text) - length
        while place >= length and text[place - length : place] == unit:
            times, place = times + 1, place - length
        if times > 4 * (1 + 3 / length):
            return True
    return False


BASELINES: dict[str, Callable[[Document], bool]] = {
    "vLLM {20, 1, 3}": vllm(20, 1, 3),
    "vLLM {20, 1, 8}": vllm(20, 1, 8),
    "vLLM {64, 1, 4}": vllm(64, 1, 4),
    "llama.cpp #26039": llama_cpp,
    "gemini-cli": gemini_cli,
    "zlib > 2.4 (Whisper)": whisper,
    "Gopher": gopher,
    "chandra": chandra,
}
