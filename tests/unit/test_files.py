"""What a user's YAML may not do, and what it may."""

import pytest

from glm4_deploy.errors import UsageError
from glm4_deploy.files import parse_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "line 1 is not valid YAML"),
        ("a: 1\nb: {{\n", "is not valid YAML"),
        ("port: !!python/object/apply:os.system ['true']", "line 1 is not valid YAML"),
        ("port: " + "9" * 5000, "is not valid YAML"),
        ("port: " + "[" * 5000 + "]" * 5000, "is not valid YAML"),
        ("a: &a [*a]", "is not valid YAML"),
        (BOMB, "values through its aliases"),
        ("a: " + "x" * 2_000_001, "too large"),
    ],
)
def test_a_hostile_file_is_one_error(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "glm4.yaml")
    assert caught.value.message.startswith("glm4.yaml")
    assert said in caught.value.message
    assert caught.value.hint


def test_aliases_that_only_repeat_are_welcome() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "f") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }
