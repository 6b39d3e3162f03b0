"""`glm4-deploy explain`: the reference pages inside the tool, out of the same catalogues."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic.fields import FieldInfo

from glm4_deploy.catalog.rows import metric_rows, mistaken_variables, profiles, signatures, symptoms, variables
from glm4_deploy.cli.completion import explained_names
from glm4_deploy.cli.params import FLAGS, SPELLED, Json
from glm4_deploy.errors import DeployError, UsageError
from glm4_deploy.probe.suite import checks
from glm4_deploy.report.wire import dumps
from glm4_deploy.settings import ENV_PREFIX, Kubernetes, Settings, limits
from glm4_deploy.text import did_you_mean, one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One thing that a name stands for. facts: label → text, in order."""

    kind: str
    name: str
    summary: str
    facts: dict[str, str]


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="CODE|CHECK|SETTING|SIGNATURE|…",
            help="An exit code, or the name of a check, setting, profile, variable, known failure or symptom.",
            autocompletion=explained_names,
        ),
    ],
    json_: Json = False,
) -> None:
    """Explain a name: an exit code, check, setting, profile or known failure.

    Example: glm4-deploy explain max_num_seqs
    """
    wanted = name.strip().removeprefix(ENV_PREFIX) if name.startswith(ENV_PREFIX) else name.strip().lstrip("-")
    known = list(everything())
    spellings = {wanted, wanted.lower(), wanted.lower().replace("-", "_")}
    found = [one for one in known if one.name in spellings or one.name.lower() in spellings]
    if not found:
        suggestion = did_you_mean(wanted.lower(), dict.fromkeys(one.name for one in known))
        raise UsageError(
            f"nothing here is called {one_line(name, 60)!r}",
            hint=suggestion or "exit codes, checks, settings, profiles and known failures have names: docs/reference",
        )
    if json_:
        typer.echo(dumps([{"kind": one.kind, "name": one.name, "summary": one.summary, **one.facts} for one in found]))
        return
    typer.echo("\n\n".join("\n".join(_lines(one)) for one in found))


def _lines(one: Explained) -> Iterator[str]:
    yield f"{one.kind} {one.name}: {one.summary}"
    for label, text in one.facts.items():
        if text:
            yield f"  {label:10} {one_line(text, 2000)}"


def everything() -> Iterator[Explained]:
    """All that has a name."""
    for error in sorted(_errors(DeployError), key=lambda one: one.exit_code):
        yield Explained(kind="exit code", name=str(error.exit_code), summary=error.meaning, facts={})
    for key, field in Settings.model_fields.items():
        yield _setting(key, field)
    for key, field in Kubernetes.model_fields.items():
        yield _setting(f"kubernetes.{key}", field)
    for check in checks().values():
        suites = ", ".join(sorted(check.suites))
        facts = {"suites": suites, "needs": ", ".join(check.needs), "takes": f"about {check.seconds:g} s on a GPU"}
        yield Explained(kind="check", name=check.id, summary=check.proves, facts=facts)
    for profile in profiles().values():
        chosen = {
            key: f"{value}; {profile.reasons.get(key, '')}".rstrip("; ") for key, value in profile.settings.items()
        }
        yield Explained(kind="profile", name=profile.name, summary=profile.summary, facts=chosen)
    for variable in variables().values():
        facts = {"set to": variable.value, "engines": ", ".join(variable.engines)}
        yield Explained(kind="variable", name=variable.name, summary=variable.read_by, facts=facts)
    for wrong, meant in mistaken_variables().items():
        yield Explained(kind="variable", name=wrong, summary=f"read by nothing; {meant} is meant", facts={})
    for row in signatures():
        facts = {
            "severity": row.severity,
            "do": row.fix,
            "where": row.where,
            "looks like": row.example,
            "seen": row.source,
        }
        yield Explained(kind="known failure", name=row.id, summary=row.cause, facts=facts)
    for symptom in symptoms():
        if symptom.cause:
            facts = {"people say": "; ".join(symptom.says), "do": symptom.fix, "seen": symptom.source}
            yield Explained(kind="symptom", name=symptom.id, summary=symptom.cause, facts=facts)
    for metric in metric_rows():
        facts = {
            "limit": f"{metric.value}: {metric.limit:g}",
            "because": metric.why,
            "do": metric.fix,
            "seen": metric.source,
        }
        yield Explained(kind="counter", name=metric.id, summary=metric.cause, facts=facts)


def _errors(family: type[DeployError]) -> Iterator[type[DeployError]]:
    yield family
    for child in family.__subclasses__():
        yield from _errors(child)


def _setting(key: str, field: FieldInfo) -> Explained:
    default = field.get_default(call_default_factory=True)
    places = [f"glm4.yaml: {key}", f"{ENV_PREFIX}{key.upper()}" if "." not in key else "", f"--set {key}=VALUE"]
    if key in FLAGS:
        places.insert(0, SPELLED.get(key, f"--{key.replace('_', '-')}"))
    by_profile = ", ".join(f"{row.name} {row.settings[key]}" for row in profiles().values() if key in row.settings)
    facts = {
        "range": ", ".join(limits(field)),
        "default": "" if default in (None, (), {}) else str(default),
        "profiles": by_profile,
        "set by": " · ".join(filter(None, places)),
    }
    return Explained(kind="setting", name=key, summary=field.description or "", facts=facts)
