"""The known failures that a description in plain words can mean, where there is no log.

Two ways lead to a row: its own text (id, cause, hosts, example, fix), and a phrase in `symptoms.yaml` that names the
row. Both give a share of the words that were said, each weighted by how few rows it stands in (inverse document
frequency), so "ptxas" says more than "start".
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from glm4_deploy.catalog.rows import Signature, Symptom, signatures, symptoms, vocabulary
from glm4_deploy.logs.finding import LEVELS, LogFinding

LONGEST = 500  # characters that are read
MOST = 6  # rows: more than a person tries
LEAST = 0.35  # share of the words that a row must explain, by weight; below it, rows are accidents
KNOWN = 0.5  # share of the words that any row must have, at least: "the movie repeats" is not about an engine
NEAR = 0.6  # of the best row's score: what is further behind is another failure
STEP = 0.04  # by which each further row of a symptom's `see` is less likely
BOTH = 0.1  # share of the lesser score that is added where both ways lead to a row
# How much a word counts by where it stands: an id is made of a failure's own words, a fix names many other things.
IN_ID, IN_CAUSE, IN_EXAMPLE, IN_FIX = 1.0, 0.8, 0.6, 0.2
NO_ROW_KNOWS = 0.5  # weight of a word that no row has, as a share of the rarest word's
PLACE = 0.5  # weight of a word that says where, as a share of one that says what
TYPO = 0.8  # difflib's similarity: "ptaxs" is ptxas, "flashinfra" is flashinfer

_MARKS = re.compile(r"!{2,}")
_WORD = re.compile(r"[a-z0-9]+")


def rows_for(said: str) -> tuple[LogFinding, ...]:
    """The rows for a description, most likely first; empty if none explains enough of its words.

    A finding's `line` is an example of what the log says then; a failure that leaves no line has ''.
    """
    index = _index()
    plain = _plain(said[:LONGEST])
    spelled = tuple(map(index.spelled, plain))
    words = frozenset(_words(" ".join(spelled)))
    known = sum(word in index.rarity for word in words)
    if known <= len(words) * KNOWN or _about_something_else(spelled, words, plain):
        return ()
    scores = {row: index.own(words, row) for row in index.texts}
    for symptom in symptoms():
        score = index.score(words, symptom.id)
        rows = (symptom.id, *symptom.see) if symptom.cause else symptom.see
        for place, row in enumerate(rows):
            own, named = scores[row], max(score - STEP * place, 0.0)
            scores[row] = max(own, named) + BOTH * min(own, named)
    best = sorted(scores, key=lambda row: -scores[row])[:MOST]
    return tuple(index.finding(row) for row in best if scores[row] >= max(LEAST, NEAR * scores[best[0]]))


def _about_something_else(spelled: tuple[str, ...], words: frozenset[str], plain: list[str]) -> bool:
    """Whether a sentence has a word that no row knows, and none that only this field has.

    "The baby never stops crying" has the words of a loop. A misspelling counts as unknown beside other words: "printer"
    is near "prints".
    """
    index = _index()
    strange = any(word not in index.rarity for word in words) or (
        len(words) > 1 and [*map(_stem, spelled)] != [*map(_stem, plain)]
    )
    return strange and not any(word in vocabulary().field or _is_code(word) for word in spelled)


def _is_code(word: str) -> bool:
    """`137`, `5090`, `121a`: a number that some row has."""
    return len(word) > 2 and word[0].isdigit() and word in _index().spellings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """texts: by row, how much each of its words counts. phrases: by symptom. rarity: by word, its weight.

    spellings: all words, with their endings.
    """

    texts: Mapping[str, Mapping[str, float]]
    phrases: Mapping[str, tuple[frozenset[str], ...]]
    rarity: Mapping[str, float]
    spellings: frozenset[str]

    def spelled(self, word: str) -> str:
        """The word, or the known one that it is a misspelling of."""
        stem = _stem(word)
        if len(word) < 5 or word in self.spellings or stem in self.rarity or stem in _ignored():
            return word
        alike = [known for known in self.spellings if known[0] == word[0]]  # "fridge" is not "bridge"
        return next(iter(get_close_matches(word, alike, n=1, cutoff=TYPO)), word)

    def weight(self, word: str) -> float:
        weight = self.rarity.get(word, NO_ROW_KNOWS * max(self.rarity.values()))
        return PLACE * weight if word in vocabulary().places else weight

    def own(self, words: frozenset[str], row: str) -> float:
        """How much of the words the row's own text explains."""
        known = self.texts[row]
        return sum(self.weight(word) * known.get(word, 0.0) for word in words) / sum(map(self.weight, words))

    def score(self, words: frozenset[str], symptom: str) -> float:
        """How much of the words a phrase of the symptom explains, less what that phrase has beside them.

        Words from several of its phrases count too, but less.
        """
        said, phrases = sum(map(self.weight, words)), self.phrases[symptom]
        common = [(sum(map(self.weight, words & phrase)), sum(map(self.weight, phrase))) for phrase in phrases]
        anywhere = sum(map(self.weight, words & frozenset().union(*phrases))) / said
        return max(IN_CAUSE * anywhere, *(part / said * math.sqrt(part / whole) for part, whole in common if whole))

    def finding(self, row: str) -> LogFinding:
        known: Signature | Symptom = _rows()[row]
        return LogFinding(
            id=known.id,
            severity=LEVELS[known.severity],
            line=known.example if isinstance(known, Signature) else "",
            cause=known.cause,
            fix=known.fix,
            source=known.source,
        )


