"""Text of strangers: a model's answer, a log line, a secret somewhere in it."""

from hypothesis import given
from hypothesis import strategies as st

from fuzz.harness import attempt, fuzzed
from glm4_deploy.detect import scan
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


@fuzzed
@given(st.text(max_size=40), st.text(max_size=40))
def test_a_token_is_masked_whatever_surrounds_it(before: str, after: str) -> None:
    secret = "hf_AbCdEfGhIjKlMnOpQrSt"
    assert secret not in attempt(redact, f"{before} {secret} {after}")
