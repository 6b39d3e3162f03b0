"""`plan` and `doctor` as a user runs them: separate processes, exit codes, JSON."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import preloaded
from glm4_deploy.cli.app import main


def glm4(*words: str, where: Path | None = None) -> subprocess.CompletedProcess[str]:
    return preloaded.run(*words, cwd=where)


def test_json_has_the_promised_keys_and_is_strict() -> None:
    done = glm4("plan", "--gpu", "gb10", "--for", "64 users, 8k context", "--json")
    answer = json.loads(done.stdout, parse_constant=pytest.fail)

    assert done.returncode == 0
    assert {"weights_gib", "activation_gib", "graph_gib", "kv_cache_gib", "kv_cache_tokens", "max_concurrency", "fits",
            "reasons", "workspace_gib", "error_range_gib", "advice", "kernel_path"} <= set(answer)  # fmt: skip
    assert (answer["max_num_seqs"], answer["max_model_len"]) == (64, 8192)
    assert answer["max_concurrency"] >= 64
    assert answer["kernel_path"]["native"] is True


def test_a_person_gets_a_bar_and_a_verdict() -> None:
    done = glm4("plan", "--gpu-total-mib", "81559", "--compute-capability", "9.0", "--image-tag", "26.05")

    assert done.returncode == 0
    assert "STARTS:" in done.stdout
    assert "Marlin" in done.stdout
    assert "░ KV cache" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_a_plan_that_cannot_start_is_printed_and_refused() -> None:
    done = glm4("plan", "--gpu", "h100", "--gpu-memory-utilization", "0.12", "--max-model-len", "131072", "--json")
    answer = json.loads(done.stdout)

    assert done.returncode == 13
    assert answer["fits"] is False
    assert f"decrease max_model_len to {answer['longest_context']}" in answer["remedy"]
    assert "the engine cannot start on H100" in done.stderr


def test_a_refusal_is_printed_once() -> None:
    done = glm4("plan", "--gpu", "gb10", "--gpu-memory-utilization", "0.06")

    assert done.returncode == 13
    assert (done.stdout + done.stderr).count("no memory is left for KV cache blocks") == 1
    assert "gpu_memory_utilization" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--gpu", "nonsense"),
        ("--gpu-total-mib", "16303"),
        ("--compute-capability", "12.0"),
        ("--gpu", "gb10", "--gpu-memory-utilization", "nan"),
        ("--gpu", "gb10", "--gpu-memory-utilization", "1.2"),
        ("--gpu", "gb10", "--kv-cache-dtype", "int3"),
        ("--gpu", "gb10", "--weights", "int4"),
        ("--gpu", "gb10", "--vllm", "new"),
        ("--gpu", "gb10", "--vllm", "0.13.0", "--image-tag", "26.01"),
        ("--gpu", "gb10", "--for", "many"),
        ("--gpu", "gb10", "--max-model-len", "0"),
        ("--gpu-total-mib", "16303", "--compute-capability", "twelve"),
        ("--gpu-total-mib", "inf", "--compute-capability", "9.0"),
        ("--gpu-total-mib", "1", "--compute-capability", "9.0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, for speed, through main() like the console script."""
    monkeypatch.setattr(sys, "argv", ["glm4-deploy", "plan", *words])
    with pytest.raises(SystemExit) as ended:
        main()

    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert "Traceback" not in printed.err


def test_a_checkpoint_gives_its_own_shape(tmp_path: Path) -> None:
    """A real safetensors file of 3 MiB: its size gives the weights, its layers the bytes per token."""
    config = {"architectures": ["GlmForCausalLM"], "model_type": "glm", "num_hidden_layers": 4, "hidden_size": 256,
              "intermediate_size": 608, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
              "vocab_size": 2048, "max_position_embeddings": 4096}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"model.embed_tokens.weight": np.zeros((2048, 768), np.float16)}, tmp_path / "model.safetensors")
    done = glm4("plan", "--gpu", "h100", "--checkpoint", str(tmp_path), "--max-model-len", "4096", "--json")
    answer = json.loads(done.stdout)

    assert answer["weights_gib"] == pytest.approx(3 / 1024, abs=0.001)
    assert "1,024 bytes per token" not in done.stdout
    assert "KV cache: 512 bytes per token, exact" in answer["reasons"]


def test_a_missing_checkpoint_is_reported(tmp_path: Path) -> None:
    done = glm4("plan", "--gpu", "h100", "--checkpoint", str(tmp_path / "none"))

    assert done.returncode == 9
    assert "Traceback" not in done.stderr


def test_the_doctor_answers_on_any_machine(tmp_path: Path) -> None:
    done = glm4("doctor", "--model-dir", str(tmp_path), "--json", where=tmp_path)
    answer = json.loads(done.stdout, parse_constant=pytest.fail)

    assert answer["readiness"] in ("ready", "slow", "blocked", "unknown")
    assert done.returncode == answer["exit_code"] == (0 if answer["readiness"] in ("ready", "slow") else 1)
    assert all({"check", "status", "observed", "expected", "remedy"} <= set(row) for row in answer["results"])
