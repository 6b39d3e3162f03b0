"""What an older vLLM does not know is refused, not rendered."""

import pytest

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.errors import UsageError


@pytest.mark.parametrize("tag", ["25.09-py3", "25.10-py3"])
def test_a_kv_cache_type_that_this_vllm_refuses_is_refused(tag: str) -> None:
    with pytest.raises(UsageError, match=r"bfloat16: vLLM 0\.10\.\d(\.1)? does not know it \(0\.11 is the first"):
        resolve_spec({"image_tag": tag, "kv_cache_dtype": "bfloat16"})


@pytest.mark.parametrize(("tag", "dtype"), [("25.10-py3", "auto"), ("25.10-py3", "fp8"), ("25.11-py3", "bfloat16")])
def test_what_it_knows_is_rendered(tag: str, dtype: str) -> None:
    flags = {flag.name: flag.value for flag in resolve_spec({"image_tag": tag, "kv_cache_dtype": dtype}).flags}
    assert flags["kv-cache-dtype"] == dtype


@pytest.mark.parametrize(
    ("image", "name", "warned"),
    [
        ("nvcr.io/nvidia/vllm:26.01-py3", "VLLM_ATTENTION_BACKEND", False),
        ("nvcr.io/nvidia/vllm:26.02-py3", "VLLM_ATTENTION_BACKEND", True),
        ("nvcr.io/nvidia/vllm:26.06-py3", "VLLM_NVFP4_GEMM_BACKEND", False),
        ("vllm/vllm-openai:v0.31.0", "VLLM_NVFP4_GEMM_BACKEND", True),
        ("somebody/vllm:1", "VLLM_NVFP4_GEMM_BACKEND", False),
    ],
)
def test_a_variable_that_this_vllm_stopped_reading_is_named_with_its_flag(
    image: str, name: str, *, warned: bool
) -> None:
    spec = resolve_spec({"image": image}, sets=(f"env.{name}=x",))
    said = [line for line in spec.warnings if name in line and "no longer reads it; set args." in line]
    assert bool(said) is warned


def test_an_image_of_unknown_version_gets_what_was_asked_for() -> None:
    spec = resolve_spec({"image_repository": "somebody/vllm", "image_tag": "latest", "kv_cache_dtype": "bfloat16"})
    assert ("kv-cache-dtype", "bfloat16") in {(flag.name, flag.value) for flag in spec.flags}
