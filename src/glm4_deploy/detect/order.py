"""Words in no order: neighbours that belong together no more than words far apart do.

`order.bin` is a background model: how much more often one kind of word follows another in real text than it would by
chance, hashed into one byte each. `benchmarks/detector/order.py` counts it in 19 languages. The text is its own
reference: what its words score at random is subtracted, so that unusual words or an unknown language weigh nothing.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Final
from zlib import crc32, decompress

from glm4_deploy.detect.prompt import Shape, shape_of
from glm4_deploy.detect.thresholds import ORDER

STEPS: Final = re.compile(
    r"[\u2e80-\u9fff\uf900-\ufaff]|[^\W\d_\u2e80-\u9fff\uf900-\ufaff]+|\d+|[^\w\s]|\n\s*|_+"  # words, ideographs, marks
)
UNIT: Final = 16  # a byte of the model counts sixteenths of a nat
_DISTANCES = (41, 67, 89, 113)  # words apart that have nothing to do with each other
# The commonest words that say which language it is: a text without them may be in one that the model does not know.
_COMMON = tuple(
    frozenset(words.split())
    for words in (
        "the of and to in is a that for it as with be on by this are or from at an was not you have his but they which",
        "der die das und in zu den ist von mit nicht ein eine auf für im dem des sie sich es auch als wird oder bei an",
        "le la les de des du et à un une est en que pour dans qui par sur pas au plus ne se ce il ou avec sont l d",
        "el la los las de del y en que un una es se por para con no al su lo como o más si",
        "il la le di del della e in che un una è per con non si i da al gli o sono nel l",
        "o a os as de do da dos das e em que um uma é para com não se no na por ou ao",
        "de het een van en in is te dat op voor met die zijn niet aan er of om als bij wordt",
        "och i att en det som är på av för den med till ett inte om eller kan de har",
        "i w na z nie jest do się to że o jak lub dla po są za od przez",
        "a v je se na že s z do to pro jako nebo o k si které by",
        "ve bir bu için ile de da olarak olan veya daha ne çok gibi",
        "и в не на с что для по к от из или как это он а то же за если",
        "của và các là có được trong cho một để không với người này",
        "yang dan di untuk dengan dari pada ini dalam atau ke tidak akan dapat",
        "a az és egy hogy nem is vagy van ha ki meg de",
        "的 是 在 了 和 这 个 我 们 有 到 会 你 他 也 都 很 么 那 就 说 能 被 把 与 对 或 等 时",
        "の に を は が で と し た て い る な れ も か ら",
    )
)
_SYLLABLES: Final = "\u0900"  # from here on, scripts write words or syllables with one character
_PLACEHOLDER: Final = "ipsum"  # placeholder text is in no order, and is asked for


def kind_of(step: str) -> str:
    """A short word, a mark or an ideograph is its own kind; longer words are kinds by their last three letters."""
    if step[0] == "\n" or step[0].isdigit():
        return step[:1] if step[0] == "\n" else "0"
    word = step.lower()
    return word if len(word) <= 4 else "~" + word[-3:]


def slot_of(kind: str, after: str, slots: int) -> int:
    """Where the model keeps a pair; `slots` is a power of two."""
    return crc32(f"{kind} {after}".encode("utf-8", "surrogatepass")) & (slots - 1)


@cache
def _model() -> memoryview:
    """Signed bytes."""
    return memoryview(decompress(files(__package__).joinpath("order.bin").read_bytes())).cast("b")


def _bond(pairs: list[tuple[str, str]]) -> float:
    """How much more often these pairs stand side by side than by chance: the mean, in nats."""
    model = _model()
    return sum(model[slot_of(one, other, len(model))] for one, other in pairs) / len(pairs) / UNIT


def no_order(sample: str) -> str | None:
    """Words whose neighbours belong together no more than words far apart do."""
    last = STEPS.findall(sample)[-ORDER.steps :]
    words = [step.lower() for step in last if step[0].isalpha()]
    letters = sum(len(word) == 1 and word < _SYLLABLES for word in words)
    if len(last) < ORDER.least or len(words) < ORDER.words * len(last) or letters > len(words) / 2:
        return None
    kinds = [kind_of(step) for step in last]
    pairs = list(pairwise(kinds))
    limit = 0 if _PLACEHOLDER in words else _limit(last, words)
    if not limit or len(set(pairs)) < ORDER.different * len(pairs):
        return None
    apart = [pair for distance in _DISTANCES for pair in zip(kinds, kinds[distance:], strict=False)]
    bond, by_chance = _bond(pairs), _bond(apart)
    if bond - by_chance > limit or shape_of(sample) is not Shape.PROSE:
        return None
    return (
        f"the last {len(words)} words belong together no more than words far apart do "
        f"({bond:.2f} nats between neighbours, {by_chance:.2f} by chance): words in no order"
    )


def common_share(words: Sequence[str]) -> float:
    """The share of a language's commonest words among these, for the language that fits them best."""
    return max(sum(word in common for word in words) for common in _COMMON) / max(len(words), 1)


