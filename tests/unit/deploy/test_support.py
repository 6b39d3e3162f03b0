"""The support bundle: nothing that is planted anywhere leaves the host, and what helps others stays."""

import gzip
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import preloaded
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.releases import Files, Release, Store
from glm4_deploy.deploy.state import Record, load_record, save_record
from glm4_deploy.deploy.support import CONTENTS, LOG_BYTES, Masker, Part, secrets_of, write_support_bundle
from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.result import Status

USER, HOST, DOMAIN = "quillfeather", "thundermoss", "thundermoss.acme.lan"
HOME = f"/srv/people/{USER}"
MASKER = {"users": (USER,), "hosts": (DOMAIN,), "homes": (HOME,), "secrets": ("opensesame-77",)}
# Text, and what others see of it.
SEEN = (
    ("key opensesame-77 end", "key [redacted] end"),
    ('{"key": "x", "note": "a\\nopensesame-77"}', '"a\\n[redacted]"'),
    (f"model {HOME}/models/glm", "model HOME-1/models/glm"),
    ("/home/robin/x and /Users/Robin B/x", "HOME-1/x and HOME-2 B/x"),
    (f"{USER}@{HOST}:~$ ls", "USER-1@HOST-1:~$ ls"),
    (f"ran by {USER.title()} on {DOMAIN}, {HOST.upper()}", "ran by USER-1 on HOST-1, HOST-2"),
    (f'{{"log": "up\\n{USER} on\\t{HOST}"}}', '{"log": "up\\nUSER-1 on\\tHOST-1"}'),
    (f"\x1b[32m{USER}\x1b[0m \\u001b[36m{HOST}\\u001b[0m", "USER-1 HOST-1"),
    ("mail robin@corp.test, git clone git@vault.corp.test:x", "mail EMAIL-1, git clone EMAIL-2:x"),
    ("10.0.0.5:8000 10.0.0.6 10.0.0.5/24 --bind=10.0.0.6", "IP-1:8000 IP-2 IP-1/24 --bind=IP-2"),
    ('"a\\n192.168.4.4 \\u001b[1m192.168.4.5"', '"a\\nIP-1 IP-2"'),
    ("fe80::1ff:fe23:4567:890a 2001:db8::7 [2001:db8::7]:80", "IP-1 IP-2 [IP-2]:80"),
    ("ether 02:42:ac:11:00:02 on 02-42-ac-11-00-03", "ether MAC-1 on MAC-2"),
    ("device GPU-0f1e2d3c-aaaa-bbbb-cccc-0123456789ab", "device GPU-1"),
    ("http://proxy.acme.test:3128 https://box7/v1 http://box7:80", "http://HOST-1:3128 https://HOST-2/v1 http://HOST-2:80"),
    ("'registry.acme.test:5000/vllm:1.2' cr.acme.io/x@sha256:0f", "'HOST-1:5000/vllm:1.2' HOST-2/x@sha256:0f"),
    ("node ip-10-0-3-4 joined box9.internal.", "node HOST-1 joined HOST-2."),
)  # fmt: skip
# What helps others and names nobody.
KEPT = (
    "http://127.0.0.1:8080/v1 on 0.0.0.0, localhost and ::1",
    "vLLM 0.24.0, driver 580.95.05, cudnn==9.1.0.70, kernel 5.15.167.4-microsoft-standard-WSL2",
    "2026-11-28 14:06:11.123 std::vector<at::Tensor> c10::Error PCI 00000000:01:00.0",
    "https://docs.vllm.ai/en and https://github.com/vllm-project/vllm/issues/1, nvcr.io/nvidia/vllm:26.01-py3",
    "http://prometheus:9090, /opt/vllm.egg/core.py:12, conf.yaml/x, module.py:12, vllm/v1/core.py:1231",
    "http://glm4-engine-0:8000/health of host.docker.internal; torch._C._internal, threading.local()",
    "sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0",
)


@pytest.mark.parametrize(("text", "seen"), SEEN)
def test_names_addresses_and_secrets_are_masked(text: str, seen: str) -> None:
    masker = Masker(**MASKER)
    assert seen in masker.mask(text)
    assert sum(masker.counts.values()) > 0


@pytest.mark.parametrize("text", KEPT)
def test_what_helps_others_stays(text: str) -> None:
    assert Masker(**MASKER, keep=("glm4-engine-0",)).mask(text) == text


def test_a_name_is_the_same_in_every_text() -> None:
    masker = Masker(hosts=("first-box", "second-box"))
    assert masker.mask("second-box 10.1.1.2 10.1.1.1") == "HOST-1 IP-1 IP-2"
    assert masker.mask("first-box second-box 10.1.1.1") == "HOST-2 HOST-1 IP-2"
    assert dict(masker.counts) == {"secret": 0, "host": 3, "ip": 3}


