"""Shown text contains no control character, stored text no secret; everything else stays readable."""

import ast
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glm4_deploy
from glm4_deploy.errors import UsageError
from glm4_deploy.report.wire import dumps
from glm4_deploy.settings import Settings
from glm4_deploy.text import (
    MASK,
    cap,
    clean_text,
    did_you_mean,
    escape_json,
    first_difference,
    one_line,
    quote,
    redact,
    seconds_of,
    secret_name,
    secrets_in,
    strip_controls,
    without_secrets,
)

PACKAGE = Path(glm4_deploy.__file__).parent

SECRET = "s3cr3tValue99"


@pytest.mark.parametrize(
    "line",
    [
        "non-default args: {'model': 'x', 'api_key': ['s3cr3tValue99', 's3cr3tValue99']}",
        "api_key: s3cr3tValue99",
        "--api-key s3cr3tValue99 --port 80",
        "--api-key=s3cr3tValue99",
        "VLLM_API_KEY=s3cr3tValue99",
        '      VLLM_API_KEY: "s3cr3tValue99"',
        "      - HF_TOKEN=s3cr3tValue99",
        '{"hf_token": "s3cr3tValue99"}',
        "AWS_SECRET_ACCESS_KEY=s3cr3tValue99",
        "password = s3cr3tValue99",
        "Authorization: Bearer s3cr3tValue99",
        "Authorization: Token s3cr3tValue99",
        "{'Authorization': 's3cr3tValue99', 'Accept': '*/*'}",
        "'api_key': ['s3cr3tValue99', 's3cr3tValue99",
        "'api_key': ['s3cr3tValue99', ...",
        '{"api_key": "s3cr3tValue99',
        "https://user:s3cr3tValue99@registry.example/v2",
        "using hf_s3cr3tValue99 to log in",
        "using nvapi-s3cr3tValue99",
        "key sk-s3cr3tValue99",
        "eyJhbGciOi.eyJzdWIiOiIx.s3cr3tValue99",
        "PGPASSWORD=s3cr3tValue99 psql",
        "MYSQL_PWD=s3cr3tValue99",
        "pwd: s3cr3tValue99",
        "https://s3cr3tValue99@registry.example/v2",
        "https://api.example/v1?x=1&key=s3cr3tValue99",
        "api_key=SecretStr('s3cr3tValue99')",
        "Cookie: session=s3cr3tValue99; theme=dark",
        "{'Set-Cookie': 'session=s3cr3tValue99'}",
        "api-key: [s3cr3tValue99]",
        "API KEY: s3cr3tValue99",
        "passphrase=s3cr3tValue99",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAAs3cr3tValue99\n-----END OPENSSH PRIVATE KEY-----",
        "glpat-s3cr3tValue99",
        "xoxb-s3cr3tValue99",
        "dckr_pat_s3cr3tValue99",
    ],
)
def test_a_secret_is_masked(line: str) -> None:
    shown = redact(line)
    assert SECRET not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "line",
    [
        "GPU KV cache size: 1,234,567 tokens",
        "max_tokens=512, prompt_tokens: 22, eos_token='<|user|>', tokenizer='/mnt/models/x'",
        "'hf_token': None, 'skip_tokenizer_init': False, 'num_key_value_heads': 2",
        "GET /v1/models?glm4-deploy=0123456789abcdef HTTP/1.1 200",
        "http://127.0.0.1:8080/v1 and key=value",
        "PWD=/workspace",
        "SecretStr('**********')",
        "sk-learn 1.2, npm_config_x, git@github.com:vllm-project/vllm",
        "user@host:/path, ssh://git@github.com/x",
        "Loading safetensors checkpoint shards: 50% Completed | 1/2 [00:01<00:01, 1.2it/s]",
    ],
)
def test_what_is_not_a_secret_is_kept(line: str) -> None:
    assert redact(line) == line


@given(
    st.text(max_size=60), st.text(st.characters(categories=("L", "N")), min_size=6, max_size=20), st.text(max_size=60)
)
def test_a_known_value_is_masked_wherever_it_stands(before: str, secret: str, after: str) -> None:
    assert secret not in redact(f"{before}{secret}{after}", [secret]).replace(MASK, "")


def test_settings_are_masked_by_name_at_any_depth() -> None:
    kept = without_secrets(
        {"port": 80, "env": {"HF_TOKEN": SECRET, "TOKENIZERS_PARALLELISM": "false"}, "args": {"api-key": SECRET}}
    )
    assert kept == {
        "port": 80,
        "env": {"HF_TOKEN": MASK, "TOKENIZERS_PARALLELISM": "false"},
        "args": {"api-key": MASK},
    }
    assert secrets_in({"HF_TOKEN": SECRET, "PATH": "/bin", "EMPTY_KEY": ""}) == {SECRET}


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "api-key",
        "apikeys",
        "VLLM_API_KEY",
        "HF_TOKEN",
        "HF_TOKEN_2",
        "access_tokens",
        "auth",
        "DB_PASSWORD",
        "MYSQL_PWD",
        "my.secret",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "VLLM_API_KEY_FILE",
        "HF_TOKEN_PATH",
        "max_num_batched_tokens",
        "long-prefill-token-threshold",
        "skip_special_tokens",
        "eos_token",
        "bos_token_id",
        "author",
        "PWD",
        "OLDPWD",
        "key_value",
    ],
)
def test_names_of_other_values(name: str) -> None:
    assert not secret_name(name)


