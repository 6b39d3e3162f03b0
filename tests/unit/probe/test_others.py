"""Other OpenAI-compatible servers pass, and what each lacks is skipped with its reason."""

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr

from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report_model import Suite, SuiteReport
from glm4_deploy.result import Status
from servers.others import LlamaCpp, Ollama, SGLang, SGLangRefusesInStream
from servers.serve import mounted

MODEL = "glm-4-9b-chat"
LIGHT = ("concurrency-4", "concurrency-64", "loop-long")  # loads that say nothing of a server's kind
# server → check → words of the reason why it is skipped there
SKIPS: dict[Any, dict[str, str]] = {
    LlamaCpp: {
        "overflow": "does not report its context length",
        "needle-4k": "does not report its context length",
        "unknown-model": "answers to any model name",
        "perplexity": "no prompt_logprobs",
        "metrics": "no /metrics",
        "key": "no key given",
    },
    Ollama: {
        "overflow": "does not report its context length",
        "numbers": "sends no logprobs",
        "tools-call": "does not support tools",
        "tools-roundtrip": "does not support tools",
        "perplexity": "no prompt_logprobs",
        "metrics": "no /metrics",
        "key": "no key given",
    },
    SGLang: {
        "unknown-model": "answers to any model name",
        "needle-4k": "the context is 2048 tokens",
        "perplexity": "no prompt_logprobs",
        "metrics": "no /metrics",
        "key": "no key given",
    },
}


def run(app: Any, **settings: Any) -> SuiteReport:
    suite = settings.pop("suite", {"suite": Suite.FULL, "skip": LIGHT})
    with mounted(app) as url:
        target = ProbeTarget(**{"base_url": url, "model": MODEL, "timeout_s": 10.0, **settings})
        return asyncio.run(run_suite(target, **suite))


def rows(report: SuiteReport) -> dict[str, Any]:
    return {row.check: row for row in report.results}


@pytest.mark.parametrize("server", SKIPS, ids=lambda server: server.__name__)
def test_another_server_passes_and_what_it_lacks_is_skipped(server: Any) -> None:
    report = run(server(tools=server is not Ollama, token_s=0.001))
    bad = [row for row in report.results if row.status not in {Status.OK, Status.SKIPPED}]
    assert bad == []
    assert report.exit_code == 0
    reasons = {row.check: row.reason for row in report.results if row.status is Status.SKIPPED}
    assert {check: word for check, word in SKIPS[server].items() if word not in reasons.get(check, "")} == {}
    judged = {"chat", "stream", "arithmetic", "counting", "loop-greedy", "concurrency-16", "speed"}
    assert {rows(report)[check].status for check in judged} == {Status.OK}


def test_a_configured_context_length_is_used() -> None:
    found = rows(run(LlamaCpp(tools=True), max_model_len=2048))
    assert "exceeds the available context" in found["overflow"].observed
    assert "any max_tokens" in found["max-tokens-limit"].reason
    cut = rows(run(Ollama(), max_model_len=2048))["overflow"]
    assert (cut.status, "truncates silently" in cut.observed) == (Status.WARN, True)


def test_llama_cpp_guards_chats_and_not_its_list_of_models() -> None:
    key = "sk-test-0123456789"
    only = {"only": ["key"]}
    found = rows(run(LlamaCpp(key=key), api_key=SecretStr(key), suite=only))["key"]
    assert (found.status, "HTTP 401, with a wrong one HTTP 401" in found.observed) == (Status.OK, True)


def test_several_models_require_a_choice() -> None:
    report = run(Ollama(), model=None, suite={"only": ["identity"]})
    assert report.exit_code == 4
    assert "--model" in rows(report)["identity"].remedy


def test_an_error_in_a_stream_of_http_200_keeps_its_message() -> None:
    found = rows(run(SGLangRefusesInStream(), suite={"only": ["stream"]}))["stream"]
    assert found.status is Status.FAIL
    assert "Requested token count" in found.observed
