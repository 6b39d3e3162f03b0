"""What people say without a log leads to the rows that an expert would name first."""

import pytest

from glm4_deploy.catalog.rows import Symptom, signatures, symptoms, vocabulary
from glm4_deploy.logs.symptom import MOST, rows_for

# What was said → the ids of which one must come first.
SAID = {
    "loops": "answers-loop",
    "it keeps repeating the same sentence": "answers-loop",
    "the answer never ends": "answers-loop",
    "only !!!! comes out": "answers-garbage",
    "gibberish": "answers-garbage",
    "ptxas error on my spark": "ptxas-too-old",
    "frozen host": "host-frozen",
    "ssh dead, have to power cycle the box": "host-frozen",
    "no answer after first request": "engine-hangs",
    "health is green but nothing happens when I send a prompt": "engine-hangs",
    "out of memory at start": "cuda-out-of-memory no-kv-room",
    "killed by the kernel": "oom-killer killed-137",
    "docker can't find the gpu": "docker-no-gpu-driver no-nvidia-runtime no-device",
    "5090 not supported": "no-kernel-image torch-without-this-gpu",
    "the container restarts every few minutes": "restarts-again",
    "connection refused": "cannot-connect",
    "few tokens per second": "slow-answers",
    "stuck while loading the weights": "start-hangs",
    "answers stop in the middle": "answers-cut-off",
    "empty replies": "answers-empty",
    "tool calls don't work": "tool-parser",
    "NCCL hangs with two GPUs": "nccl nccl-timeout",
    "pod pending": "k8s-no-gpu-node",
    "disk full": "disk-full",
    "Xid 79": "xid-bus",
    "exec format error": "wrong-architecture",
}


def ids(said: str) -> list[str]:
    return [row.id for row in rows_for(said)]


@pytest.mark.parametrize(("said", "wanted"), SAID.items())
def test_the_likeliest_failure_comes_first(said: str, wanted: str) -> None:
    found = ids(said)
    assert found[0] in wanted.split()
    assert len(found) == len(set(found)) <= MOST


@pytest.mark.parametrize(
    ("said", "same"),
    [("ptaxs error on my sparc", "ptxas error on my spark"), ("it FREEZES", "frozen"), ("looping!", "loops")],
)
def test_spelling_and_endings_do_not_matter(said: str, same: str) -> None:
    assert ids(said)[0] == ids(same)[0]


@pytest.mark.parametrize(
    "said", ["", "   ", "!", "the", "it does not work", "banana", "asdf qwer", "循环", "x" * 100_000]
)
def test_words_that_say_nothing_find_nothing(said: str) -> None:
    assert rows_for(said) == ()


@pytest.mark.parametrize(
    "said",
    ["how do I bake a chocolate cake", "the bread does not rise", "my garden needs water", "the soup boils over",
     "the pan is stuck to the stove", "pizza too cold", "the printer is out of paper", "the fridge is full",
     "the washing machine stopped in the middle", "the milk went bad", "my key is stuck in the door",
     "the phone freezes when it is cold outside", "the train is always late", "my memory is getting worse with age",
     "my brain is out of memory", "the wifi at home is slow", "my printer does not respond", "the toilet is blocked",
     "the movie repeats the same scene", "the game crashes at the start", "the camera cannot find the memory card",
     "photoshop uses all of my memory", "the music is cut off at the end"],
)  # fmt: skip
def test_words_about_something_else_find_nothing(said: str) -> None:
    assert rows_for(said) == ()


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("the reply repeats each joke", "answers-loop"),
        ("low throughput on wednesdays", "slow-answers"),
        ("sparc freezes hard and needs a power cycle on wednesdays", "host-frozen"),
        ("klingon characters in the middle", "answers-garbage"),
    ],
)
def test_one_word_of_the_field_suffices_beside_words_that_no_row_knows(said: str, wanted: str) -> None:
    assert wanted in ids(said)


@pytest.mark.parametrize("row", symptoms(), ids=lambda row: row.id)
def test_each_phrase_leads_to_the_rows_of_its_symptom(row: Symptom) -> None:
    for phrase in row.says:
        assert set(ids(phrase)) & {row.id, *row.see}, phrase


def test_the_table_names_rows_that_exist_and_says_all_or_nothing() -> None:
    known = {row.id for row in signatures()}
    own = [row for row in symptoms() if row.cause]
    assert len({row.id for row in symptoms()}) == len(symptoms())
    assert not known & {row.id for row in own}
    assert not {row for symptom in symptoms() for row in symptom.see} - known
    for row in symptoms():
        assert len({bool(text) for text in (row.severity, row.cause, row.fix, row.source)}) == 1, row.id


def test_each_word_has_one_meaning() -> None:
    words = [word for same in vocabulary().same for word in same]
    assert sorted(words) == sorted(set(words))


def test_a_row_shows_the_line_to_look_for_and_one_without_a_line_shows_none() -> None:
    rows = {row.id: row for said in ("ptxas", "loops") for row in rows_for(said)}
    assert rows["ptxas-too-old"].line.startswith("ptxas fatal")
    assert rows["answers-loop"].line == ""
