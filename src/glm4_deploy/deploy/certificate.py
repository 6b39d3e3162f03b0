"""What was proved of a release, in one document: an in-toto statement, signed in a DSSE envelope with an SSH key.

in-toto: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
DSSE: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md (the signature is over its PAE)
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glm4_deploy import __version__
from glm4_deploy.deploy.releases import CERTIFICATE, PRIVATE, REPORT, Release, Store, ValueChange
from glm4_deploy.deploy.signing import check_signed, sign_text
from glm4_deploy.deploy.state import load_record
from glm4_deploy.detect.thresholds import MEASURED
from glm4_deploy.errors import DeployError, Judged, UsageError
from glm4_deploy.files import read_bytes, read_text, write_text
from glm4_deploy.report.wire import dumps, to_wire
from glm4_deploy.result import Status

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://glm4-deploy.example/certificate/v1"  # an identifier, as in-toto wants one; nothing is fetched
PAYLOAD = "application/vnd.in-toto+json"
NAMESPACE = "glm4-deploy-certificate"


def serving_release(directory: Path) -> Release:
    """The good release that this directory brought up last.

    Raises:
        UsageError: there is none.
    """
    store, record = Store(directory), load_record(directory)
    release = next((one for one in store.releases() if record is not None and one.id == record.release), None)
    if release is None or not release.good:
        raise UsageError("no good release is in service here, so there is nothing to certify", hint="glm4-deploy up")
    return release


def statement(release: Release, directory: Path, report: Path | None = None) -> dict[str, Any]:
    """The in-toto statement about a release.

    Args:
        directory: the state directory.
        report: a `smoke --json` of the same endpoint, whose rows replace those of the gate.

    Raises:
        UsageError: the report cannot be read, or is about another endpoint.
    """
    kept = _read_json(Store(directory).root / release.id / REPORT)
    rows, suite = kept.get("results", []), "gate"
    if report is not None:
        measured = _read_json(report)
        place = (measured.get("model"), measured.get("base_url"))
        if place != (release.endpoint.model, release.endpoint.base_url):
            raise UsageError(
                f"{report} is about {place[0]!r} at {place[1]!r}, not about release {release.id}",
                hint="glm4-deploy smoke --suite full --json FILE, while it serves",
            )
        rows, suite = measured.get("results", []), str(measured.get("suite", ""))
    predicate = {
        "kit": __version__,
        "issued": datetime.now(UTC).isoformat(timespec="seconds"),
        "release": {key: getattr(release, key) for key in ("id", "created_at", "kit", "verdict")},
        "endpoint": {key: getattr(release.endpoint, key) for key in ("profile", "model", "max_model_len", "base_url")},
        "image": release.image,
        "checkpoint": {"fingerprint": release.fingerprint, "stamp": release.stamp},
        "engine": release.engine,
        "settings": release.settings,
        "seconds": {"ready": release.ready_seconds, "gate": release.gate_seconds},
        "detector": MEASURED,
        "suite": suite,
        "checks": [_check(row) for row in rows if isinstance(row, dict)],
        # Beside what the engine's log said. They count for no verdict, so they are no checks.
        "plan": [_check(row) for row in kept.get("planned", ()) if isinstance(row, dict)],
    }
    return {"_type": STATEMENT, "subject": _subjects(release), "predicateType": PREDICATE, "predicate": predicate}


def _check(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its evidence, which may quote answers."""
    return {key: row.get(key) for key in ("check", "status", "observed", "expected", "reason", "seconds")}


def _subjects(release: Release) -> list[dict[str, Any]]:
    """What the statement is about: each kept file, the image, the checkpoint and its tokenizer."""
    subjects = [{"name": file.name, "digest": {"sha256": file.sha256}} for file in release.files]
    if release.image is not None:
        subjects.append(
            {"name": release.image.reference, "digest": {"sha256": release.image.id.removeprefix("sha256:")}}
        )
    model = Path(release.endpoint.model_dir)
    subjects.append({"name": model.name, "digest": {"glm4Fingerprint": release.fingerprint or "unknown"}})
    with suppress(DeployError):
        digest = hashlib.sha256(read_bytes(model / "tokenizer.json")).hexdigest()
        subjects.append({"name": f"{model.name}/tokenizer.json", "digest": {"sha256": digest}})
    return subjects


def envelope(statement: dict[str, Any], key: Path | None) -> str:
    """The DSSE envelope as JSON, unsigned without a key.

    Raises:
        UsageError, ExtraMissing: it cannot be signed.
    """
    payload = dumps(statement, indent=None)
    signatures = []
    if key is not None:
        armored = sign_text(_pae(payload), key, NAMESPACE)
        signatures.append({"keyid": "", "sig": base64.b64encode(armored.encode()).decode()})
    body = base64.b64encode(payload.encode()).decode()
    return dumps({"payloadType": PAYLOAD, "payload": body, "signatures": signatures}) + "\n"


def _pae(payload: str) -> str:
    """DSSE's pre-authentication encoding; lengths are in bytes."""
    return f"DSSEv1 {len(PAYLOAD)} {PAYLOAD} {len(payload.encode())} {payload}"


def keep(text: str, release: Release, directory: Path) -> None:
    """Keep a copy with the release, for the pages of later reports. A signed one is replaced only by a signed one.

    Raises:
        StorageError: it cannot be written.
    """
    path = Store(directory).root / release.id / CERTIFICATE
    if not json.loads(text)["signatures"]:
        with suppress(DeployError):
            if read_certificate(path, None).signed:
                return
    write_text(path, text, mode=PRIVATE)


