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
_TURN = re.compile(r"^(?:###\s*)?(User|Human|Assistant|用户|助手)\s*[:：]", re.MULTILINE)
_DIALOGUE = re.compile(r"dialog|conversation|transcript|interview|script|chat|template|对话|剧本|访谈", re.IGNORECASE)
_BRIEF = re.compile(
    r"\b(?:one|single) word\b|\byes or no\b|\bthe (?:number|name|answer) only\b|\bonly the (?:number|name|answer)\b"
    r"|只回答|一个词|只需回答",
    re.IGNORECASE,
)
_BRIEF_ANSWER = 300  # characters


def find_runaway(text: Text, *, ending: Ending, prompt: str | None, passed_end: bool) -> Finding | None:
    """What the text went past, if it did; passed_end: the engine went past an end token."""
    if ending is Ending.STOPPED:
        return None
    tail, end, asked = text.turned[::-1], text.end, prompt or ""
    base = end - len(tail)
    marks = [] if _DIALOGUE.search(asked) or "```" in tail else list(_MARK.finditer(tail))
    if len(marks) >= (1 if ending is Ending.CUT else 3) and tail[marks[0].end() :].strip():
        return _finding(
            f"it went past its end and on through {len(marks)} marks of the chat template", base + marks[0].start()
        )
    if ending is not Ending.CUT:
        return None
    if passed_end:
        return _finding("it generated an end token of GLM-4 and went on to the token limit", None)
    turns = [] if _DIALOGUE.search(asked) else list(_TURN.finditer(tail))
    if len(turns) >= 3 and len({turn[1] for turn in turns}) == 2:
        return _finding(
            f"it plays both sides of a conversation for {len(turns)} turns, to the token limit", base + turns[0].start()
        )
    if _BRIEF.search(asked) and end > _BRIEF_ANSWER:
        return _finding(f"a word was asked for, and {end} characters came until the token limit", 0)
    return None


def _finding(why: str, start: int | None) -> Finding:
    return degenerate(Verdict.RUNAWAY_NO_STOP, why, confidence=0.85, start=start)
