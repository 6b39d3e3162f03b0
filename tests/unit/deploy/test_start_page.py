"""The page of a start of several engines: each was asked the gate's checks, and none of them was left out."""

from pathlib import Path

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.outcome import StartResult
from glm4_deploy.deploy.page import start_page
from glm4_deploy.deploy.releases import Release, Store
from glm4_deploy.probe.questions import Must, UserQuestion
from glm4_deploy.probe.suite import checks, claims
from glm4_deploy.report_model import Suite, SuiteReport
from glm4_deploy.result import Status, ok

OWN = UserQuestion(name="capital", prompt="What is the capital of France?", must=Must(contains=("Paris",)))


def asked(*questions: UserQuestion) -> SuiteReport:
    """A run at one address."""
    return SuiteReport(
        suite=Suite.GATE, base_url="http://127.0.0.1:8080", model="glm-4-9b-chat", started="", seconds=1.0, results=(),
        verdict=Status.OK, exit_code=0, covered="", proves=claims(questions),
    )  # fmt: skip


def test_a_check_of_any_replica_counts_as_asked_and_says_what_it_proves(tmp_path: Path) -> None:
    endpoint, store = Endpoint.of(resolve_spec({}), EngineKind.COMPOSE), Store(tmp_path)
    release = Release(
        id="0001-x", created_at="", kit="0", verdict=Status.OK, endpoint=endpoint, image=None, fingerprint=None,
        stamp=None, files=(), settings={}, engine={},
    )  # fmt: skip
    names = ("glm4-1/alive", "glm4-1/chat", "glm4-1/question-capital", "glm4-10/alive", "router/alive")
    start = StartResult(endpoint=endpoint, files=(), results=tuple(ok("as expected", check=name) for name in names))
    page = start_page(store, release, start, (asked(OWN), asked(OWN), asked()), frozenset())
    missing = len(checks()) - 2
    assert f"5 of {5 + missing} checks judged; {missing} not in this run." in page
    assert f"your question capital: {OWN.expected}" in page.replace("&#34;", '"').replace("&#39;", "'")
