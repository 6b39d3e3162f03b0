"""A real vLLM with the tool parser and the chat template, and OpenAI's own client in front of it."""

import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from e2e.engine import Engine, engine
from e2e.kit import KIT, MODEL, ROOT
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.engines import command
from glm4_deploy.plan.spec import TOOL_FILES

pytestmark = pytest.mark.e2e
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
def tooled(cpu_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the flags that `--tools` adds to a process."""
    words = command(resolve_spec({"tools": True}), cpu_python)
    flags = dict(pairwise(words))
    names = ("tool-call-parser", *TOOL_FILES)
    extra = ["--enable-auto-tool-choice", *(word for name in names for word in (f"--{name}", flags[f"--{name}"]))]
    with engine(cpu_python, MODEL, tmp_path_factory.mktemp("tools") / "engine.log", *extra) as running:
        yield running


@pytest.fixture(scope="module")
def found(tooled: Engine, cpu_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    program = [cpu_python, ROOT / "tests/e2e/tool_clients.py", tooled.base_url]
    home = tmp_path_factory.mktemp("client")
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=900, cwd=home)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


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


def test_the_smoke_suite_asks_for_calls(tooled: Engine, tmp_path: Path) -> None:
    """What the demo model makes of tools is no verdict; that it is asked, and not skipped, is."""
    words = ["smoke", "--base-url", tooled.base_url, "--only", "tools-call", "--json", "-"]
    done = subprocess.run([*KIT, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    rows = {row["check"]: row["status"] for row in json.loads(done.stdout)["results"]}
    assert rows["tools-call"] != "skipped", done.stdout
