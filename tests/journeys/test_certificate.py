"""A certificate says what was proved of the release in service, who signed it, and what got worse since another."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from journeys.kit import Kit

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")


def keys(directory: Path) -> tuple[Path, Path]:
    """A private key, and the allowed_signers file that names its owner."""
    key, signers = directory / "key", directory / "signers"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers.write_text(f"ops@example.org {key.with_suffix('.pub').read_text()}")
    return key, signers


def test_it_is_signed_verified_offline_and_compared(kit: Kit) -> None:
    key, signers = keys(kit.directory)
    early = kit.run("certificate")
    assert early.code == 2
    assert "nothing to certify" in early.err

    release = kit.good_release()
    assert kit.run("certificate", "--sign", key, "-o", "a.json").code == 0
    shown = kit.run("certificate", "verify", "a.json", "--signers", signers)
    assert shown.code == 0, shown.err
    assert f"release {release}: ok" in shown.out or f"release {release}: warn" in shown.out
    assert "signed by ops@example.org" in shown.out
    assert "arithmetic ok" in shown.out
    assert "vLLM 0.32.0, NVFP4 kernel FlashInferCutlass" in shown.out

    envelope = json.loads((kit.directory / "a.json").read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert any(one["name"].endswith("tokenizer.json") for one in statement["subject"])
    assert statement["predicate"]["settings"]["port"] == kit.port

    (kit.directory / "elsewhere").mkdir()
    other, _ = keys(kit.directory / "elsewhere")
    other_signers = kit.directory / "other"
    other_signers.write_text(f"eve@example.org {other.with_suffix('.pub').read_text()}")
    refused = kit.run("certificate", "verify", "a.json", "--signers", other_signers)
    assert refused.code == 1
    assert "not signed by anybody" in refused.err

    statement["predicate"]["checks"][-1]["status"] = "fail"
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (kit.directory / "forged.json").write_text(json.dumps(envelope))
    forged = kit.run("certificate", "verify", "forged.json", "--signers", signers)
    assert forged.code == 1
    assert "the signature does not match" in forged.err

    assert kit.run("certificate", "diff", "a.json", "a.json").out == "they certify the same\n"
    worse = kit.run("certificate", "diff", "a.json", "forged.json")
    assert worse.code == 1
    assert f"worse: {statement['predicate']['checks'][-1]['check']}" in worse.err


def test_what_is_no_certificate_gets_one_error(kit: Kit) -> None:
    for text in ("", "[]", "{}", '{"payloadType": "application/vnd.in-toto+json", "payload": "!", "signatures": []}'):
        (kit.directory / "x.json").write_text(text)
        done = kit.run("certificate", "verify", "x.json")
        assert done.code == 2, done.err
        assert "is not a certificate of this kit" in done.err


def test_a_report_of_another_endpoint_is_refused(kit: Kit) -> None:
    kit.good_release()
    (kit.directory / "full.json").write_text('{"model": "other", "base_url": "http://x", "results": []}')
    done = kit.run("certificate", "--report", "full.json", "-o", "a.json")
    assert done.code == 2
    assert "is about 'other'" in done.err
    assert not (kit.directory / "a.json").exists()
    assert kit.run("smoke", "--json", "full.json").code == 0
    assert kit.run("certificate", "--report", "full.json", "-o", "a.json").code == 0
    assert "suite quick" in kit.run("certificate", "verify", "a.json").out
