"""Other projects' rules, re-implemented from their descriptions, to compare with the detector on the same rows.

oh-my-pi's limits are from its source, since it has no description; what it takes for code, headings and names is ours.

Each takes a document and returns whether the rule would call it degenerate. None is the original's code. Each is run
once at the end of the text or at every step, whichever the original does. Where the original works on tokens and a row
has no token ids, the words, punctuation and spaces of the text stand in for tokens.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

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


def vllm_mlx(document: Document) -> bool:
    """vllm-mlx #723: three copies of 1 to 128 tokens that cover 48, in the last 512, every 16 tokens past 64."""
    ids = tokens(document)
    return any(vllm_mlx_step(ids[max(end - 512, 0) : end]) for end in {*range(80, len(ids), 16), len(ids)} if end >= 64)


def vllm_mlx_step(tail: Sequence[object]) -> bool:
    """The rule at one point, on the tail that it looks at."""
    for period in range(1, min(128, len(tail) // 3) + 1):
        need = max(3 * period, 48)
        if len(tail) >= need and tail[-need:-period] == tail[-need + period :]:
            return True
    return False


def oh_my_pi_exact(document: Document) -> bool:
    """oh-my-pi, for every model: a cycle with a letter in the last 4,096 characters, looked at every 128.

    Up to 60 characters four copies that cover 180; up to 1,024 characters three that cover 1,024.
    """
    text = document.text
    return any(_cycle(text[max(end - 4096, 0) : end]) for end in {*range(128, len(text), 128), len(text)})


def _cycle(tail: str) -> bool:
    for period in range(1, min(1024, len(tail) // 3) + 1):
        need = max(4 * period, 180) if period <= 60 else max(3 * period, 1024)
        unit = tail[-period:]
        if (
            len(tail) >= need
            and unit == tail[-2 * period : -period]
            and tail[-need:-period] == tail[-need + period :]
            and any(map(str.isalpha, unit))
        ):
            return True
    return False


def oh_my_pi(document: Document) -> bool:
    """oh-my-pi, for some models: beside the cycles, paragraphs that nearly repeat or say nothing new.

    Four of the last 17 with a Jaccard similarity of their trigrams of 0.8, or eight in a row of whose words at most a
    fifth are new to the last eight and that name nothing new; from the eighth paragraph on.
    """
    shingles: list[set[tuple[str, ...]]] = []
    vocabulary: list[set[str]] = []
    names: list[set[str]] = []
    stall = 0
    for segment in _segments(document.text):
        words = re.findall(r"[^\W\d_]+", segment.lower())
        if len(" ".join(words)) < 60:
            continue
        trigrams = set(zip(words, words[1:], words[2:], strict=False))
        alike = sum(len(trigrams & other) >= 0.8 * len(trigrams | other) for other in shingles[-16:])
        known = set().union(*vocabulary[-8:])
        named = {word.strip("`.,;:()").lower() for word in segment.split() if _is_name(word)}
        says_nothing = known and len(set(words) - known) <= 0.2 * len(set(words))
        stall = stall + 1 if says_nothing and not named - set().union(*names[-8:]) else 0
        shingles.append(trigrams)
        vocabulary.append(set(words))
        names.append(named)
        if len(shingles) >= 8 and (alike >= 3 or stall >= 8):
            return True
    return oh_my_pi_exact(document)


def _segments(text: str) -> Iterator[str]:
    """Paragraphs of at most 700 characters, without code and headings."""
    for paragraph in re.split(r"\n\s*\n", text):
        for at in range(0, len(paragraph), 700):
            lines = paragraph[at : at + 700].split("\n")
            yield "\n".join(line for line in lines if not _is_code_or_heading(line))


def _is_code_or_heading(line: str) -> bool:
    text = line.strip()
    if text.startswith(("#", "```")) or text.endswith(("{", "}", "[", "]", "(", ")", ";", ",", ">")):
        return True
    if text.startswith("**") and text.endswith("**"):
        return True
    item = text.startswith(("-", "*", "+")) or text.split(" ")[0].rstrip(".)").isdigit()
    return line.startswith(("  ", "\t")) and not item


def _is_name(word: str) -> bool:
    """Whether a word names something of a program: in backticks, a file, a path, snake_case or camelCase."""
    bare = word.strip("`.,;:()")
    camel = any(low.islower() and high.isupper() for low, high in pairwise(bare))
    return "`" in word or camel or "_" in bare or "." in bare or bare.count("/") > 1


def trigram_novelty(document: Document) -> bool:
    """At most a fifth of the last 300 words begin a trigram that is new to the text: a plain rule, nobody's."""
    words = document.text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    if len(trigrams) < 100:
        return False
    last = trigrams[-300:]
    seen = set(trigrams[:-300])
    return len(set(last) - seen) <= 0.2 * len(last)


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


@dataclass(frozen=True, slots=True)
class Baseline:
    """A rule and where it was described."""

    rule: Callable[[Document], bool]
    source: str


BASELINES: dict[str, Baseline] = {
    "vLLM {20, 1, 3}": Baseline(vllm(20, 1, 3), "vLLM 0.17, `repetition_detection`"),
    "vLLM {20, 1, 8}": Baseline(vllm(20, 1, 8), "vLLM 0.17, `repetition_detection`"),
    "vLLM {64, 1, 4}": Baseline(vllm(64, 1, 4), "vLLM 0.17, `repetition_detection`"),
    "llama.cpp #26039": Baseline(llama_cpp, "ggml-org/llama.cpp#26039"),
    "vllm-mlx #723": Baseline(vllm_mlx, "waybarrios/vllm-mlx#723"),
    "oh-my-pi, exact": Baseline(oh_my_pi_exact, "can1357/oh-my-pi#10569"),
    "oh-my-pi, all": Baseline(oh_my_pi, "can1357/oh-my-pi#10569"),
    "gemini-cli": Baseline(gemini_cli, "google-gemini/gemini-cli#5873"),
    "zlib > 2.4 (Whisper)": Baseline(whisper, "openai/whisper"),
    "Gopher": Baseline(gopher, "arXiv 2112.11446"),
    "chandra": Baseline(chandra, "datalab-to/chandra"),
    "trigram novelty": Baseline(trigram_novelty, "a plain rule"),
}
