"""The tool parser for GLM-4: what it finds in an output does not depend on how the output arrives."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tool_calls import NAMES, Output, corpus, plugin

PARSER = plugin()
Kind = PARSER.Kind
CORPUS = corpus()
SHORT = [output for output in CORPUS if len(output.text) < 400]
# What outputs are made of: their pieces, in any order.
PIECES = (
    *NAMES, *PARSER.SPECIAL_TOKENS, "\n", " ", "{", "}", '"', "\\", "[", "]", ":", ",", '{"a": 1}', "{}", "other", "x",
    "<", "<|", "[gM", "é", "\n{", "get_", '{"', "NaN", "\x00", "\r\n", "\n" * 130,
)  # fmt: skip


def parsed(pieces: Iterable[str]) -> tuple[tuple[tuple[str, str], ...], str]:
    """(calls, content) as a client puts the deltas together: a call whose arguments are not JSON is none."""
    parser = PARSER.Glm4OutputParser(NAMES)
    events = [event for piece in pieces for event in parser.feed(piece)]
    calls, content, name, arguments = [], "", "", ""
    for event in [*events, *parser.finish()]:
        if event.kind is Kind.TEXT:
            content += event.text
        elif event.kind is Kind.NAME:
            name, arguments = event.text, ""
        elif event.kind is Kind.ARGUMENTS:
            arguments += event.text
        else:
            assert event.text == arguments, "the pieces are the whole"
            if event.kind is Kind.CALL:
                calls.append((name, arguments))
            else:
                content += f"{name}\n{arguments}"
    return tuple(calls), content


def test_the_corpus_has_300_outputs_of_every_kind() -> None:
    texts = {output.text for output in CORPUS}
    assert len(texts) >= 300
    kinds = {output.kind for output in CORPUS}
    assert {"one call", "several calls", "cut", "malformed", "prose, call", "token in text", "unknown name"} <= kinds


@pytest.mark.parametrize("output", CORPUS, ids=lambda output: output.kind)
def test_an_output_means(output: Output) -> None:
    assert parsed([output.text]) == (output.calls, output.content)
    for _, arguments in output.calls:
        assert isinstance(json.loads(arguments), dict)


def test_every_split_of_every_output_means_the_same() -> None:
    for output in SHORT:
        expected = (output.calls, output.content)
        assert parsed(output.text) == expected, f"{output.kind}, letter by letter: {output.text!r}"
        for at in range(1, len(output.text)):
            pieces = (output.text[:at], output.text[at:])
            assert parsed(pieces) == expected, f"{output.kind}: {pieces!r}"


def test_long_outputs_letter_by_letter_mean_the_same() -> None:
    for output in CORPUS:
        if output not in SHORT:
            step = 1 if len(output.text) < 5000 else 977
            pieces = [output.text[at : at + step] for at in range(0, len(output.text), step)]
            assert parsed(pieces) == (output.calls, output.content), output.kind


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.data())
def test_any_output_split_anywhere_means_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parsed([text])
    assert parsed(pieces) == whole
    assert parsed(text) == whole
    for _, arguments in whole[0]:
        assert isinstance(json.loads(arguments), dict)


def test_the_name_comes_first_and_arguments_as_they_are_written() -> None:
    parser = PARSER.Glm4OutputParser(NAMES)
    seen = [
        [(event.kind, event.text) for event in parser.feed(piece)] for piece in ("get_weather\n", '{"c', 'ity"', "")
    ]
    assert seen == [
        [],
        [(Kind.NAME, "get_weather"), (Kind.ARGUMENTS, '{"c')],
        [(Kind.ARGUMENTS, 'ity"')],
        [],
    ]


def test_text_is_held_back_only_while_it_may_be_a_call() -> None:
    parser = PARSER.Glm4OutputParser(NAMES)
    shown = ["".join(event.text for event in parser.feed(piece)) for piece in ("\n", "He", "llo", "\n", "get", " up")]
    assert shown == ["", "\nHe", "llo", "", "", "\nget up"]
