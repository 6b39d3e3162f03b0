"""The committed demo model is complete and has its end tokens; each twin is sick as its name says."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DEMO = Path(__file__).parents[2] / "demo"
MODEL = DEMO / "glm-4-tiny-chat"
EOS = ("<|endoftext|>", "<|user|>", "<|observation|>")


def load_twins() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_twins", DEMO / "twins.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


twins = load_twins()


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_model_with_tools_has_the_deployed_template_and_the_same_end_tokens() -> None:
    model = DEMO / "glm-4-tiny-tools"
    deployed = DEMO.parent / "templates/tools/glm4_chat_template.jinja"
    assert (model / "chat_template.jinja").read_bytes() == deployed.read_bytes(), "train it again"
    assert read_json(model / "generation_config.json")["eos_token_id"] == eos_ids()
    assert sum(path.stat().st_size for path in model.iterdir()) < 7_000_000


def weights(directory: Path) -> dict[str, np.ndarray]:
    return {name: twins.to_float(bits) for name, bits in twins.read(directory / "model.safetensors")[1].items()}


def eos_ids() -> list[int]:
    ids = {token["content"]: token["id"] for token in read_json(MODEL / "tokenizer.json")["added_tokens"]}
    return [ids[name] for name in EOS]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_all_three_tokens_end_an_answer(name: str) -> None:
    assert read_json(MODEL / name)["eos_token_id"] == eos_ids()


def test_it_fits_in_a_repository() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 8_000_000


def test_weights_are_finite_and_have_the_shapes_of_the_config() -> None:
    config, tensors = read_json(MODEL / "config.json"), weights(MODEL)
    assert all(np.isfinite(values).all() for values in tensors.values())
    assert tensors["lm_head.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert len([name for name in tensors if name.endswith("mlp.gate_up_proj.weight")]) == config["num_hidden_layers"]


def test_the_chat_template_and_the_context_are_like_glm4s() -> None:
    assert (MODEL / "chat_template.jinja").read_text(encoding="utf-8").startswith("[gMASK]<sop>")
    assert read_json(MODEL / "config.json")["max_position_embeddings"] >= 4096
    assert "not apply" in (MODEL / "LICENSE").read_text(encoding="utf-8")


def test_older_transformers_read_it_too() -> None:
    config = read_json(MODEL / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert read_json(MODEL / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_bf16_survives_the_round_trip() -> None:
    bits = np.arange(0x10000, dtype=np.uint16)
    finite = bits[np.isfinite(twins.to_float(bits))]
    assert (twins.to_bits(twins.to_float(finite)) == finite).all()


def test_the_nan_twin_has_nan_in_one_tensor_only(tmp_path: Path) -> None:
    sick = weights(twins.make("nan", tmp_path / "twin"))
    assert [name for name, values in sick.items() if np.isnan(values).any()] == [twins.NAN_TENSOR]


@pytest.mark.parametrize("kind", ["loops", "noise"])
def test_a_twin_is_determined_by_its_seed(kind: str, tmp_path: Path) -> None:
    blobs = [
        (twins.make(kind, tmp_path / f"{i}", seed=seed) / "model.safetensors").read_bytes()
        for i, seed in enumerate((0, 0, 1))
    ]
    assert blobs[0] == blobs[1] != blobs[2]


@pytest.mark.parametrize(("kind", "low", "high"), [("loops", -0.05, 0.05), ("noise", 0.6, 0.98)])
def test_random_weights_are_unrelated_to_the_model_and_noise_is_related(
    kind: str, low: float, high: float, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    sick, well = weights(twins.make(kind, tmp_path / "twin"))[name], weights(MODEL)[name]
    assert np.isfinite(sick).all()
    assert low < np.corrcoef(sick.ravel(), well.ravel())[0, 1] < high


def test_missing_eos_keeps_the_weights_and_drops_two_end_tokens(tmp_path: Path) -> None:
    twin = twins.make("missing-eos", tmp_path / "twin")
    assert (twin / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()
    assert read_json(twin / "config.json")["eos_token_id"] == eos_ids()[0]
    assert read_json(twin / "generation_config.json")["eos_token_id"] == eos_ids()[0]


def test_an_existing_directory_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="is there already"):
        twins.make("nan", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]
