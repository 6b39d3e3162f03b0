"""Garbage other than loops: a poor vocabulary, mixed scripts, missed stops, NaN or salad in the engine's numbers."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, degenerate
from glm4_deploy.detect.prompt import Ending, PromptRequest, Shape, fold, is_verse, shape_of
from glm4_deploy.detect.tail import Tail
from glm4_deploy.detect.thresholds import (
    CODES,
    DISORDER,
    END_IDS,
    ENDED_KINDS,
    FEW_TOKENS,
    GLUED_GRAMS,
    GLUED_LENGTH,
    LETTERS,
    LISTED,
    NULL_LOGPROBS,
    POOR_KINDS,
    POOR_PROSE,
    POOR_SYMBOLS,
    POOR_TOKENS,
    POOR_WORDS,
    SALAD_MEAN,
    SALAD_WINDOW,
    SALAD_WORST,
    ZERO_IDS,
)
from glm4_deploy.detect.tokens import TokenWindow, value_of

# A poor vocabulary: a few words in random order.

_VALUES = frozenset(
    "true false null none nan yes no on off pass fail win loss head heads tail tails".split()  # noqa: SIM905
)


def find_poor_vocabulary(
    tokens: TokenWindow, tail: Tail, *, ending: Ending, request: PromptRequest
) -> LoopFinding | None:
    """The last POOR_TOKENS tokens are a few words in random order, and those words are not values of a data set."""
    last = tokens.kept[-POOR_TOKENS:]
    if sum("\u2e80" <= token < "\uac00" for token in last[::8]) > len(last) / 16:
        last = tokens.kept[-2 * POOR_TOKENS :]  # an ideograph is half a word
    kinds = set(last)
    most = POOR_KINDS if ending is Ending.RUNNING else ENDED_KINDS
    ended = ending is not Ending.RUNNING
    glued = ended and sum(map(len, last)) > GLUED_LENGTH * len(last)  # words written together: fewer tokens will do
    if len(last) < POOR_TOKENS / (3 if glued else 1) or (len(kinds) > most and not glued):
        return None
    prose = sum(map(str.isalpha, last)) >= POOR_PROSE * len(last) or last.count("'") >= len(last) / 3
    if ending is not Ending.CUT and not prose:
        return None
    if 0 < sum(map(str.isalpha, kinds)) <= POOR_WORDS:
        last = tokens.kept[-FEW_TOKENS:]  # a refrain of syllables lasts longer
        if len(last) < FEW_TOKENS or len(set(last)) > 4 * POOR_WORDS:
            return None
    words = [token for token in last if token.isalpha()]
    codes = sum(word[0].isupper() for word in words) >= CODES * len(words)  # tags of words, chords, amino acids
    listed = max(map(last.count, ",;|/-")) >= LISTED * len(last)  # directions, beats of a drum
    if ending is Ending.STOPPED and (codes or listed):
        return None
    disordered = _disordered(last, ended=ended)
    symbols = ending is Ending.CUT and _few_symbols(last)
    if not (disordered or glued or symbols):
        return None
    start = tokens.start(len(tokens.kept) - len(last))
    sample = tail.between(start, tail.end)
    disordered = disordered and not is_verse(sample) and shape_of(sample) is Shape.PROSE
    counted = request.limit is not None and (request.count or all(fold(kind) in request.words for kind in kinds))
    if not symbols and (counted or not (disordered or (glued and _few_grams(last)))):
        return None
    common = [kind for kind, _ in Counter(last).most_common()]
    shown = ", ".join(kind for kind in common if kind.strip())[:100]
    why = f"the last {len(last)} words and marks are only {len(common)} different ones in random order: {shown}"
    return degenerate(LoopVerdict.NEAR_DUPLICATE, why, confidence=0.8, start=start, unit=sample[:60])


def _disordered(tokens: Sequence[str], *, ended: bool) -> bool:
    words = [token.lower() for token in tokens if token.isalpha() and (len(token) == 1 or value_of(token) is None)]
    kinds = set(words)
    if not words or kinds <= _VALUES or not _is_prose(tokens):
        return False
    if len(kinds) <= POOR_WORDS:
        return True
    words = parts_of(words) if ended else words  # it is costly
    kinds = set(words)
    pairs = len(set(pairwise(words))) / len(kinds)
    return any(len(kinds) <= most and pairs >= least for most, least in DISORDER)


def parts_of(words: Sequence[str]) -> list[str]:
    """The words, with those that are others written together taken apart."""
    parts: dict[str, list[str]] = {}
    for kind in sorted(set(words), key=len):
        parts[kind] = _split(kind, parts) or [kind]
    return [part for word in words for part in parts[word]]


def _split(word: str, known: Mapping[str, object]) -> list[str]:
    """The known words that a word is written together from, fewest first; empty if it is not."""
    best: list[list[str] | None] = [[]] + [None] * len(word)
    for end in range(2, len(word) + 1):
        for begin in range(end - 1):
            before = best[begin]
            if before is not None and word[begin:end] in known and best[end] is None:
                best[end] = [*before, word[begin:end]]
    return best[-1] or []


def _few_grams(tokens: Sequence[str]) -> bool:
    letters = "".join(filter(str.isalpha, tokens))[-1024:]
    if len(letters) < 1024 or sum(map(str.islower, letters)) < 0.9 * 1024 or len(set(letters)) < LETTERS:
        return False
    return len({letters[at : at + 4] for at in range(1021)}) < GLUED_GRAMS * 1024


def _few_symbols(tokens: Sequence[str]) -> bool:
    """Three tokens, one of them longer than a character, as boards and bit strings do not have."""
    kinds = set(tokens)
    return 1 < len(kinds) <= POOR_SYMBOLS and any(len(kind) > 1 for kind in kinds) and not kinds <= _VALUES


def _is_prose(tokens: Sequence[str]) -> bool:
    """Not just letters, as in a sequence of results, grades or bases; `'s't's` is broken prose."""
    words = [token for token in tokens if token.isalpha()]
    spoken = sum(len(word) > 1 or word >= "\u0900" for word in words)
    return spoken >= POOR_PROSE * len(tokens) or tokens.count("'") >= len(tokens) / 3


# Missed stops: the text went on after its end, through the next turns or up to the token limit.

# Templates of the common families; GLM-4's are <|user|>, <|assistant|>, <|observation|>, <|endoftext|>, [gMASK], <sop>.
_MARK = re.compile(
    r"<\|(?:user|assistant|system|observation|endoftext|im_start|im_end|eot_id|start_header_id|end_of_text)\|>"
    r"|\[gMASK\]|<sop>|</s>|\[/?INST\]|<(?:start|end)_of_turn>|(?<![`\"'“(])###\s?(?:Human|Assistant)\s*:"
)
_TURN = re.compile(
    r"^(?:###\s*)?(?:(User|Human|Assistant|Instruction|Response|用户|助手)\s*[:：]|(user|assistant|human|model)$)",
    re.MULTILINE,
)
# Good texts have questions and answers too: these count only if the prompt asked for something else.
_ASKS = re.compile(r"^(Q|A|Question|Answer|问|答)\s*[:：]", re.MULTILINE)
_MAY_ASK = re.compile(r"question|faq|quiz|q\s?&\s?a|trivia|flash ?card|问|题", re.IGNORECASE)
_USER = re.compile(r"<\|(?:user|im_start\|>user)|###\s?Human\s*:")
_DIALOGUE = re.compile(
    r"dialog|conversation|transcript|interview|script|chat|template|prompt format|vicuna|alpaca|fine-?tun"
    r"|stop (?:string|token)|对话|剧本|访谈",
    re.IGNORECASE,
)
_BRIEF = re.compile(
    r"\b(?:one|single) word\b|\byes or no\b|\bthe (?:number|name|answer) only\b|\bonly the (?:number|name|answer)\b"
    r"|只回答|一个词|只需回答",
    re.IGNORECASE,
)
_BRIEF_ANSWER = 300  # characters


def find_runaway(tail: Tail, *, ending: Ending, prompt: str | None, passed_end: bool) -> LoopFinding | None:
    """The end that the text went past.

    Args:
        passed_end: the engine generated an end token and then another token.
    """
    text, asked = tail.reversed[::-1], prompt or ""
    if marks := _template_marks(text, asked, ending):
        why = f"the answer ran past its end, through {len(marks)} marks of a chat template"
        return _runaway(why, tail.begin + marks[0].start())
    if ending is not Ending.CUT:
        return None
    if len(examples := _examples(text, asked)) >= 2:
        why = f"the answer went on with {len(examples)} more examples like those of the prompt, until the token limit"
        return _runaway(why, tail.begin + examples[0].start())
    if len(roles := list(_ROLE.finditer(text))) >= 3:
        why = f"the answer went on through {len(roles)} turns of the assistant, until the token limit"
        return _runaway(why, tail.begin + roles[0].start())
    if passed_end:
        return _runaway("the engine generated an end token of GLM-4 and continued to the token limit", None)
    if turns := _turns(text, asked):
        why = f"the answer plays both sides of a conversation for {len(turns)} turns, until the token limit"
        return _runaway(why, tail.begin + turns[0].start())
    if _BRIEF.search(asked) and tail.end > _BRIEF_ANSWER:
        return _runaway(f"the prompt asked for a brief answer and got {tail.end} characters, until the token limit", 0)
    return None


_SHELL = re.compile(r"(?:\s|<\|\w{1,30}\|>|</?(?:s|think|sop|eop|answer|bos|eos|pad)>|\[gMASK\]|```\w{0,12})+")


def is_shell(text: str) -> bool:
    """Nothing but marks of a template or of Markdown."""
    return _SHELL.fullmatch(text) is not None


def _template_marks(text: str, asked: str, ending: Ending) -> list[re.Match[str]]:
    """Marks of a chat template that the text went on through; empty if it may be writing about them."""
    if _DIALOGUE.search(asked) or "```" in text:
        return []
    if ending is Ending.STOPPED and len(_USER.findall(text)) < 2:
        return []
    marks = list(_MARK.finditer(text))
    enough = {Ending.CUT: 1, Ending.STOPPED: 4}.get(ending, 3)
    return marks if len(marks) >= enough and text[marks[0].end() :].strip() else []


def _turns(text: str, asked: str) -> list[re.Match[str]]:
    """Turns of two speakers that follow an answer; empty if the prompt may have asked for a conversation."""
    if _DIALOGUE.search(asked):
        return []
    patterns = [_TURN] if not asked or _MAY_ASK.search(asked) else [_TURN, _ASKS]
    for pattern in patterns:
        turns = list(pattern.finditer(text))
        speakers = {turn[0].strip("#:： ") for turn in turns}
        if len(turns) >= 3 and len(speakers) == 2 and text[: turns[0].start()].strip():
            return turns
    return []


_ROLE = re.compile(r"^assistant\n\n(?=\S)", re.MULTILINE)  # Llama 3's mark of a turn, without its tokens
_LABEL = re.compile(r"^[ \t]*([^\W\d_][\w ]{0,23})[:：](.*)", re.MULTILINE)
_MAY_GO_ON = re.compile(r"\bmore\b|\banother\b|\bcontinue\b|\bgenerate\b|\bfill\b|续写|继续|再|更多", re.IGNORECASE)


def _examples(text: str, asked: str) -> list[re.Match[str]]:
    """Further examples, where the prompt showed two or more (`Input: … Output: …`) and the answer should end one."""
    labels = list(_LABEL.finditer(asked))
    names = [match[1] for match in labels]
    if len(names) < 6 or names.count(names[0]) < 3 or names[-1] == names[0] or _MAY_GO_ON.search(asked):
        return []
    given = {match[2].strip() for match in labels}
    complete = all(match[2].strip() for match in labels[:-1]) and not asked[labels[-1].end(1) + 1 :].strip()
    if not complete or _NUMBER_OF.search(asked):
        return []  # a form
    return [match for match in _LABEL.finditer(text) if match[1] == names[0] and match[2].strip() not in given]


_NUMBER_OF = re.compile(r"\b\d+ (?:\w+ )?(?:examples|items|questions|pairs|cards|entries)\b", re.IGNORECASE)


def _runaway(why: str, start: int | None) -> LoopFinding:
    return degenerate(LoopVerdict.RUNAWAY_NO_STOP, why, confidence=0.85, start=start)


class EngineNumbers:
    """Follows token ids and logprobs: NaN (token 0, null logprobs) and salad (logprobs far below any sane text).

    Attributes:
        passed_end: the engine generated an end token and then another token.
    """

    def __init__(self) -> None:
        self._zeros = self._nulls = self._ids = self._logprobs = 0
        self._all_null = self._all_zero = True
        self._sum = 0.0
        self._counted = 0
        self._window: list[float] = []
        self._worst = 0.0
        self._ended = False
        self.passed_end = False

    def feed(self, token_ids: Iterable[int], logprobs: Iterable[float | None]) -> LoopFinding | None:
        """Take the numbers of the next tokens; a finding as soon as they show NaN."""
        for token in token_ids:
            self._ids += 1
            self.passed_end |= self._ended
            self._ended = token in END_IDS
            self._zeros = self._zeros + 1 if token == 0 else 0
            self._all_zero &= token == 0
            if self._zeros >= ZERO_IDS:
                return _nan(f"token id 0 repeats {self._zeros} times in a row: the logits are NaN")
        for value in logprobs:
            self._logprobs += 1
            if value is None or math.isnan(value):
                self._nulls += 1
                if self._nulls >= NULL_LOGPROBS:
                    return _nan(f"{self._nulls} logprobs in a row are null: the logits are NaN")
                continue
            self._nulls = 0
            self._all_null = False
            self._take(max(value, -100.0))
        return None

    def _take(self, value: float) -> None:
        self._sum += value
        self._counted += 1
        self._window.append(value)
        if len(self._window) == SALAD_WINDOW:
            self._worst = min(self._worst, sum(self._window) / SALAD_WINDOW)
            self._window = self._window[SALAD_WINDOW // 2 :]

    def close(self) -> LoopFinding | None:
        """NaN throughout, in a text too short for `feed` to be sure."""
        if self._logprobs and self._all_null:
            return _nan("every logprob is null: the logits are NaN")
        if self._ids >= 4 and self._all_zero:
            return _nan("every token id is 0: the logits are NaN")
        return None

    def salad(self) -> LoopFinding | None:
        """Ask last: a random loop has low logprobs too, and is better named a loop."""
        if self._counted < 16:
            return None
        mean = self._sum / self._counted
        if mean > SALAD_MEAN and self._worst > SALAD_WORST:
            return None
        worst, limit = (mean, SALAD_MEAN) if mean <= SALAD_MEAN else (self._worst, SALAD_WORST)
        why = f"mean logprob {worst:.1f} nats per token (sane text stays above {limit:.1f}): word salad"
        return degenerate(LoopVerdict.SALAD, why, confidence=round(min(0.99, 0.7 + 0.1 * (limit - worst)), 2), start=0)


def _nan(why: str) -> LoopFinding:
    return degenerate(LoopVerdict.NAN_COLLAPSE, why, confidence=0.99, start=0, period=1)