def test_an_ordinary_word_as_a_name_does_not_garble_the_text() -> None:
    assert Masker(users=("root", "vllm", "a"), hosts=("spark", "gpu")).mask("root vllm a spark gpu") == (
        "root vllm a spark gpu"
    )


def test_secrets_are_found_at_any_depth_of_a_document() -> None:
    content = {"services": {"a": {"environment": ["HF_TOKEN=one-two", "X=y"]}, "b": {"env": {"DB_PASSWORD": 123456}}}}
    assert set(secrets_of(content)) == {"one-two", "123456"}


def members(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.removeprefix("glm4-support/")] = file.read().decode()
        return found


def raising(error: Exception) -> Callable[[], str]:
    def read() -> str:
        raise error

    return read


def test_a_part_that_cannot_be_had_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    parts = (
        Part(name="a.txt", read=lambda: "alpha\n"),
        Part(name="b.txt", read=raising(UsageError(f"no file on {HOST}"))),
        Part(name="c.txt", read=raising(ZeroDivisionError("division"))),
        Part(name="d.txt", read=lambda: " \n"),
        Part(name="e.txt", read=lambda: "omega\n"),
    )
    written = write_support_bundle(path, parts, Masker(**MASKER))
    assert list(members(path)) == [CONTENTS, "a.txt", "e.txt"]
    assert written.missing == {
        "b.txt": "no file on HOST-1", "c.txt": "ZeroDivisionError: division", "d.txt": "it is empty",
    }  # fmt: skip
    assert "not included: no file on HOST-1" in members(path)[CONTENTS]
    assert written.masked == {"host": 1}
    assert path.stat().st_size == written.size
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_support_bundle(tmp_path / name, (Part(name="a.txt", read=lambda: "alpha"),), Masker())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_long_log_keeps_its_beginning_and_end_within_the_limit(tmp_path: Path) -> None:
    lines = [f"line {number} of opensesame-77 {'x' * 60}" for number in range(200_000)]
    path = tmp_path / "x"
    write_support_bundle(path, (Part(name="a.log", read=lambda: "\n".join(lines), limit=LOG_BYTES),), Masker(**MASKER))
    log = members(path)["a.log"]
    assert len(log.encode()) <= LOG_BYTES
    assert log.startswith("line 0 of [redacted]")
    assert f"line {len(lines) - 1} of [redacted]" in log
    assert "sesame" not in log


def test_an_archive_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_support_bundle(tmp_path / "file/x", (Part(name="a", read=lambda: "b"),), Masker())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# The command, on a deployment with canaries in everything that it reads.

CANARIES = {
    "environment": "env-canary-4711", "dotenv": "dotenv-canary-4712", "settings": "yaml-canary-4713",
    "compose": "compose-canary-4714", "key": "key-canary-4715", "user": USER, "host": HOST, "ip": "10.77.66.55",
    "mac": "02:42:ac:99:88:77", "prompt": "prompt-canary-4716",
}  # fmt: skip


def deployment(directory: Path) -> None:
    """Everything that the command reads, with all canaries in every file."""
    line = " ".join(value for name, value in CANARIES.items() if name != "prompt")
    log = (
        "INFO 11-28 08:00:00 [api_server.py:1] vLLM API server version 0.13.0\n"
        f"INFO 11-28 08:00:01 [logger.py:1] Received request 1: prompt: '{CANARIES['prompt']}'\n"
        f"ERROR 11-28 08:00:02 [core.py:1] ValueError: No available memory for the cache blocks. {line} in {HOME}/x\n"
    )
    state = directory / ".glm4"
    state.mkdir()
    (directory / "key").write_text(CANARIES["key"] + "\n")
    (directory / ".env").write_text(f"GATEWAY_PASSWORD={CANARIES['dotenv']}\n")
    (directory / "glm4.yaml").write_text(
        f"profile: cpu\nmodel_dir: {HOME}/models\nbind: {CANARIES['ip']}\n"
        f"env: {{HF_TOKEN: {CANARIES['settings']}, NOTE: '{line}'}}\n"
    )
    compose = f"services:\n  vllm:\n    environment: [DB_PASSWORD={CANARIES['compose']}, 'NOTE={line}']\n"
    (state / "compose.yaml").write_text(compose)
    (state / "failed.log").write_text(log + "later\n")
    endpoint = Endpoint(
        runner=EngineKind.PROCESS, project="glm4", service="engine", profile="cpu", bind=CANARIES["ip"], port=1,
        base_url=f"http://{HOST}:1", model="m", model_dir=f"{HOME}/models", max_model_len=512, start_period=1,
        api_key_file=str(directory / "key"),
    )  # fmt: skip
    save_record(Record(endpoint=endpoint, files=(str(state / "compose.yaml"),), verdict=Status.FAIL), state)
    store = Store(state)
    draft = store.draft(Files(texts={"compose.yaml": compose}, compose=("compose.yaml",)))
    release = Release(
        id=store.next_id(), created_at="2026-11-28", kit="0.1.0", verdict=Status.FAIL, reason=f"died on {line}",
        endpoint=endpoint, image=None, fingerprint=None, stamp=None, files=draft.files,
        settings={"profile": "cpu", "model_dir": f"{HOME}/models", "env": {"NOTE": line}}, engine={"version": "0.13.0"},
    )  # fmt: skip
    draft.publish(release, {"boot.log": log, "smoke.json": json.dumps({"note": f"a\n{line}"})})


