"""Text of strangers: a model's answer, a log line, a secret somewhere in it."""

from hypothesis import given
from hypothesis import strategies as st

from fuzz.harness import attempt, fuzzed
from glm4_deploy.detect import scan
from glm4_deploy.plan.sizing import parse_load
from glm4_deploy.text import clean_text, one_line, redact

ODD = st.text(st.characters(), max_size=60) | st.sampled_from(
    ["\x1b]0;", "\x1b[", "\u202e", "\ufffd", "\0", "\r", "```"]
)
TEXT = st.builds(lambda parts, times: "".join(parts) * times, st.lists(ODD, max_size=4), st.integers(1, 80))
LOGPROBS = st.none() | st.lists(st.floats() | st.none(), max_size=30)


@fuzzed
@given(TEXT, TEXT, LOGPROBS, st.none() | st.sampled_from(["stop", "length", "", "tool_calls"]))
def test_any_answer_is_judged(text: str, prompt: str, logprobs: list[float] | None, finish: str | None) -> None:
    finding = attempt(scan, text, prompt=prompt, logprobs=logprobs, finish_reason=finish)
    assert isinstance(finding.degenerate, bool)


@fuzzed
@given(TEXT)
def test_shown_text_is_one_safe_line(text: str) -> None:
    for shown in (attempt(one_line, text, 100), attempt(clean_text, text)):
        assert "\x1b" not in shown
        assert "\u202e" not in shown


SECRET = st.sampled_from([
    "hf_AbCdEfGhIjKlMnOpQrSt", "glm4-" + "Ab-_9" * 8 + "xyz", "nvapi-" + "aB3_" * 16, "AKIA" + "ABCD2345" * 2,
    "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl", "npm_" + "aB3d" * 9,
])  # fmt: skip
AROUND = st.sampled_from([" {} ", "'{}'", "({})", "\x1b[36m{}\x1b[0m", "\x1b[1;31m{} ", "={},"])


@fuzzed
@given(st.text(max_size=40), SECRET, AROUND, st.text(max_size=40))
def test_a_token_is_masked_whatever_surrounds_it(before: str, secret: str, around: str, after: str) -> None:
    assert secret not in attempt(redact, before + around.format(secret) + after)


WORDS = st.sampled_from(["64", "users", "8k", "context", ",", "tokens", "m", "9" * 190, "9" * 5000, "1e400", "-1", "."])


@fuzzed
@given(st.lists(WORDS, max_size=8))
def test_any_load_is_read_or_refused(words: list[str]) -> None:
    load = attempt(parse_load, " ".join(words))
    assert load is None or (load.requests or 0) >= 0