def kept_lines(directory: Path) -> tuple[str, ...]:
    """What the certificate in a release's directory says, for people; () without one, or if it cannot be read."""
    with suppress(DeployError):
        found = read_certificate(directory / CERTIFICATE, None)
        signed = "signed: `glm4-deploy certificate verify` says by whom" if found.signed else "not signed"
        return *found.lines(), signed
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate that was read.

    Attributes:
        signed: whether it has a signature, checked or not.
        signer: who signed it; None: not checked.
    """

    statement: dict[str, Any]
    signed: bool
    signer: str | None = None

    @property
    def predicate(self) -> dict[str, Any]:
        predicate = self.statement["predicate"]
        return predicate if isinstance(predicate, dict) else {}

    def lines(self) -> Iterator[str]:
        """For people."""
        about = self.predicate
        release, endpoint, engine = (about.get(key) or {} for key in ("release", "endpoint", "engine"))
        gated = f"{release.get('verdict')}, {endpoint.get('model')}, gated {release.get('created_at')}"
        yield f"release {release.get('id')}: {gated}"
        for subject in self.statement["subject"]:
            kind, digest = next(iter(subject["digest"].items()))
            yield f"{subject['name']}: {kind} {digest}"
        yield f"vLLM {engine.get('version') or 'unknown'}, NVFP4 kernel {engine.get('kernel') or 'not in the log'}"
        yield f"suite {about.get('suite')}: {', '.join(f'{name} {status}' for name, status in statuses(self).items())}"
        for row in rows_of(self):
            if row.get("check") == "fingerprint":
                yield f"fingerprint: {row.get('observed') or row.get('reason')}"
        for row in _rows(about.get("plan")):
            yield f"{row.get('check')}: {row.get('status')}, {row.get('observed')}; expected: {row.get('expected')}"
        if isinstance(detector := about.get("detector"), dict):
            found = f"{detector.get('found')} of {detector.get('sick')} broken answers of models that it had not seen"
            alarms = f"{detector.get('false_alarms')} false alarms in {detector.get('sound')}"
            yield f"loop detector: found {found}, {alarms} ({detector.get('date')})"
        yield f"issued {about.get('issued')} by glm4-deploy {about.get('kit')}"


def read_certificate(file: Path, signers: Path | None) -> Certificate:
    """Read an envelope; with `signers`, one of them must have signed it. No network is used.

    Raises:
        UsageError: not a certificate.
        Judged: not signed by any of them.
    """
    try:
        content = json.loads(read_text(file))
        if content["payloadType"] != PAYLOAD:
            raise ValueError("another payload type")
        payload = base64.b64decode(content["payload"], validate=True).decode()
        signatures = [base64.b64decode(one["sig"], validate=True).decode() for one in content["signatures"]]
        statement = json.loads(payload)
        sound = statement["_type"] == STATEMENT and statement["predicateType"] == PREDICATE
        if not sound or not all(isinstance(one["digest"], dict) and one["digest"] for one in statement["subject"]):
            raise ValueError("another statement")
        if not isinstance(statement["predicate"], dict):
            raise TypeError("no predicate")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise UsageError(
            f"{file} is not a certificate of this kit: {str(error)[:100]}", hint="check the path"
        ) from None
    if signers is None:
        return Certificate(statement=statement, signed=bool(signatures))
    if not signatures:
        raise Judged(f"{file} is not signed", hint="write it with `glm4-deploy certificate --sign KEY`")
    signer = check_signed(str(file), _pae(payload), signatures[0], signers, NAMESPACE)
    return Certificate(statement=statement, signed=True, signer=signer)


def statuses(certificate: Certificate) -> dict[str, str]:
    """Check → status."""
    return {str(row.get("check")): str(row.get("status")) for row in rows_of(certificate)}


def rows_of(certificate: Certificate) -> list[dict[str, Any]]:
    """The checks, as far as they can be read."""
    return _rows(certificate.predicate.get("checks"))


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def compare(a: Certificate, b: Certificate) -> tuple[tuple[ValueChange, ...], tuple[str, ...]]:
    """What differs from `a` to `b`, and the names of checks that got worse."""
    one, other = ({**_flat(_facts(side.predicate)), **_digests(side)} for side in (a, b))
    changes = [
        ValueChange(group="certificate", name=name, a=one.get(name), b=other.get(name))
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]
    before, after = statuses(a), statuses(b)
    worse = [name for name in before if _rank(after.get(name)) > _rank(before[name])]
    changes += [
        ValueChange(group="check", name=name, a=before.get(name), b=after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    return tuple(changes), tuple(worse)


def _facts(predicate: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in predicate.items() if key not in ("checks", "plan", "issued", "release")}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: leaf for part, item in value.items() for key, leaf in _flat(item, f"{name}.{part}".lstrip(".")).items()
    }


def _digests(certificate: Certificate) -> dict[str, Any]:
    return {f"digest of {one.get('name')}": one["digest"] for one in certificate.statement["subject"]}


_RANK = (Status.OK, Status.WARN, Status.SKIPPED, Status.UNKNOWN, Status.FAIL)


def _rank(status: str | None) -> int:
    """Higher is worse. A check that was not made proves less than one that passed with a warning."""
    with suppress(ValueError):
        return _RANK.index(Status(status or Status.SKIPPED))
    return _RANK.index(Status.UNKNOWN)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {str(error)[:100]}", hint="glm4-deploy smoke --json FILE") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a report", hint="glm4-deploy smoke --json FILE")
    return dict(to_wire(content))
