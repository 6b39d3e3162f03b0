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
    kept = kit.directory / ".glm4/releases" / release / "smoke.json"  # a CPU has no plan, so it gets a row of one
    row = {"check": "plan-kv-cache", "status": "warn", "expected": "± 0.9 GiB"}
    row["observed"] = "60.3 GiB (planned 58.1, +3.8 %)"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"planned": [row]}))
    assert kit.run("certificate", "--sign", key, "-o", "a.json").code == 0
    shown = kit.run("certificate", "verify", "a.json", "--signers", signers)
    assert shown.code == 0, shown.err
    assert f"release {release}: ok" in shown.out or f"release {release}: warn" in shown.out
    assert "signed by ops@example.org" in shown.out
    assert "arithmetic ok" in shown.out
    assert "vLLM 0.32.0, NVFP4 kernel FlashInferCutlass" in shown.out
    assert "plan-kv-cache: warn, 60.3 GiB (planned 58.1, +3.8 %); expected: ± 0.9 GiB" in shown.out
    assert "loop detector: found 25 of 94 broken answers of models" in shown.out

    envelope = json.loads((kit.directory / "a.json").read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert any(one["name"].endswith("tokenizer.json") for one in statement["subject"])
    assert statement["predicate"]["settings"]["port"] == kit.port

    assert kit.run("smoke", "--only", "alive", "--html", "page.html").code == 0
    page = (kit.directory / "page.html").read_text()
    assert "<h2>Certificate</h2>" in page
    assert "signed: `glm4-deploy certificate verify` says by whom" in page
    assert all(digest in page for one in statement["subject"] for digest in one["digest"].values())

    (kit.directory / "elsewhere").mkdir()
    other, _ = keys(kit.directory / "elsewhere")
    other_signers = kit.directory / "other"
    other_signers.write_text(f"eve@example.org {other.with_suffix('.pub').read_text()}")
    refused = kit.run("certificate", "verify", "a.json", "--signers", other_signers)
    assert refused.code == 1
    assert "not signed by anyone" in refused.err

    statement["predicate"]["checks"][-1]["status"] = "fail"
    forged_payload = base64.b64encode(json.dumps(statement).encode()).decode()
    assert kit.run("certificate", "--sign", key, "-o", "b.json").code == 0
    of_another = json.loads((kit.directory / "b.json").read_text())["signatures"]
    for name, changed, said in (
        ("forged", {"payload": forged_payload}, "the signature does not match"),
        ("stripped", {"signatures": []}, "is not signed"),
        ("borrowed", {"payload": forged_payload, "signatures": of_another}, "the signature does not match"),
        ("garbled", {"signatures": [{"keyid": "", "sig": "AAAA"}]}, "not signed by anyone"),
    ):
        (kit.directory / f"{name}.json").write_text(json.dumps(envelope | changed))
        tampered = kit.run("certificate", "verify", f"{name}.json", "--signers", signers)
        assert tampered.code == 1
        assert said in tampered.err
        assert tampered.out == ""

    assert kit.run("certificate", "diff", "a.json", "a.json").out == "they certify the same\n"
    worse = kit.run("certificate", "diff", "a.json", "forged.json")
    assert worse.code == 1
    assert f"worse: {statement['predicate']['checks'][-1]['check']}" in worse.err


def test_the_copy_that_is_kept_stays_signed_and_never_ends_a_look(kit: Kit) -> None:
    key, _ = keys(kit.directory)
    release = kit.good_release()
    copy = kit.directory / ".glm4/releases" / release / "certificate.json"

    assert json.loads(kit.run("certificate").out)["signatures"] == []
    assert copy.exists()
    signed = kit.run("certificate", "--sign", key).out
    assert copy.read_text() == signed
    assert json.loads(kit.run("certificate").out)["signatures"] == []
    assert copy.read_text() == signed

    copy.unlink()
    copy.mkdir()  # it cannot be written
    looked = kit.run("certificate", "-o", "a.json")
    assert looked.code == 0
    assert "warning: no copy was kept with the release" in looked.err
    assert kit.run("certificate", "verify", "a.json").code == 0


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
