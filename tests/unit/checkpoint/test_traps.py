"""The four traps of image 26.01: each is found and repaired for the engines that it affects."""

import json
from pathlib import Path

import numpy as np
import pytest

import checkpoints as made
from glm4_deploy.catalog.rows import Version
from glm4_deploy.checkpoint.repair import repair_checkpoint
from glm4_deploy.checkpoint.rules_chat import takes_tools
from glm4_deploy.checkpoint.verify import VerifyReport, verify_checkpoint
from glm4_deploy.errors import CheckpointRefused
from glm4_deploy.result import Result, Status
from tool_calls import PLUGIN

OLD, NEW, NEWEST = (0, 13, 0), (0, 24, 0), (0, 32, 0)
# check → vLLM version → its status for the checkpoint that llm-compressor wrote
TRAPS: dict[str, dict[Version, Status]] = {
    "gate-up": {(0, 11, 0): Status.FAIL, OLD: Status.FAIL, (0, 19, 1): Status.FAIL, (0, 20, 0): Status.OK},
    "quantization-keys": {(0, 10, 1): Status.OK, (0, 10, 2): Status.FAIL, OLD: Status.FAIL, (0, 14, 0): Status.OK},
    "rope-theta": {OLD: Status.FAIL, (0, 20, 0): Status.WARN, NEW: Status.OK, NEWEST: Status.OK},
    "tokenizer-class": {OLD: Status.FAIL, (0, 23, 0): Status.WARN, NEW: Status.OK, NEWEST: Status.OK},
}
CASES = [(check, vllm, status) for check, row in TRAPS.items() for vllm, status in row.items()]


def row(report: VerifyReport, check: str) -> Result:
    return next(result for result in report.results if result.check == check)


@pytest.mark.parametrize(("check", "vllm", "status"), CASES)
def test_each_trap_is_reported_for_the_engines_that_it_affects(check: str, vllm: Version, status: Status) -> None:
    result = row(verify_checkpoint(made.DATA, vllm=vllm), check)
    assert result.status is status
    if status is not Status.OK:
        assert "checkpoint repair" in result.remedy and any(item.name == "why" for item in result.evidence)


@pytest.mark.parametrize("check", TRAPS)
def test_each_trap_can_be_repaired_alone(check: str, tmp_path: Path) -> None:
    outcome = repair_checkpoint(made.DATA, tmp_path / "glm-4-out", vllm=OLD, only=[check])
    assert {change.check for change in outcome.changes} == {check}
    failed = {result.check for result in outcome.report.failures}
    assert failed == set(TRAPS) - {check}


