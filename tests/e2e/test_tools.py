"""A real vLLM that `up --tools` started with a model that calls tools, and the clients of applications before it."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from e2e.engine import NAME
from e2e.kit import ROOT, Done, Kit

pytestmark = pytest.mark.e2e
MODEL = ROOT / "demo/glm-4-tiny-tools"
CHECKS = tuple(f"tools-{name}" for name in ("call", "stream", "parallel", "roundtrip", "none"))
WEATHER, TIME = ["get_weather", '{"city": "Paris"}'], ["get_time", '{"city": "北京"}']
# scene → content, calls. A stream has "" where a whole answer has null.
EXPECTED: dict[str, tuple[str, list[list[str]]]] = {
    "call": ("", [WEATHER]),
    "two": ("", [WEATHER, TIME]),
    "text, call": ("\nLet me see.", [TIME]),
    "text": ("\nHello there.", []),
    "word": ("Yes", []),
}


@pytest.fixture(scope="module")
def kit(cpu_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    kit = Kit(directory=tmp_path_factory.mktemp("tools"), project="glm4-tools")
    try:
        yield kit
    finally:
        kit.run("down", "--yes")


@pytest.fixture(scope="module")
def up(kit: Kit) -> Done:
    return kit.up("--tools", "--runner", "process", "--timeout", "600", "--json", model=MODEL, timeout=1200)


@pytest.fixture(scope="module")
def base_url(kit: Kit, up: Done) -> str:
    assert up.code == 0, up.out + up.err
    return f"http://127.0.0.1:{kit.port}"


@pytest.fixture(scope="module")
def found(base_url: str, cpu_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    program = [cpu_python, ROOT / "tests/e2e/tool_clients.py", base_url]
    home = tmp_path_factory.mktemp("client")
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=900, cwd=home)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_the_gate_asks_for_a_call(base_url: str, up: Done) -> None:
    rows = {row["check"]: row for row in up.json["results"]}
    assert rows["tools-call"]["status"] == "ok", rows["tools-call"]


@pytest.mark.parametrize("check", CHECKS)
def test_the_smoke_suite_passes(kit: Kit, base_url: str, smoke: dict[str, dict[str, Any]], check: str) -> None:
    assert smoke[check]["status"] == "ok", smoke[check]


@pytest.fixture(scope="module")
def smoke(kit: Kit, base_url: str) -> dict[str, dict[str, Any]]:
    only = [word for check in CHECKS for word in ("--only", check)]
    done = kit.run("smoke", "--base-url", base_url, "--suite", "full", *only, "--json", "-")
    return {row["check"]: row for row in done.json["results"]}


@pytest.mark.parametrize("how", ["whole", "streamed"])
@pytest.mark.parametrize("scene", EXPECTED)
def test_a_client_sees_the_calls(found: dict[str, Any], how: str, scene: str) -> None:
    content, calls = EXPECTED[scene]
    seen = found[how][scene]
    assert (seen["content"] or "", seen["calls"]) == (content, calls)
    assert seen["ids"] == len(calls), "each call has an id of its own"
    assert seen["finish"] == ("tool_calls" if calls else "stop")


def test_arguments_come_as_they_are_written(found: dict[str, Any]) -> None:
    assert found["pieces"]["call"] > 1


def test_a_malformed_call_is_content_and_its_stream_does_not_parse(found: dict[str, Any]) -> None:
    whole, streamed = found["whole"]["malformed"], found["streamed"]["malformed"]
    assert (whole["content"], whole["calls"], whole["finish"]) == ('get_weather\n{"city": Paris}', [], "stop")
    ((name, arguments),) = streamed["calls"]
    assert name == "get_weather"
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(arguments)


def test_a_cut_call_is_reported_as_cut(found: dict[str, Any]) -> None:
    whole, streamed = found["cut"]["whole"], found["cut"]["streamed"]
    assert (whole["calls"], whole["finish"]) == ([], "length")
    assert whole["content"].startswith('get_weather\n{"')
    ((name, arguments),) = streamed["calls"]
    assert (name, streamed["finish"]) == ("get_weather", "length")
    assert arguments.startswith('{"city')
    with pytest.raises(ValueError, match="Unterminated string"):
        json.loads(arguments)


def test_an_agent_goes_three_steps_and_the_model_sees_them(found: dict[str, Any]) -> None:
    loop = found["loop"]
    assert [step["calls"] for step in loop["steps"]] == [[WEATHER], [TIME], []]
    assert "22 degrees" in loop["steps"][-1]["content"]
    assert loop["prompts"] == sorted(set(loop["prompts"])), "each prompt has more than the one before"
    places = [
        loop["prompt"].find(text)
        for text in (
            "# 可用工具",
            "## get_time",
            "<|user|>\nWhat about Paris?",
            '<|assistant|>get_weather\n{"city": "Paris"}<|observation|>\n{"of": "Paris"',
            '<|assistant|>get_time\n{"city": "北京"}<|observation|>\n',
        )
    ]
    assert -1 not in places, loop["prompt"]
    assert places == sorted(places)


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return json.dumps({"celsius": 23, "sky": "hail"} if city == "Paris" else {"celsius": 7, "sky": "snow"})


def test_langchain_binds_tools_and_an_agent_goes_three_steps(base_url: str) -> None:
    """The model decides by itself here: it is greedy, and was trained on this very question."""
    model = ChatOpenAI(model=NAME, base_url=f"{base_url}/v1", api_key=SecretStr("none"), temperature=0, max_retries=0)
    agent = model.bind_tools([get_weather])
    messages: list[BaseMessage] = [HumanMessage("First get the weather of Paris, then the weather of Berlin.")]
    cities = []
    for _ in range(3):
        answer = agent.invoke(messages)
        messages.append(answer)
        cities.append([call["args"]["city"] for call in answer.tool_calls])
        messages += [get_weather.invoke(call) for call in answer.tool_calls]
    assert cities == [["Paris"], ["Berlin"], []]
    assert "hail" in answer.text
    assert "snow" in answer.text
