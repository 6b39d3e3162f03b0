"""Files that a stranger may have written: checkpoints, bundles, and the state directory of a cloned repository."""

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from checkpoints import DATA as CHECKPOINT
from fuzz.harness import EXAMPLES, ODD, attempt, fuzzed, mutated
from glm4_deploy.catalog.rows import parse_version
from glm4_deploy.checkpoint.header import HeaderFault, MalformedJsonError, parse_header, parse_object, parse_tokenizer
from glm4_deploy.checkpoint.model import BadConfigError, NotPlannedError, stored_model
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.deploy.bundle import META, SUMS, verify_bundle
from glm4_deploy.deploy.compose_cli import images_of, made_from, mounts_beside
from glm4_deploy.deploy.inspection import MARK, read_answer
from glm4_deploy.deploy.keys import load_keys
from glm4_deploy.deploy.plan_check import _kept_free, load_observations
from glm4_deploy.deploy.releases import RECORD, Damaged, Store, compare_releases
from glm4_deploy.deploy.state import JOURNAL_FILE, describe_journal, load_record
from glm4_deploy.errors import StorageError
from glm4_deploy.probe.limits import read_baseline
from glm4_deploy.report.wire import dumps
from glm4_deploy.result import Status

FEWER = settings(fuzzed, max_examples=max(EXAMPLES // 4, 10))  # each example reads a whole checkpoint
DOCUMENTS = {name: json.loads((CHECKPOINT / name).read_text()) for name in
             ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")}  # fmt: skip
_BLOB = (CHECKPOINT / "model.safetensors").read_bytes()
_START = 8 + struct.unpack("<Q", _BLOB[:8])[0]
HEADER = json.loads(_BLOB[8:_START])
INDEX = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": "model.safetensors"}}
JSON = st.one_of(ODD, st.recursive(ODD, lambda inner: st.lists(inner, max_size=3), max_leaves=4), st.none())
DEEP = [
    "[" * 50_000,
    '{"a":' * 50_000,
    '{"a":' * 5_000 + "1" + "}" * 5_000,
    "1" * 5_000,
    '{"a": 1e400}',
    "\ufeff{}",
    "",
]


def dump(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", errors="surrogatepass")


def parsed(data: bytes) -> None:
    for parse in (parse_object, parse_tokenizer):
        try:
            assert isinstance(parse(data), dict)
        except MalformedJsonError as error:
            assert len(str(error)) < 2000


def headed(raw: bytes, size: int) -> None:
    try:
        header = parse_header(raw, size=size, shard="model.safetensors")
    except HeaderFault as error:
        assert len(str(error)) < 2000
        return
    assert all(tensor.elements >= 0 for tensor in header.tensors)


@fuzzed
@given(st.one_of(st.text(max_size=40), st.just('["0.13.0", true]'), st.just("[5, true]"), st.just("[" * 5000)))
@example("{}")
@example('["' + "9" * 9000 + '", true]')
def test_an_image_may_print_anything(said: str) -> None:
    answer = attempt(read_answer, f"noise\n{MARK}{said}\n")
    assert answer is None or (isinstance(answer[0], str | None) and len(answer[0] or "") <= 400)


@fuzzed
@given(st.text("v0123456789.+rc²٣", max_size=30))
@example("1." + "9" * 9000)
def test_any_text_is_a_version_or_refused(text: str) -> None:
    attempt(parse_version, text)


@pytest.mark.parametrize(
    "block",
    [
        "{kit: !!binary aGk=}",
        "{kit: !!set {a, b}}",
        "{? !!binary aGk= : 2}",
        "{kit: 2026-01-01}",
        "[1]",
        "&a {kit: *a}",
        "x",
    ],
)
def test_what_a_foreign_file_says_it_was_made_from_can_be_reported(block: str) -> None:
    said = attempt(made_from, [f"x-glm4-deploy: {block}\nservices: {{}}\n"])
    json.dumps(said, allow_nan=False)


@fuzzed
@given(mutated(HEADER) | JSON, st.sampled_from([len(_BLOB), 0, 10**15]))
def test_a_header_is_read_or_is_one_fault(header: Any, size: int) -> None:
    attempt(headed, dump(header), size)


@fuzzed
@given(st.binary(max_size=300) | st.sampled_from(DEEP).map(str.encode))
def test_any_bytes_are_an_object_or_one_fault(data: bytes) -> None:
    attempt(parsed, data)
    attempt(headed, data, len(data) + 8)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


@FEWER
@given(st.data())
def test_a_checkpoint_with_any_documents_is_judged(copied: Path, data: st.DataObject) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    name = data.draw(st.sampled_from([*DOCUMENTS, "model.safetensors", "model.safetensors.index.json"]))
    if name == "model.safetensors":
        header = dump(data.draw(mutated(HEADER)))
        content = struct.pack("<Q", len(header)) + header + _BLOB[_START:]
    else:
        whole = DOCUMENTS.get(name, INDEX)
        content = data.draw(st.one_of(mutated(whole).map(dump), JSON.map(dump), st.sampled_from(DEEP).map(str.encode)))
    (copied / name).write_bytes(content)
    try:
        report = attempt(verify_checkpoint, copied)
        assert report is not None
        assert report.verdict in tuple(Status)
        attempt(planned, copied)
    finally:
        for path in copied.iterdir():
            path.unlink()
        for file, old in before.items():
            (copied / file).write_bytes(old)


def planned(directory: Path) -> None:
    try:
        stored_model("x", read_checkpoint(directory))
    except (NotPlannedError, BadConfigError) as error:
        assert str(error)


# The state directory: what a cloned repository may bring along.

TEXT = "services: {}\n"
RELEASE: dict[str, Any] = {
    "schema": 2, "id": "0001-20260101T000000Z", "created_at": "2026-01-01", "kit": "0", "verdict": "ok", "reason": "",
    "restores": "", "image": {"reference": "a:b", "id": "sha256:0", "digest": None}, "fingerprint": "f", "stamp": "s",
    "files": [{"name": "compose.yaml", "sha256": hashlib.sha256(TEXT.encode()).hexdigest(), "compose": 0}],
    "settings": {"port": 1, "env": {"A": "b"}}, "engine": {"vllm": "1"}, "phases": {"ready": 1.0}, "ready_seconds": 1.0,
    "gate_seconds": 1.0,
    "endpoint": {
        "runner": "compose", "project": "p", "service": "s", "profile": "cpu", "base_url": "http://127.0.0.1:1",
        "bind": "127.0.0.1", "port": 1, "model": "m", "model_dir": "/m", "max_model_len": 1, "start_period": 10,
        "logs_requests": True, "vllm": [0, 13, 0], "api_key_file": None, "replicas": [],
    },
}  # fmt: skip
OLD_RELEASE = {**{key: value for key, value in RELEASE.items() if key != "endpoint"}, "schema": 1,
               "service": RELEASE["endpoint"]}  # fmt: skip
STATE: dict[str, Any] = {
    "up.json": {"schema": 2, "endpoint": RELEASE["endpoint"], "files": [".glm4/compose.yaml"], "verdict": "ok",
                "started": {"id": "1", "started_at": 1.0}, "ready_seconds": 1.0, "release": "0001"},
    JOURNAL_FILE: {"schema": 1, "what": "up", "stage": "start", "pid": 1, "at": "now", "good": "x", "unjudged": True},
    "keys.json": {"schema": 1, "keys": [{"name": "a", "rate": 1, "created": "x", "sha256": "0", "paths": ["models"]}]},
    "observations.json": {"schema": 1, "observations": [
        {"gpu": "gb10", "vllm": "0.13", "weights": "nvfp4", "first_start": True, "overhead_gib": 1.0}]},
    "free.json": {"schema": 1, "free_bytes": 1},
    "baseline.json": {"schema": 1, "perplexity": {"a": 1.5}},
}  # fmt: skip
READERS: dict[str, Any] = {
    "up.json": load_record, "keys.json": load_keys, "observations.json": load_observations, "free.json": _kept_free,
    JOURNAL_FILE: lambda directory: safe(describe_journal(directory, at_work=False)[0]),
    "baseline.json": lambda directory: read_baseline(directory / "baseline.json"),
}  # fmt: skip


def safe(line: str) -> None:
    assert "\x1b" not in line
    assert len(line) < 2000


def test_the_samples_are_read(tmp_path: Path) -> None:
    for name, whole in STATE.items():
        (tmp_path / name).write_text(json.dumps(whole))
        READERS[name](tmp_path)
    assert load_record(tmp_path) is not None
    assert len(load_keys(tmp_path)) == len(load_observations(tmp_path)) == 1
    for whole in (RELEASE, OLD_RELEASE):
        store = released(tmp_path, json.dumps(whole))
        assert store.files_of(store.find("1")).texts == {"compose.yaml": TEXT}


def released(directory: Path, record: str) -> Store:
    store = Store(directory)
    place = store.root / RELEASE["id"]
    place.mkdir(parents=True, exist_ok=True)
    (place / RECORD).write_bytes(record.encode("utf-8", errors="surrogatepass"))
    (place / "compose.yaml").write_text(TEXT)
    return store


@fuzzed
@given(st.sampled_from(list(STATE)).flatmap(lambda name: st.tuples(st.just(name), mutated(STATE[name]) | JSON)))
def test_any_state_is_read_or_refused(tmp_path: Path, what: tuple[str, Any]) -> None:
    (tmp_path / what[0]).write_bytes(dump(what[1]))
    attempt(READERS[what[0]], tmp_path)


@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize("text", DEEP, ids=lambda text: text[:5])
def test_deep_and_strange_state_is_read_or_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    attempt(READERS[name], tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    attempt(READERS[name], tmp_path)


def used(store: Store) -> None:
    (release,) = store.all()
    assert len(dumps(release)) < 2_000_000
    if isinstance(release, Damaged):
        safe(release.reason)
        return
    assert store.find(release.id) == release
    store.last_good()
    store.usual_ready_seconds("/m")
    try:
        files = store.files_of(release)
    except StorageError:
        return
    assert not [name for name in files.texts if name.startswith("/") or ".." in name.split("/")]
    compare_releases(release, release, files.texts, {**files.texts, "new": "x"})


@fuzzed
@given(mutated(RELEASE) | mutated(OLD_RELEASE) | JSON)
def test_any_release_is_read_or_damaged(tmp_path: Path, record: Any) -> None:
    attempt(used, released(tmp_path, json.dumps(record)))


@pytest.mark.parametrize("text", DEEP, ids=lambda text: text[:5])
def test_a_deep_or_strange_release_is_damaged(tmp_path: Path, text: str) -> None:
    attempt(used, released(tmp_path, text))


def test_a_release_names_no_file_outside_itself(tmp_path: Path) -> None:
    """`rollback` writes each file of a release into the state directory."""
    for name in ("../../x", "/tmp/x", "a/../../x", ""):
        (damaged,) = released(tmp_path, json.dumps({**RELEASE, "files": [{**RELEASE["files"][0], "name": name}]})).all()
        assert isinstance(damaged, Damaged)


@pytest.mark.parametrize("odd", ["\ud800", "a\0b", "x" * 5000])
def test_a_release_with_text_that_no_file_can_have_is_used_or_refused(tmp_path: Path, odd: str) -> None:
    for changed in ({"image": {**RELEASE["image"], "id": odd}}, {"files": [{**RELEASE["files"][0], "name": odd}]}):
        attempt(used, released(tmp_path, json.dumps({**RELEASE, **changed})))


# Bundles.

MORE = st.text(max_size=120) | st.builds("{}  {}\n".format, st.just("0" * 64), st.text(max_size=9))
BUNDLE = {"schema": 1, "glm4_deploy": "0", "images": [{"reference": "a:b", "id": "sha256:0", "file": "images/a.tar"}]}


def bundle(directory: Path, meta: bytes, more: str = "") -> Path:
    (directory / "images").mkdir(parents=True, exist_ok=True)
    contents = {META: meta, "images/a.tar": b"x"}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
    (directory / SUMS).write_bytes("".join([*lines, more]).encode("utf-8", errors="surrogatepass"))
    return directory


def inside(directory: Path) -> None:
    images = verify_bundle(directory, signers=None, note=lambda text: None)
    assert all((directory / image.file).resolve().is_relative_to(directory.resolve()) for image in images)


@fuzzed
@given(
    mutated(BUNDLE) | JSON,
    st.just("") | st.text(max_size=120) | st.builds("{}  {}\n".format, st.just("0" * 64), st.text(max_size=9)),
)
def test_any_bundle_is_whole_or_refused(tmp_path: Path, meta: Any, more: str) -> None:
    attempt(inside, bundle(tmp_path / "bundle", dump(meta), more))


@pytest.mark.parametrize("text", DEEP, ids=lambda text: text[:5])
def test_a_deep_or_strange_bundle_is_refused(tmp_path: Path, text: str) -> None:
    assert attempt(inside, bundle(tmp_path / "bundle", text.encode())) is None
    assert attempt(inside, bundle(tmp_path / "bundle", dump(BUNDLE), text)) is None


# A Compose file whose images and mounts are taken along.

MOUNT = st.one_of(st.text(max_size=20), ODD, st.sampled_from(["./a:/b", "./../x:/y", "./a/../../x:/y", "/etc:/e"]))
SERVICE = st.dictionaries(st.sampled_from(["image", "volumes", "x"]), st.lists(MOUNT | st.builds(
    lambda source: {"type": "bind", "source": source}, MOUNT), max_size=3) | ODD)  # fmt: skip


@fuzzed
@given(st.fixed_dictionaries({"services": st.dictionaries(st.text(max_size=4), SERVICE | ODD)}) | JSON)
def test_any_compose_file_names_its_images_and_mounts(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.dump(content), encoding="utf-8", errors="replace")
    attempt(images_of, [file])
    for source in attempt(mounts_beside, file) or ():
        assert source.resolve().is_relative_to(tmp_path.resolve()), source


# A megabyte of each, whole or of one thing.


def floods() -> Iterator[tuple[str, bytes]]:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    yield "config.json", dump({**DOCUMENTS["config.json"], "x": ["y" * 10] * 70_000})
    yield "config.json", dump({"quantization_config": {"ignore": [f"re:{'(a+)+' * 20}{n}" for n in range(8_000)]}})
    yield "tokenizer.json", dump({"added_tokens": [{"id": n, "content": str(n)} for n in range(30_000)]})
    yield "tokenizer_config.json", dump({"added_tokens_decoder": {str(n): {"content": "x"} for n in range(30_000)}})
    yield "tokenizer_config.json", dump({"chat_template": "{{ x }}" * 140_000})
    yield "tokenizer_config.json", dump({"chat_template": "{% if a %}" * 100_000})
    yield "generation_config.json", dump({"eos_token_id": list(range(140_000))})
    yield "model.safetensors.index.json", dump({"weight_map": {f"a.{n}": f"m-{n}.safetensors" for n in range(30_000)}})
    header = dump({f"model.layers.{n}.mlp.gate_proj.weight": entry for n in range(10_000)})
    yield "model.safetensors", struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize("number", range(9))
def test_a_megabyte_takes_no_longer_than_its_length(copied: Path, number: int) -> None:
    name, content = list(floods())[number]
    (copied / name).write_bytes(content)
    report = attempt(verify_checkpoint, copied)
    assert len(dumps(report)) < 2_000_000
    attempt(planned, copied)
