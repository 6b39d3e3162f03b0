"""`tools: true`: the engine gets the tool parser and a chat template with tools, in every target."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.compose_cli import mounts_beside
from glm4_deploy.deploy.engines import command
from glm4_deploy.plan.spec import TOOL_FILES, TOOLS
from golden.render import render
from tool_calls import PLUGIN

FILES = {name: (PLUGIN.parent / name).read_text() for name in TOOL_FILES.values()}
PATHS = {name: f"{TOOLS}/{file}" for name, file in TOOL_FILES.items()}


def has_flags(words: list[str]) -> bool:
    pairs = dict(pairwise(words))
    assert "--enable-auto-tool-choice" in words
    assert pairs["--tool-call-parser"] == "glm4"
    assert {name: pairs[f"--{name}"] for name in PATHS} == PATHS
    return True


def test_compose_mounts_what_it_carries_read_only(tmp_path: Path) -> None:
    made = render("compose", "tools=true", "replicas=2", "profile=hopper")
    for name, text in made.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    services = yaml.safe_load(made["compose.yaml"])["services"]
    engines = [body for name, body in services.items() if name != "router"]
    assert len(engines) == 2
    for body in engines:
        assert has_flags(services[next(iter(services))]["command"])
        mounts = {mount["target"]: mount for mount in body["volumes"] if isinstance(mount, dict)}
        for path in PATHS.values():
            assert mounts[path]["read_only"] is True
            source = tmp_path / mounts[path]["source"]
            assert source.read_text() == FILES[Path(path).name]
    carried = {path.name for path in mounts_beside(tmp_path / "compose.yaml")}
    assert carried == set(FILES), "a bundle takes them along"


def test_kubernetes_carries_them_in_a_config_map() -> None:
    objects = {
        (item["kind"], item["metadata"]["name"]): item
        for item in yaml.safe_load_all(render("kubernetes", "tools=true", "profile=b200")["kubernetes.yaml"])
    }
    data = objects["ConfigMap", "glm4-tools"]["data"]
    assert {name: text.strip() for name, text in data.items()} == {name: text.strip() for name, text in FILES.items()}
    pod = objects["Deployment", "glm4"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert has_flags(container["args"])
    assert {"name": "tools", "mountPath": TOOLS, "readOnly": True} in container["volumeMounts"]
    assert {"name": "tools", "configMap": {"name": "glm4-tools"}} in pod["volumes"]


def test_quadlet_mounts_them_from_beside_the_unit() -> None:
    made = render("quadlet", "tools=true", "profile=rtx-5090")
    for file in FILES:
        assert made[f"tools/{file}"] == FILES[file]
        assert f"Mount=type=bind,source=./tools/{file},target={TOOLS}/{file},readonly=true" in made["glm4.container"]


def test_a_process_reads_this_kits_own_files() -> None:
    spec = resolve_spec({"tools": True})
    words = dict(pairwise(command(spec, "python3")))
    assert {name: Path(words[f"--{name}"]).read_text() for name in TOOL_FILES} == {
        name: FILES[file] for name, file in TOOL_FILES.items()
    }


def test_without_tools_nothing_of_it_is_rendered() -> None:
    for target in ("compose", "kubernetes", "quadlet"):
        text = "".join(render(target).values())
        assert "tools" not in text.replace("install tools", ""), target


def test_an_old_engine_is_warned_about() -> None:
    def warned(**flags: object) -> list[str]:
        return [words for words in resolve_spec({"tools": True, **flags}).warnings if "tool" in words]

    (warning,) = warned(image_tag="25.10-py3")
    assert "before 0.11.0" in warning
    assert warned() == []


def test_a_template_of_the_users_own_takes_the_place_of_ours() -> None:
    spec = resolve_spec({"tools": True}, sets=["args.chat-template=/mnt/models/x/chat_template.jinja"])
    assert dict(pairwise(command(spec, "python3")))["--chat-template"] == "/mnt/models/x/chat_template.jinja"


# The chat template, as transformers renders it.

SYSTEM = (
    "<|system|>\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
WEATHER = {"name": "get_weather", "description": "天气 <b>", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": WEATHER}


def prompt(messages: list[dict[str, Any]], **values: Any) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    template = environment.from_string(FILES["glm4_chat_template.jinja"])
    return template.render(messages=messages, add_generation_prompt=True, **values)


def test_the_functions_are_described_as_the_model_was_trained() -> None:
    shown = json.dumps(WEATHER, ensure_ascii=False, indent=4)
    assert prompt([{"role": "user", "content": "Hi"}], tools=[TOOL, TOOL]) == (
        f"[gMASK]<sop>{SYSTEM}"
        + f"\n\n## get_weather\n\n{shown}\n在调用上述函数时，请使用 Json 格式表示调用的参数。" * 2
        + "<|user|>\nHi<|assistant|>"
    )


@pytest.mark.parametrize("arguments", ['{"city": "北京"}', {"city": "北京"}], ids=["text", "as vLLM parses them"])
def test_calls_and_their_results_are_turns(arguments: object) -> None:
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name in ("a", "b")]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "\nOne moment.", "tool_calls": calls},
        {"role": "tool", "content": "22 °C", "tool_call_id": "1"},
        {"role": "tool", "content": "9:00", "tool_call_id": "2"},
    ]
    assert prompt(messages) == (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\n?<|assistant|>\nOne moment."
        '<|assistant|>a\n{"city": "北京"}<|assistant|>b\n{"city": "北京"}'
        "<|observation|>\n22 °C<|observation|>\n9:00<|assistant|>"
    )


def test_a_chat_without_tools_is_the_plain_form() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    for values in ({}, {"tools": None}, {"tools": []}):
        assert prompt(messages, **values) == "[gMASK]<sop><|user|>\nHi<|assistant|>\nYes?<|assistant|>"
