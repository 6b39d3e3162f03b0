"""A text that went on after its end: the stop was missed, and the model plays the next turns or never comes to one."""

import re

from glm4_deploy.detect.context import Ending
from glm4_deploy.detect.model import Finding, Verdict, degenerate
from glm4_deploy.detect.text import Text

# Templates of the common families; GLM-4's are <|user|>, <|assistant|>, <|observation|>, <|endoftext|>, [gMASK], <sop>.
_MARK = re.compile(
    r"<\|(?:user|assistant|system|observation|endoftext|im_start|im_end|eot_id|start_header_id|end_of_text)\|>"
    r"|\[gMASK\]|<sop>|</s>|\[/?INST\]|<(?:start|end)_of_turn>"
)
_TURN = re.compile(
    r"^(?:###\s*)?(?:(User|Human|Assistant|Instruction|Response|用户|助手)\s*[:：]|(user|assistant|human|model)$)",
    re.MULTILINE,
)
# Questions and answers are a form of good texts too: only where the prompt asked for something else.
_ASKS = re.compile(r"^(Q|A|Question|Answer|问|答)\s*[:：]", re.MULTILINE)
_MAY_ASK = re.compile(r"question|faq|quiz|q\s?&\s?a|trivia|flash ?card|问|题", re.IGNORECASE)
_USER = re.compile(r"<\|(?:user|im_start\|>user)")
_DIALOGUE = re.compile(r"dialog|conversation|transcript|interview|script|chat|template|对话|剧本|访谈", re.IGNORECASE)
_BRIEF = re.compile(
    r"\b(?:one|single) word\b|\byes or no\b|\bthe (?:number|name|answer) only\b|\bonly the (?:number|name|answer)\b"
    r"|只回答|一个词|只需回答",
    re.IGNORECASE,
)
_BRIEF_ANSWER = 300  # characters


def find_runaway(text: Text, *, ending: Ending, prompt: str | None, passed_end: bool) -> Finding | None:
    """What the text went past, if it did; passed_end: the engine went past an end token."""
    tail, end, asked = text.turned[::-1], text.end, prompt or ""
    base = end - len(tail)
    marks = [] if _DIALOGUE.search(asked) or "```" in tail else list(_MARK.finditer(tail))
    few = {Ending.CUT: 1, Ending.STOPPED: 4}.get(ending, 3)
    if ending is Ending.STOPPED and len(_USER.findall(tail)) < 2:
        marks = []  # it may speak of them
    if len(marks) >= few and tail[marks[0].end() :].strip():
        return _finding(
            f"it went past its end and on through {len(marks)} marks of the chat template", base + marks[0].start()
        )
    if ending is not Ending.CUT:
        return None
    if passed_end:
        return _finding("it generated an end token of GLM-4 and went on to the token limit", None)
    turns = _turns(tail, asked)
    if turns:
        return _finding(
            f"it plays both sides of a conversation for {len(turns)} turns, to the token limit", base + turns[0].start()
        )
    if _BRIEF.search(asked) and end > _BRIEF_ANSWER:
        return _finding(f"a word was asked for, and {end} characters came until the token limit", 0)
    return None


def _turns(tail: str, asked: str) -> list[re.Match[str]]:
    """Turns of two speakers that come after an answer; none where a conversation may have been asked for."""
    if _DIALOGUE.search(asked):
        return []
    ways = [_TURN] if not asked or _MAY_ASK.search(asked) else [_TURN, _ASKS]
    for way in ways:
        turns = list(way.finditer(tail))
        speakers = {turn[0].strip("#:： ") for turn in turns}
        if len(turns) >= 3 and len(speakers) == 2 and tail[: turns[0].start()].strip():
            return turns
    return []


def _finding(why: str, start: int | None) -> Finding:
    return degenerate(Verdict.RUNAWAY_NO_STOP, why, confidence=0.85, start=start)
