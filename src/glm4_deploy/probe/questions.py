"""A user's own questions (YAML), and how their answers are judged.

    questions:
      - name: capital
        prompt: What is the capital of France? Answer in one word.
        must: {contains: Paris, match: '^\\w+\\W?$'}
        must_not: {contains: [Berlin, London]}
        max_seconds: 10

Patterns and schemas are the user's, answers are the model's: together they can keep Python's `re` busy forever. Both
are applied in a separate process with a time limit (`matching.py`).
"""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from glm4_deploy.errors import UsageError
from glm4_deploy.files import parse_yaml, read_text
from glm4_deploy.probe.answers import ChatAnswer
from glm4_deploy.probe.probe import Probe
from glm4_deploy.result import Result, fail, ok, unknown
from glm4_deploy.run import RunFailure, run_program
from glm4_deploy.text import did_you_mean, one_line, quote

MATCH_SECONDS = 15.0  # for all patterns and the schema of one answer, with the start of a Python
MOST = 200  # questions in a file


def _listed(value: object) -> object:
    """One text counts as a list of one."""
    return (value,) if isinstance(value, str) else value


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text[:60]!r} is not a valid regular expression: {error}") from None
    return text


def _schema(value: Any) -> Any:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        raise ValueError(f"not a valid JSON Schema: {error.message[:120]}") from None
    return value


Text = Annotated[str, Field(min_length=1, max_length=2000)]
Texts = Annotated[
    Annotated[tuple[Text, ...], Field(min_length=1, max_length=50)],
    BeforeValidator(_listed, json_schema_input_type=Text | tuple[Text, ...]),
]
Pattern = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_pattern)]
Patterns = Annotated[
    Annotated[tuple[Pattern, ...], Field(min_length=1, max_length=20)],
    BeforeValidator(_listed, json_schema_input_type=Pattern | tuple[Pattern, ...]),
]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MustNot(_Row):
    """What no answer may have."""

    contains: Texts | None = Field(default=None, description="texts that may not be in it; case does not count")
    match: Patterns | None = Field(default=None, description="regular expressions (Python's) that may not match")


class Must(MustNot):
    """What every answer must have."""

    contains: Texts | None = Field(default=None, description="texts that must all be in it; case does not count")
    match: Patterns | None = Field(default=None, description="regular expressions (Python's) that must all match")
    choice: Texts | None = Field(
        default=None, description="the answer is one of these; case, spaces and a final . do not count"
    )
    json_schema: Annotated[dict[str, Any], BeforeValidator(_schema)] | None = Field(
        default=None, description="the answer is JSON that obeys this JSON Schema (2020-12)"
    )


class Message(_Row):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1, max_length=200_000)]