def command(directory: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return preloaded.run("support-bundle", *words, cwd=directory)


@pytest.fixture
def _this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user, a host and a home directory that are found in everything that is planted."""
    for name, value in {"USER": USER, "HOSTNAME": HOST, "HOME": HOME}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PWD", "/models")  # named like a password
    monkeypatch.setenv("SOME_API_KEY", CANARIES["environment"])
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")


@pytest.mark.usefixtures("_this_host")
def test_no_canary_leaves_the_host(tmp_path: Path) -> None:
    deployment(tmp_path)
    done = command(tmp_path, "-o", "out.tar.gz")
    assert done.returncode == 0, done.stderr
    raw = gzip.decompress((tmp_path / "out.tar.gz").read_bytes())
    found = members(tmp_path / "out.tar.gz")
    for name, canary in CANARIES.items():
        where = [member for member, text in found.items() if canary in text]
        assert (name, where, canary.encode() in raw) == (name, [], False)
    for name in ("doctor.json", "plan.txt", "status.txt", "diagnose.txt", "releases.json", "settings.yaml",
                 "compose-1.yaml", "boot.log", "failed.log", "smoke.json", "versions.json"):  # fmt: skip
        assert name in found or f"{name:16} not included: " in found[CONTENTS], name
    for name in ("releases.json", "settings.yaml", "compose-1.yaml", "boot.log", "failed.log", "smoke.json"):
        assert "HOST-1" in found[name] or "HOME-1" in found[name], name
    assert "No available memory for the cache blocks" in found["boot.log"]
    assert '"vllm_in_log": "0.13.0"' in found["versions.json"]
    assert "root cause: no-kv-room" in found["diagnose.txt"]
    assert "Look through it before you share it" in done.stdout
    assert "× secret" in done.stdout and "× mac" in done.stdout
    assert done.stdout.startswith(found[CONTENTS])


@pytest.mark.usefixtures("_this_host")
def test_without_a_deployment_it_is_written_too(tmp_path: Path) -> None:
    done = command(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert {"versions.json", "doctor.json"} <= set(written["members"])
    assert "/models/glm-4-9b-chat-hf-nvfp4" in members(tmp_path / "glm4-support.tar.gz")["doctor.json"]
    assert written["missing"]["boot.log"] == "no start of this deployment is recorded"
    assert not (tmp_path / ".glm4").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["glm4-support.tar.gz"]


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    done = command(tmp_path, "-o", "/proc/x.tar.gz")
    assert (done.returncode, "cannot write /proc/x.tar.gz" in done.stderr) == (18, True)


def test_links_pipes_and_files_of_others_are_not_taken_along(tmp_path: Path) -> None:
    state = tmp_path / ".glm4"
    deployment(tmp_path)
    for name in ("private", "passwords.txt"):
        (tmp_path / name).write_text("owner: private-canary\n")
    (state / "failed.log").unlink()
    (state / "failed.log").symlink_to(tmp_path / "private")
    os.mkfifo(tmp_path / "pipe")
    record = load_record(state)
    assert record is not None
    files = (str(tmp_path / "passwords.txt"), str(tmp_path / "pipe"), str(state / "compose.yaml"))
    save_record(replace(record, files=files), state)
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    found = members(tmp_path / "glm4-support.tar.gz")
    assert not [name for name, text in found.items() if "private-canary" in text]
    assert "failed.log is a link" in found[CONTENTS]
    assert "passwords.txt is not a Compose file" in found[CONTENTS]
    assert "there is no file pipe" in found[CONTENTS]
    assert "compose-3.yaml" in found
