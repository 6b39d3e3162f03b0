"""The reference arithmetic: its number formats, and the shipped fingerprint of the demo model."""

from pathlib import Path

import numpy as np
import pytest

from glm4_deploy.checkpoint.fingerprint import make_fingerprint
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.checkpoint.reference import E4M3, Text, bf16, e4m3, quantized, reference
from glm4_deploy.errors import CheckpointRefused
from glm4_deploy.fingerprint.model import Arithmetic, read_fingerprint

DEMO = Path(__file__).parents[3] / "demo"
NVFP4 = DEMO / "glm-4-tiny-chat-nvfp4"


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_bf16_keeps_eight_bits_and_rounds_ties_to_even() -> None:
    assert bf16(floats(1, 1 + 2**-8, 1 + 3 * 2**-8, -3.1415927)).tolist() == [1, 1, 1 + 2**-6, -3.140625]


def test_e4m3_rounds_to_the_codes_that_it_decodes() -> None:
    codes = E4M3[~np.isnan(E4M3)]
    assert (codes.min(), codes.max(), len(codes)) == (-448, 448, 254)
    assert np.array_equal(e4m3(codes), codes)
    positive = np.sort(codes[codes >= 0])[1:]  # 0 is there twice
    between = (positive[:-1] * 0.51 + positive[1:] * 0.49).astype(np.float32)
    assert np.array_equal(e4m3(between), positive[:-1])
    assert e4m3(floats(1e9, -1e9, 0)).tolist() == [448, -448, 0]


def test_fp4_takes_the_nearest_value_and_the_even_code_in_the_middle() -> None:
    """The scale of the group is 1: its largest value is 6."""
    row = floats(6, 0.25, 0.26, 0.75, 1.25, 1.3, 1.75, 2.5, 2.6, 3.5, 5, 5.1, -0.7, -1.75, 0, -6)
    wanted = [6, 0, 0.5, 1, 1, 1.5, 2, 2, 3, 4, 4, 6, -0.5, -2, 0, -6]
    assert quantized(row[None], np.float32(1)).tolist() == [wanted]


def test_a_scale_beyond_fp8_cuts_the_largest_values_off() -> None:
    row = np.full((1, 16), 6, np.float32)
    assert quantized(row, np.float32(896)).max() == 3  # 896 x 1 needs a scale of 896; FP8 ends at 448


@pytest.mark.parametrize(
    ("directory", "arithmetic"), [("glm-4-tiny-chat", Arithmetic.BF16), (NVFP4.name, Arithmetic.W4A16)]
)
def test_the_shipped_fingerprint_is_that_of_the_demo_model(directory: str, arithmetic: Arithmetic) -> None:
    printed = read_fingerprint(NVFP4 / "fingerprint.json").texts[0]
    text = Text(ids=printed.ids[:40], points=tuple(range(1, 40)))
    model = reference(read_checkpoint(DEMO / directory), arithmetic)
    top = model.head(model.run([text]))
    tops = printed.tops[arithmetic]
    same = [ours[0] == theirs[0] for ours, theirs in zip(top.ids.tolist(), tops.ids[:39], strict=True)]
    assert np.mean(same) > 0.9
    assert np.abs(top.logprobs[:, 0] - np.array(tops.logprobs[:39])[:, 0]).mean() < 0.02


def test_two_models_have_no_common_fingerprint(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in (DEMO / "glm-4-tiny-chat").iterdir():
        data = file.read_bytes()
        (other / file.name).write_bytes(data + b" " if file.name == "tokenizer.json" else data)
    with pytest.raises(CheckpointRefused, match="different tokenizers"):
        make_fingerprint([other, NVFP4], tmp_path / "fingerprint.json")
    assert not (tmp_path / "fingerprint.json").exists()
