"""What is kept holds no secret; what is no secret stays readable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm4_deploy.text import MASK, redact, secret_name, secrets_in, without_secrets

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
        "Loading safetensors checkpoint shards: 50% Completed | 1/2 [00:01<00:01, 1.2it/s]",
    ],
)
def test_what_is_no_secret_stays(line: str) -> None:
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
    assert not secret_name("max_num_batched_tokens_limit")


@pytest.mark.parametrize(
    "unit", ["a-", "a_", "a.", "-eyJaaaaa", "--a-", "authorization: ", "api_key=[", "'", "//x:", "token"]
)
def test_a_long_line_takes_no_longer_than_its_length(unit: str) -> None:
    """No clock: a quadratic rule takes hours over this."""
    assert redact(unit * (1_000_000 // len(unit)))