@cache
def _rows() -> dict[str, Signature | Symptom]:
    own = {row.id: row for row in symptoms() if row.cause}
    return {**{row.id: row for row in signatures()}, **own}


@cache
def _index() -> _Index:
    parts = {row.id: _parts(row) for row in _rows().values()}
    texts = {row: {word: counts for counts, text in own for word in _words(text)} for row, own in parts.items()}
    phrases = {row.id: tuple(frozenset(_words(phrase)) for phrase in row.says) for row in symptoms()}
    seen = Counter(word for text in texts.values() for word in text)
    seen.update(word for several in phrases.values() for word in frozenset().union(*several))
    number = len(texts) + len(phrases)
    rarity = {word: math.log(1 + number / times) for word, times in seen.items()}
    everything = [text for own in parts.values() for _, text in own] + [text for row in symptoms() for text in row.says]
    spellings = frozenset(_plain(" ".join(everything)))
    return _Index(texts=texts, phrases=phrases, rarity=rarity, spellings=spellings)


def _parts(row: Signature | Symptom) -> tuple[tuple[float, str], ...]:
    """The texts of a row with what their words count, the least first."""
    if isinstance(row, Symptom):
        return (IN_FIX, row.fix), (IN_CAUSE, row.cause), (IN_ID, row.id)
    return (IN_FIX, row.fix), (IN_EXAMPLE, row.example), (IN_CAUSE, f"{row.cause} {row.where}"), (IN_ID, row.id)


def _plain(text: str) -> list[str]:
    return _WORD.findall(_MARKS.sub(" exclamation marks ", text.lower()))


def _words(text: str) -> tuple[str, ...]:
    """The words that say something, without their endings and with one word for each thing."""
    plain = [_stem(word) for word in _plain(text)]
    longest, same = _same()
    found: list[str] = []
    place = 0
    while place < len(plain):
        size = next((size for size in range(longest, 0, -1) if tuple(plain[place : place + size]) in same), 1)
        found += same.get(tuple(plain[place : place + size]), plain[place : place + 1])
        place += size
    return tuple(word for word in found if word not in _ignored())


@cache
def _same() -> tuple[int, dict[tuple[str, ...], list[str]]]:
    """Words in a row, as stems → what stands for them; and the largest number of words in a row."""
    same = {
        tuple(map(_stem, _WORD.findall(one.lower()))): [_stem(word) for word in first.split()]
        for first, *others in vocabulary().same
        for one in (first, *others)
    }
    return max(map(len, same)), same


@cache
def _ignored() -> frozenset[str]:
    return frozenset(map(_stem, vocabulary().ignored))


def _stem(word: str) -> str:
    """`freezes`, `freezing`, `freeze` → freez; `stopped`, `stops` → stop. Short words and numbers stay."""
    if len(word) < 4 or not word.isalpha() or word.endswith("ss"):
        return word
    word = re.sub(r"(?<=\w{2})(ies|ied)$", "y", word)  # replies, replied → reply
    bare = re.sub(r"(?<=\w{3})(ing|ed|es|s|ly)$", "", word).removesuffix("e")
    return bare[:-1] if len(bare) > 3 and bare[-1] == bare[-2] and bare != word and bare[-1] not in "sl" else bare