def _limit(steps: list[str], words: list[str]) -> float:
    """The bond below which words are in no order; 0 if the model cannot judge: lists, and classical Chinese."""
    han = [word for word in words if is_ideograph(word)]
    if len(han) > len(words) / 2 and len(set(han)) > ORDER.han_kinds * len(han):
        return 0
    if common_share(words) >= ORDER.known:
        return ORDER.bond
    rows = sum(step[0] == "\n" for step in steps) > ORDER.rows * len(steps)
    listed = sum(step in ",;、|" for step in steps) > ORDER.listed * len(steps)
    eastern = sum("\u2e80" <= word[0] < "\uac00" for word in words) > ORDER.eastern * len(words)
    return 0 if rows or listed or eastern else ORDER.foreign_bond


# Chinese. Its words are not separated, so pairs of ideographs are looked up among those of a dictionary.

_MODERN = frozenset("的是在了这這个個们們你就很把么麼吗嗎您她它")  # particles that classical Chinese does not have
_HAN: Final = re.compile("[\u4e00-\u9fff]+")
_HAN_DISTANCES = (5, 7, 11, 13)


def is_ideograph(char: str) -> bool:
    """Whether the pairs of `chinese.bin` may have it."""
    return "\u4e00" <= char <= "\u9fff"


@cache
def _pairs_within_words() -> frozenset[str]:
    """The commonest pairs of ideographs within Chinese words (`benchmarks/detector/order.py`)."""
    pairs = decompress(files(__package__).joinpath("chinese.bin").read_bytes()).decode("utf-16-le")
    return frozenset(pairs[at : at + 2] for at in range(0, len(pairs), 2))


def no_chinese_order(sample: str) -> str | None:
    """Ideographs whose neighbours make words no more often than ideographs farther apart do."""
    rows = _HAN.findall(sample[-ORDER.han_tail :]) if not sample.isascii() else []
    last = "".join(rows)
    if len(last) < ORDER.han or sum(map(_MODERN.__contains__, last)) < ORDER.modern * len(last):
        return None
    known = _pairs_within_words()
    pairs = [row[at : at + 2] for row in rows for at in range(len(row) - 1)]
    if len(set(last)) > ORDER.han_kinds * len(last):
        return None
    if len(pairs) < ORDER.han or len(set(pairs)) < ORDER.han_different * len(pairs):
        return None
    apart = [last[at] + last[at + away] in known for away in _HAN_DISTANCES for at in range(len(last) - away)]
    words, by_chance = sum(map(known.__contains__, pairs)) / len(pairs), sum(apart) / len(apart)
    if words > ORDER.han_words or words > ORDER.han_factor * by_chance:
        return None
    return f"{words:.0%} of {len(pairs)} pairs of ideographs make a word, and {by_chance:.0%} do by chance: in no order"