def test_repair_for_the_publishers_image_leaves_no_failure_and_the_original_alone(tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.DATA.iterdir()}
    outcome = repair_checkpoint(made.DATA, tmp_path / "glm-4-out", vllm=OLD)
    assert outcome.report.failures == ()
    assert {change.check for change in outcome.changes} == set(TRAPS)
    assert {path.name: path.read_bytes() for path in made.DATA.iterdir()} == before
    config = json.loads((tmp_path / "glm-4-out/config.json").read_text())
    assert config["rope_theta"] == 5_000_000 == config["rope_parameters"]["rope_theta"]
    assert "scale_dtype" not in json.dumps(config)
    tokenizer = json.loads((tmp_path / "glm-4-out/tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["additional_special_tokens"][-1] == "<|observation|>"


@pytest.mark.parametrize("vllm", [NEW, NEWEST])
def test_nothing_is_changed_for_engines_that_load_it_as_it_is(vllm: Version, tmp_path: Path) -> None:
    outcome = repair_checkpoint(made.DATA, tmp_path / "glm-4-out", vllm=vllm)
    assert (outcome.changes, outcome.written) == ((), ())
    assert (tmp_path / "glm-4-out/model.safetensors").samefile(made.DATA / "model.safetensors") or outcome.copied


def test_split_layers_are_joined_for_the_transformers_backend(tmp_path: Path) -> None:
    repair_checkpoint(made.DATA, tmp_path / "glm-4-old", vllm=OLD)
    assert row(verify_checkpoint(tmp_path / "glm-4-old", vllm=(0, 31, 0)), "gate-up").status is Status.OK
    assert row(verify_checkpoint(tmp_path / "glm-4-old", vllm=NEWEST), "gate-up").status is Status.FAIL
    back = repair_checkpoint(tmp_path / "glm-4-old", tmp_path / "glm-4-back", vllm=NEWEST)
    assert back.report.failures == ()
    joined = (tmp_path / "glm-4-back/model.safetensors").read_bytes()
    assert joined == (made.DATA / "model.safetensors").read_bytes()


def test_gate_and_up_with_other_scales_are_not_joined(tmp_path: Path) -> None:
    held = {name: value for name, value in made.tensors().items() if ".mlp.gate_up_proj" not in name}
    directory = made.checkpoint(tmp_path / "glm-4-two")
    rng = np.random.default_rng(0)
    for layer in range(2):
        for part in ("gate_proj", "up_proj"):
            held |= made.packed(f"model.layers.{layer}.mlp.{part}", made.FFN, made.HIDDEN, rng)
    held["model.layers.1.mlp.up_proj.weight_global_scale"] *= 2
    made.save(directory / "model.safetensors", held)
    assert row(verify_checkpoint(directory, vllm=OLD), "global-scales").status is Status.FAIL
    with pytest.raises(CheckpointRefused, match="cannot be repaired"):
        repair_checkpoint(directory, tmp_path / "glm-4-out", vllm=NEWEST)
    assert not (tmp_path / "glm-4-out").exists()


@pytest.mark.parametrize("nvfp4", [True, False])
def test_a_healthy_checkpoint_has_no_failure_but_the_gate_up_trap_of_nvfp4(nvfp4: bool, tmp_path: Path) -> None:
    report = verify_checkpoint(made.checkpoint(tmp_path / "glm-4-made", nvfp4=nvfp4), vllm=OLD, full=True)
    assert {result.check for result in report.failures} == ({"gate-up"} if nvfp4 else set())
    assert [result.check for result in report.results if result.status is Status.UNKNOWN] == []


def test_stop_ids_and_chat_template_are_restored(tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    (directory / "chat_template.jinja").unlink()
    made.change(directory / "generation_config.json", eos_token_id=256)
    failed = {result.check for result in verify_checkpoint(directory, vllm=OLD).failures}
    assert failed == {"gate-up", "eos-ids", "chat-template"}
    outcome = repair_checkpoint(directory, tmp_path / "glm-4-out", vllm=OLD)
    assert outcome.report.failures == ()
    ids = json.loads((tmp_path / "glm-4-out/generation_config.json").read_text())["eos_token_id"]
    assert ids == [256, 263, 265]
    assert "<|assistant|>" in (tmp_path / "glm-4-out/chat_template.jinja").read_text()
    healthy = verify_checkpoint(made.checkpoint(tmp_path / "glm-4-healthy"), vllm=OLD)
    reports = (healthy, outcome.report)
    said = [row.observed for report in reports for row in report.results if row.check == "chat-template"]
    assert ["without tools" in words for words in said] == [True, False]
    assert "with tools" in said[1]


# As THUDM/glm-4-9b-chat has it: the functions are in a message, where vLLM does not put them.
IN_A_MESSAGE = "{% for m in messages %}{% if m.tools %}{% set tools = m.tools %}{{ tools }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        (PLUGIN.with_name("glm4_chat_template.jinja").read_text(), True),
        ("{% if tools is defined %}{{ tools | tojson }}{% endif %}<|assistant|>", True),
        (IN_A_MESSAGE, False),
        ("{% if custom is defined %}{% set tools = custom %}{% endif %}{% if tools %}x{% endif %}", True),
        ("{# tools #}{{ 'tools' }}<|assistant|>", False),
        ("{% generation %}{{ tools }}{% endgeneration %}", None),
        ("{{ " + "(" * 5000 + "tools" + ")" * 5000 + " }}", None),
        ("x" * 300_000, None),
    ],
)
def test_a_template_takes_the_functions_of_a_request(template: str, takes: bool | None) -> None:
    assert takes_tools(template) is takes


def test_a_missing_generation_config_is_written(tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    (directory / "generation_config.json").unlink()
    assert row(verify_checkpoint(directory), "eos-ids").status is Status.WARN
    outcome = repair_checkpoint(directory, tmp_path / "glm-4-out")
    assert row(outcome.report, "eos-ids").status is Status.OK