def test_no_setting_is_taken_for_a_secret() -> None:
    """A release with a masked setting could not be rebuilt."""
    assert [name for name in Settings.model_fields if secret_name(name)] == []


@pytest.mark.parametrize(
    "unit",
    [
        "a-",
        "a_",
        "a.",
        "-eyJaaaaa",
        "--a-",
        "authorization: ",
        "api_key=[",
        "'",
        "//x:",
        "token",
        "a_pwd",
        "-----BEGIN PRIVATE KEY-----",
        "api key",
        "x://",
        "cookie",
        "&key=",
        "SecretStr('",
        "hf_",
        "sk-",
        "pg",
    ],
)
def test_a_long_line_takes_no_longer_than_its_length(unit: str) -> None:
    """Without a clock: a quadratic rule would take hours."""
    assert redact(unit * (1_000_000 // len(unit)))


SHOWN: tuple[Callable[[str], str], ...] = (
    clean_text,
    one_line,
    lambda text: cap(text, 20),
    quote,
    lambda text: quote(text, 20),
    lambda text: first_difference(text, text[::-1]),
    strip_controls,
    escape_json,
    dumps,
)
BIDIRECTIONAL = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI", "BN"}
JOINERS = "\u200c\u200d"  # Persian and emoji are written with them
LEFT = {*JOINERS, "\t", "\n"}


def steers(char: str) -> bool:
    """Whether a character can hide, reorder or break a line. By Unicode's own tables, not by ours."""
    name = unicodedata.name(char, "")
    return char not in LEFT and (
        unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(char) in BIDIRECTIONAL
        or name.startswith(("ZERO WIDTH", "TAG "))
        or name.endswith("-TO-LEFT MARK")
        or name in {"LEFT-TO-RIGHT MARK", "ARABIC LETTER MARK"}
    )


EVERY = "".join(map(chr, range(0x110000)))
STEERING = "".join(filter(steers, EVERY))


@pytest.mark.parametrize("show", SHOWN)
def test_no_control_character_is_shown(show: Callable[[str], str]) -> None:
    assert len(STEERING) > 2200
    seen = "".join(show(char) + show(f"a{char}b") for char in STEERING)
    assert not set(seen) & set(STEERING)


@pytest.mark.parametrize("show", SHOWN)
@given(st.text(st.one_of(st.characters(), st.sampled_from(STEERING), st.sampled_from("ab \n"))))
def test_no_text_controls_the_terminal(show: Callable[[str], str], text: str) -> None:
    assert not set(show(text)) & set(STEERING)


@given(st.text(st.one_of(st.characters(), st.sampled_from(STEERING))))
def test_one_line_is_one_line(text: str) -> None:
    for show in (one_line, quote, strip_controls):
        assert len(show(text).splitlines()) <= 1


@given(st.text(st.one_of(st.characters(exclude_categories=()), st.sampled_from(STEERING))))
def test_json_gives_the_same_text_back(text: str) -> None:
    assert json.loads(dumps(text)) == text


def test_what_people_write_is_shown_as_it_is() -> None:
    """Every letter, number, mark, symbol and punctuation of every script."""
    people = "".join(char for char in EVERY if unicodedata.category(char)[0] in "LNMPS")
    for show in (clean_text, strip_controls, escape_json):
        assert show(people) == people


ELSEWHERE = {
    "cli/detect.py",  # which bytes show that a file is not text
    "detect/exact.py",  # what counts as blank in an answer: a question of detection, not of showing
}
ESCAPES = re.compile(r"\\x1b|\\x7f|\\x9f|\\u200[b-f]|\\u202[8-9a-e]|\\u206[0-9]|\\ufeff", re.IGNORECASE)


def test_no_other_module_has_its_own_set_of_control_characters() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        texts = [
            node.value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        ours = any(ESCAPES.search(text) or set(text) & (set(STEERING) - set("\r\0")) for text in texts)
        if ours or re.search(r"\bcategory\(\w+\) *(==|in) *.C", source):
            found.add(str(path.relative_to(PACKAGE)))
    assert found == {"text.py", *ELSEWHERE}


def test_durations() -> None:
    texts = ("90", "90s", "1.5m", "8h", "500ms", " 2s ")
    assert [seconds_of(text) for text in texts] == [90, 90, 90, 28800, 0.5, 2]
    assert seconds_of("0s", zero=True) == 0


@pytest.mark.parametrize(
    "text", ["", "0", "0.0ms", "-1", "1e3", "s", "1d", "90 s", "nan", "inf", "٣", "12345678", "1.s"]
)
def test_what_is_not_a_duration(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        seconds_of(text)


def test_a_near_miss_is_named() -> None:
    assert did_you_mean("max_model_le", Settings.model_fields) == "did you mean 'max_model_len'?"
    assert did_you_mean("zzz", Settings.model_fields) == did_you_mean("x", []) == ""
    assert did_you_mean("nope", ["hopper", "gb10"]) == ""
    assert did_you_mean("hoper", ["hopper", "gb10"]) == "did you mean 'hopper'?"
