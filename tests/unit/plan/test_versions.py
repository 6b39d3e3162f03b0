"""What an older vLLM does not know is refused, not rendered."""

import pytest

from glm4_deploy.catalog import changes
from glm4_deploy.catalog.rows import load_catalog
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
    ("image", "name", "flag"),
    [
        ("nvcr.io/nvidia/vllm:26.01-py3", "VLLM_ATTENTION_BACKEND", None),
        ("nvcr.io/nvidia/vllm:26.02-py3", "VLLM_ATTENTION_BACKEND", ("attention-backend", "a-b")),
        ("nvcr.io/nvidia/vllm:26.06-py3", "VLLM_NVFP4_GEMM_BACKEND", None),
        ("vllm/vllm-openai:v0.23.0", "VLLM_NVFP4_GEMM_BACKEND", None),
        ("vllm/vllm-openai:v0.31.0", "VLLM_NVFP4_GEMM_BACKEND", ("linear-backend", "a_b")),
        ("somebody/vllm:1", "VLLM_NVFP4_GEMM_BACKEND", None),
    ],
)
def test_a_variable_that_this_vllm_stopped_reading_becomes_its_flag(
    image: str, name: str, flag: tuple[str, str] | None
) -> None:
    spec = resolve_spec({"image": image}, sets=(f"env.{name}=a-b",))
    rendered = {one.name: one.value for one in spec.flags}
    assert (name in {variable.name for variable in spec.environment}) is (flag is None)
    assert any(name in line for line in spec.warnings) is (flag is not None)
    if flag is not None:
        assert rendered[flag[0]] == flag[1]
        own = resolve_spec({"image": image}, sets=(f"env.{name}=a-b", f"args.{flag[0]}=mine"))
        assert {one.name: one.value for one in own.flags}[flag[0]] == "mine", "what the settings say of the flag wins"


@pytest.mark.parametrize(
    ("version", "setting", "said"),
    [
        ("0.11.0", "args.linear-backend=marlin", "does not know it; 0.22.1 does"),
        ("0.21.0", "args.linear-backend=marlin", ""),
        ("0.22.1", "args.linear-backend=marlin", ""),
        ("0.20.1", "args.swap-space=4", "no longer knows it; leave it out"),
        ("0.17.1", "args.swap-space=4", ""),
        ("0.13.0", "args.no-disable-log-requests=", ""),
        ("0.31.0", "args.no-disable-log-requests=", "no longer knows it; leave it out"),
        ("0.32.0", "args.log-config-file=/x", "says that it will go; set args.logging-config"),
        ("0.31.0", "env.VLLM_USE_FLASHINFER_MOE_FP4=1", "no longer reads it"),
        ("0.11.0", "env.VLLM_NVFP4_GEMM_BACKEND=cutlass", "does not read it; 0.13.0 does"),
    ],
)
def test_what_this_vllm_does_not_know_is_said(version: str, setting: str, said: str) -> None:
    spec = resolve_spec({"image": "somebody/vllm:1"}, sets=(f"image_vllm={version}", setting))
    lines = [line for line in spec.warnings if line.startswith(setting.partition("=")[0])]
    assert (said in lines[0]) if said else not lines


def test_a_flag_that_replaces_another_is_one_that_its_version_knows() -> None:
    for name, row in load_catalog("changes")["instead"].items():
        span = changes.flags().get(name) or changes.variables().get(name) or changes.Span()
        if "flag" in row and span.gone is not None:
            assert changes.flag_trouble(row["flag"], span.gone) == "", name


def test_an_image_of_unknown_version_gets_what_was_asked_for() -> None:
    spec = resolve_spec({"image_repository": "somebody/vllm", "image_tag": "latest", "kv_cache_dtype": "bfloat16"})
    assert ("kv-cache-dtype", "bfloat16") in {(flag.name, flag.value) for flag in spec.flags}