class UserQuestion(_Row):
    """One question. It becomes the check `question-NAME`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="lower case, digits and -")]
    prompt: Annotated[str, Field(min_length=1, max_length=200_000)] | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=50)] | None = Field(
        default=None, description="a whole chat, in place of `prompt`"
    )
    must: Must = Must()
    must_not: MustNot = MustNot()
    max_seconds: float | None = Field(default=None, gt=0, le=3600, description="until the answer is complete")
    max_tokens: int = Field(default=512, ge=1, le=32_768)
    temperature: float = Field(default=0.0, ge=0, le=2)
    times: int = Field(default=1, ge=1, le=20, description="how often it is asked; every answer must be right")

    @model_validator(mode="after")
    def _complete(self) -> "UserQuestion":
        if (self.prompt is None) is (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.must == Must() and self.must_not == MustNot() and self.max_seconds is None:
            raise ValueError("nothing is expected of the answer: give must, must_not or max_seconds")
        return self

    @property
    def chat(self) -> tuple[dict[str, str], ...]:
        if self.messages is not None:
            return tuple({"role": one.role, "content": one.content} for one in self.messages)
        return ({"role": "user", "content": self.prompt or ""},)

    @property
    def asked(self) -> str:
        """The chat as one text."""
        return self.prompt or "\n".join(f"{one['role']}: {one['content']}" for one in self.chat)

    @property
    def expected(self) -> str:
        """In a short phrase."""
        must, never = self.must, self.must_not
        parts = [" and ".join(map(repr, must.contains))] if must.contains else []
        parts += [f"/{'/ and /'.join(must.match)}/"] if must.match else []
        parts += [f"one of {', '.join(must.choice)}"] if must.choice else []
        parts += ["JSON that obeys the schema"] if must.json_schema is not None else []
        parts += [f"no {' or '.join(map(repr, never.contains))}"] if never.contains else []
        parts += [f"nothing like /{'/ or /'.join(never.match)}/"] if never.match else []
        parts += [f"within {self.max_seconds:g} s"] if self.max_seconds is not None else []
        return one_line("; ".join(parts), 200)


class QuestionFile(_Row):
    """A file of questions."""

    questions: Annotated[tuple[UserQuestion, ...], Field(min_length=1, max_length=MOST)]

    @model_validator(mode="after")
    def _unique(self) -> "QuestionFile":
        names = [one.name for one in self.questions]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two questions are named {twice!r}")
        return self


def read_questions(path: Path) -> tuple[UserQuestion, ...]:
    """The questions of a file in YAML or JSON.

    Raises:
        UsageError: unreadable, not YAML, an unknown key, a wrong value; with the line.
    """
    text = read_text(path)
    content = parse_yaml(text, f"questions {path}")
    if not isinstance(content, dict):
        raise UsageError(f"questions {path} line 1: no list `questions:`", hint="see docs/how-to/questions.md")
    try:
        return QuestionFile.model_validate(content).questions
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = tuple(part for part in first["loc"] if isinstance(part, int) or not str(part).startswith("function"))
        problem = str(first["msg"]).removeprefix("Value error, ")
        known = (*UserQuestion.model_fields, *Must.model_fields, "questions")
        near = did_you_mean(str(where[-1]), known) if where and first["type"] == "extra_forbidden" else ""
        path_of = ".".join(map(str, where))
        place = f"{path} line {_line_of(text, where)}{f': {path_of}' if path_of else ''}"
        raise UsageError(f"questions {place}: {problem}", hint=near or "see docs/how-to/questions.md") from None


def _line_of(text: str, where: tuple[str | int, ...]) -> int:
    """The line, from 1, of the innermost part of a location that the file has."""
    import yaml

    node = yaml.compose(text, Loader=yaml.SafeLoader)  # `parse_yaml` has checked its size
    line = node.start_mark.line if node is not None else 0
    for part in where:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


# One question as a check.

WRONG = "if the answer is right, correct the question; else compare with an engine that you trust, and with `smoke`"
SLOW = "simplify the pattern: nested repetitions such as (a+)+ take forever"


async def ask_question(question: UserQuestion, probe: Probe) -> Result:
    """Ask it as often as it says, and judge every answer. A loop or garbage is wrong whatever was expected."""
    wrong: list[str] = []
    evidence: list[tuple[str, str]] = []
    for number in range(1, question.times + 1):
        answer = await probe.ask(question.chat, question.max_tokens, extras=True, temperature=question.temperature)
        finding = probe.keep(question.asked, answer).finding
        faults = [finding.why] if finding is not None and finding.degenerate else []
        matched = await asyncio.to_thread(_matched, question, answer.text)
        if matched is None:
            seen = quote(answer.text)
            return unknown(f"a pattern took over {MATCH_SECONDS:g} s on {seen}", SLOW, expected=question.expected)
        faults += [*matched, *_faults(question, answer)]
        if faults:
            wrong.append("; ".join(faults))
            evidence += [(f"answer {number}", answer.text)]
    if wrong:
        seen = f"{len(wrong)} of {question.times} wrong: {wrong[0]}"
        return fail(seen, question.expected, ("prompt", question.asked), *evidence, remedy=WRONG)
    return ok(f"{question.times} of {question.times} right: {quote(answer.text)}", question.expected)


def _faults(question: UserQuestion, answer: ChatAnswer) -> list[str]:
    """What is wrong, apart from patterns and schema."""
    text, folded = answer.text, answer.text.casefold()
    faults = [f"no {want!r} in {quote(text)}" for want in question.must.contains or () if want.casefold() not in folded]
    faults += [f"{bad!r} in {quote(text)}" for bad in question.must_not.contains or () if bad.casefold() in folded]
    if question.must.choice and _plain(text) not in map(_plain, question.must.choice):
        faults.append(f"{quote(text)} is none of {', '.join(question.must.choice)}")
    if question.max_seconds is not None and answer.timing.total > question.max_seconds:
        faults.append(f"{answer.timing.total:.1f} s")
    return faults


def _plain(text: str) -> str:
    return text.strip().strip(".!\"'。 ").casefold()


def _matched(question: UserQuestion, text: str) -> list[str] | None:
    """What is wrong with patterns and schema; None if that could not be found out in time."""
    wanted, barred = question.must.match or (), question.must_not.match or ()
    if not wanted and not barred and question.must.json_schema is None:
        return []
    job = {"text": text, "patterns": [*wanted, *barred], "schema": question.must.json_schema}
    command = (sys.executable, "-P", "-m", "glm4_deploy.probe.matching")
    done = run_program(*command, timeout=MATCH_SECONDS, stdin=json.dumps(job))
    if done.failure is RunFailure.TIMEOUT:
        return None
    if not done.ok:
        return [f"it could not be matched: {done.last_line[:120]}"]
    found = json.loads(done.stdout)
    hits = found["matches"]
    faults = [f"nothing like /{want}/ in {quote(text)}" for want, hit in zip(wanted, hits, strict=False) if not hit]
    faults += [f"/{bad}/ in {quote(text)}" for bad, hit in zip(barred, hits[len(wanted) :], strict=False) if hit]
    return faults + ([str(found["fault"])] if found["fault"] else [])
