"""Whatever a directory contains, verify gives one clear finding or error: no traceback, no hang."""

import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

import checkpoints as made
from glm4_deploy.checkpoint.header import (
    MAX_HEADER_BYTES,
    HeaderFault,
    MalformedJsonError,
    parse_object,
    parse_tokenizer,
    read_header,
)
from glm4_deploy.checkpoint.repair import repair_checkpoint
from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.errors import CheckpointRefused, ModelMissing
from glm4_deploy.result import Result, Status

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 6442450944\n" % (b"4665a5ea" * 8)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return made.checkpoint(tmp_path / "glm-4-made")


def weights(directory: Path) -> Path:
    return directory / "model.safetensors"


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    return json.loads(blob[8:start]), blob[start:]


def bad_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        header, data = header_of(weights(directory))
        made.write_raw(weights(directory), change(header) or header, data)

    return damage


def rewrite(path: str, data: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / path).write_bytes(data) and None


def truncate(directory: Path) -> None:
    os.truncate(weights(directory), weights(directory).stat().st_size - 100)


def grow(directory: Path) -> None:
    with weights(directory).open("ab") as file:
        file.write(b"\0" * 8)


def torch_zip(directory: Path) -> None:
    with zipfile.ZipFile(weights(directory), "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"weight": 1}))


def only_a_pickle(directory: Path) -> None:
    weights(directory).rename(directory / "pytorch_model.bin")


def link_out(directory: Path) -> None:
    weights(directory).rename(directory.parent / "elsewhere.safetensors")
    weights(directory).symlink_to(directory.parent / "elsewhere.safetensors")


def link_to_nothing(directory: Path) -> None:
    weights(directory).unlink()
    weights(directory).symlink_to("gone")


def link_loop(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "config.json").symlink_to("config.json")


def pipe(directory: Path) -> None:
    weights(directory).unlink()
    os.mkfifo(weights(directory))


def twice(directory: Path) -> None:
    (directory / "consolidated.safetensors").write_bytes(weights(directory).read_bytes())


def drop(*ends: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        held = {name: value for name, value in made.tensors().items() if not name.endswith(ends)}
        made.save(weights(directory), held)

    return damage


def put(name: str, value: Any) -> Callable[[Path], None]:
    return lambda directory: made.save(weights(directory), made.tensors() | {name: value})


def shape_lie(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["shape"] = [1, 1]


def hole(header: dict[str, Any]) -> None:
    del header["model.layers.0.mlp.down_proj.weight_packed"]


def overlap(header: dict[str, Any]) -> None:
    first, second = list(header.values())[1:3]
    second["data_offsets"] = first["data_offsets"]


def deep(_header: dict[str, Any]) -> bytes:
    return b'{"a":' * 5000 + b"1" + b"}" * 5000


def cut_tokenizer(directory: Path, count: int, end: bytes = b"") -> None:
    """Damage after the part of the file that is kept."""
    text = (directory / "tokenizer.json").read_bytes().rstrip()
    (directory / "tokenizer.json").write_bytes(text[: len(text) - count] + end)


SCALE = "model.layers.1.mlp.down_proj.weight_global_scale"
# fault → how it is made, the check that must fail, and a part of its message
FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "lfs shard": (rewrite("model.safetensors", LFS), "lfs-pointers", "Git LFS pointer"),
    "lfs tokenizer": (rewrite("tokenizer.json", LFS), "lfs-pointers", "tokenizer.json"),
    "truncated": (truncate, "shard-headers", "100 are missing"),
    "longer": (grow, "shard-headers", "8 bytes follow"),
    "empty shard": (rewrite("model.safetensors", b""), "shard-headers", "0 bytes long"),
    "header too large": (rewrite("model.safetensors", b"\xff" * 64), "shard-headers", "claims a header"),
    "header beyond the end": (rewrite("model.safetensors", b"\0\0\1\0\0\0\0\0{}"), "shard-headers", "truncated"),
    "header not JSON": (rewrite("model.safetensors", b"\2\0\0\0\0\0\0\0{]"), "shard-headers", "not JSON"),
    "header deep": (bad_header(deep), "shard-headers", "nested too deep"),
    "shape lie": (bad_header(shape_lie), "shard-headers", "needs"),
    "hole": (bad_header(hole), "shard-headers", "hole"),
    "overlap": (bad_header(overlap), "shard-headers", "overlap"),
    "pickle in disguise": (torch_zip, "shard-headers", "a pickle"),
    "only a pickle": (only_a_pickle, "weights-format", "pytorch_model.bin"),
    "link out": (link_out, "links", "out of the directory"),
    "link to nothing": (link_to_nothing, "links", "to nothing"),
    "link loop": (link_loop, "files-readable", "config.json"),
    "pipe": (pipe, "files-readable", "neither a file nor a directory"),
    "duplicates": (twice, "duplicate-tensors", "in more than one shard"),
    "tensor missing": (drop("1.mlp.down_proj.weight_scale"), "tensors", "missing"),
    "layer missing": (lambda d: made.change(d / "config.json", num_hidden_layers=3), "layers", "layer 2 is missing"),
    "layer too many": (lambda d: made.change(d / "config.json", num_hidden_layers=1), "layers", "beyond"),
    "foreign tensor": (put("model.vision.weight", np.ones(4, np.float16)), "tensors", "model.vision.weight"),
    "wrong shape": (put("model.norm.weight", np.ones(4, np.float16)), "tensor-shapes", "model.norm.weight"),
    "wrong dtype": (put("model.norm.weight", np.ones(made.HIDDEN, np.int32)), "tensor-shapes", "I32"),
    "scale NaN": (put(SCALE, np.array([np.nan], np.float32)), "global-scales", "nan"),
    "scale zero": (put(SCALE, np.zeros(1, np.float32)), "global-scales", "is 0"),
    "scale negative": (put(SCALE, -np.ones(1, np.float32)), "global-scales", "is -1"),
    "scale infinite": (put(SCALE, np.array([np.inf], np.float32)), "global-scales", "inf"),
    "inputs clipped": (
        put("model.layers.0.mlp.gate_up_proj.input_global_scale", np.array([2688 / 1e-5], np.float32)),
        "global-scales",
        "behind post_attention_layernorm they reach",
    ),
    "q, k, v differ": (
        put("model.layers.0.self_attn.k_proj.weight_global_scale", np.array([9.0], np.float32)),
        "global-scales",
        "q_proj/k_proj/v_proj",
    ),
    "no config": (lambda d: (d / "config.json").unlink(), "config", "no config.json"),
    "config not JSON": (rewrite("config.json", b"{,"), "files-readable", "not JSON"),
    "config deep": (rewrite("config.json", b'{"a":' * 900 + b"1" + b"}" * 900), "files-readable", "nested too deep"),
    "config very deep": (rewrite("config.json", b"[" * 100_000), "files-readable", "nested too deep"),
    "config huge": (rewrite("config.json", b" " * (5 << 20)), "files-readable", "limit"),
    "config a list": (rewrite("config.json", b"[]"), "files-readable", "contains a list"),
    "config with a duplicate key": (rewrite("config.json", b'{"a":1,"a":2}'), "files-readable", "twice"),
    "config long number": (rewrite("config.json", b'{"a":' + b"9" * 5000 + b"}"), "files-readable", "digits"),
    "config not UTF-8": (rewrite("config.json", b'{"a":"\xff"}'), "files-readable", "UTF-8"),
    "another model": (lambda d: made.change(d / "config.json", architectures=["Llama"]), "config", "Llama"),
    "architectures a string": (lambda d: made.change(d / "config.json", architectures="x"), "config", "[]"),
    "negative size": (lambda d: made.change(d / "config.json", hidden_size=-1), "config", "hidden_size"),
    "implausible size": (lambda d: made.change(d / "config.json", num_hidden_layers=10**9), "config", "num_hidden"),
    "tokenizer cut off": (lambda d: cut_tokenizer(d, 1), "files-readable", "not JSON"),
    "tokenizer with trailing data": (lambda d: cut_tokenizer(d, 0, b"{}"), "files-readable", "not JSON"),
    "tokenizer not UTF-8": (lambda d: cut_tokenizer(d, 1, b',"x":"\xff"}'), "files-readable", "UTF-8"),
    "tokenizer a list": (rewrite("tokenizer.json", b"[]"), "files-readable", "contains a list"),
    "tokenizer very deep": (rewrite("tokenizer.json", b"[" * 100_000), "files-readable", "nested too deep"),
    "tokenizer huge": (lambda d: os.truncate(d / "tokenizer.json", 129 << 20), "files-readable", "limit"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer", "no tokenizer.json"),
}


def named(directory: Path, check: str) -> Result:
    return next(result for result in verify_checkpoint(directory).results if result.check == check)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_clear_finding_and_repair_refuses_it(fault: str, directory: Path, tmp_path: Path) -> None:
    damage, check, word = FAULTS[fault]
    damage(directory)
    result = named(directory, check)
    assert (result.status, word in result.observed) == (Status.FAIL, True), result
    assert result.remedy and len(result.observed) < 600 and "\n" not in result.observed
    with pytest.raises(CheckpointRefused):
        repair_checkpoint(directory, tmp_path / "glm-4-out")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("glm-4-out")] == []


@pytest.mark.parametrize("depth", range(100, 1100, 100))
def test_no_depth_of_json_gets_past_the_guard(depth: int, directory: Path, tmp_path: Path) -> None:
    """The parser accepts deeper documents than a copy or a writer can handle."""
    nested = json.loads((directory / "config.json").read_text())
    text = json.dumps(nested)[:-1] + ', "a": ' + '{"a":' * depth + "1" + "}" * depth + "}"
    (directory / "config.json").write_text(text)
    assert named(directory, "files-readable").status is Status.FAIL
    with pytest.raises(CheckpointRefused):
        repair_checkpoint(directory, tmp_path / "glm-4-out")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def cut_and_filled(text: bytes, at: int, fill: bytes) -> bytes:
    return text[: at % (len(text) + 1)] + fill + text[at % (len(text) + 1) + len(fill) :]


TOKENIZERS = st.builds(
    lambda document, at, fill: cut_and_filled(json.dumps(document).encode(), at, fill),
    st.dictionaries(st.sampled_from(["added_tokens", "model", "x"]), VALUES),
    st.integers(0, 1 << 16),
    st.binary(max_size=2) | st.sampled_from([b"[", b"}", b'"', b",", b"\\ud800", b'"added_tokens":0,']),
)


@given(TOKENIZERS)
@example(b'{"added_tokens":[1],"added_tokens":[2]}')
@example(b'{"added_tokens":[{"content":"a"}],"x":"\\ud800"}')
@example(b'{"added_tokens":[],"x":' + b"[" * 300 + b"]" * 300 + b"}")
@example(b'{"added_tokens":[NaN,1e999,-Infinity]}')
@example(b'{"x":' + b"9" * 5000 + b"}")
@example(b"\xef\xbb\xbf{}")
@example(b"")
def test_the_fast_tokenizer_parser_agrees_with_the_complete_one(text: bytes) -> None:
    def outcome(parse: Callable[[bytes], dict[str, Any]]) -> str:
        try:
            return repr(parse(text).get("added_tokens"))
        except MalformedJsonError as error:
            return f"malformed: {error}"

    assert outcome(parse_tokenizer) == outcome(lambda data: parse_object(data, unique=False))


INDEX_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "names a shard that is not there": (
        lambda index: index["weight_map"].update({"lm_head.weight": "../../etc/passwd"}),
        "is missing",
    ),
    "names a tensor that no shard has": (
        lambda index: index["weight_map"].update({"model.ghost": "model-00001-of-00003.safetensors"}),
        "is not in",
    ),
    "leaves a tensor out": (lambda index: index["weight_map"].pop("lm_head.weight"), "is not in the index"),
    "has no map": (lambda index: index.pop("weight_map"), "no weight_map"),
    "maps to numbers": (lambda index: index["weight_map"].update({"lm_head.weight": 7}), "no weight_map"),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_an_index_that_disagrees_with_the_shards(fault: str, tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made", shards=3)
    assert named(directory, "index").status is Status.OK
    path, (change, word) = directory / "model.safetensors.index.json", INDEX_FAULTS[fault]
    index = json.loads(path.read_text())
    change(index)
    made.put(path, index)
    result = named(directory, "index")
    assert (result.status, word in result.observed) == (Status.FAIL, True), result


def test_a_missing_shard(tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made", shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002" in named(directory, "index").observed
    assert named(directory, "tensors").status is Status.SKIPPED


def test_a_download_in_progress_is_reported(directory: Path) -> None:
    downloads = directory / ".cache/huggingface/download"
    downloads.mkdir(parents=True)
    (downloads / "abc.incomplete").touch()
    (directory / "model-00002.safetensors.part").touch()
    result = named(directory, "being-written")
    assert result.status is Status.WARN and "abc.incomplete" in result.observed and ".part" in result.observed


def test_space_reserved_but_not_filled_is_reported(directory: Path) -> None:
    header, data = header_of(weights(directory))
    size = weights(directory).stat().st_size
    made.write_raw(weights(directory), header, b"")
    os.truncate(weights(directory), size)
    assert len(data) > 20_000
    failed = {result.check for result in verify_checkpoint(directory, full=True).failures}
    assert {"global-scales", "zero-weights"} <= failed


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory that other users may enter; a test that runs as root then drops its privileges."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_an_unreadable_file_is_reported(unprivileged: Path) -> None:
    directory = made.checkpoint(unprivileged / "glm-4-made")
    weights(directory).chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        report = verify_checkpoint(directory)
    finally:
        if root:
            os.seteuid(0)
    result = next(result for result in report.results if result.check == "files-readable")
    assert result.status is Status.FAIL and "Permission denied" in result.observed


def test_no_directory_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("gone", "file", "empty"):
        with pytest.raises(ModelMissing):
            verify_checkpoint(tmp_path / name)


def test_names_that_a_terminal_cannot_show(directory: Path, tmp_path: Path) -> None:
    (directory / os.fsdecode(b"\xff\x1b[31m.bin")).touch()
    (directory / "line\nbreak.part").touch()
    report = verify_checkpoint(directory)
    assert all("\n" not in result.observed and "\x1b" not in result.observed for result in report.results)
    assert repair_checkpoint(directory, tmp_path / "glm-4-out").report.failures == ()


def test_huge_lists_do_not_flood_the_report(directory: Path) -> None:
    made.change(directory / "generation_config.json", eos_token_id=list(range(20_000, 60_000)))
    assert len(named(directory, "eos-ids").observed) < 300


HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", "", "\ud800"]) | st.text(max_size=3),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U8", "F4", "F8_E4M3", "X", 3]),
            "shape": st.lists(st.integers(-1, 9) | st.just(2**63), max_size=3),
            "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3),
        }
    )
    | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)
    | st.none(),
    max_size=3,
)


def judged(blob: bytes) -> bool:
    """Whether our reader accepts it; any exception but a HeaderFault is a defect."""
    try:
        header = read_header(BytesIO(blob), size=len(blob), shard="x.safetensors")
    except HeaderFault as error:
        assert str(error) and len(str(error)) < 400
        return False
    assert sum(tensor.nbytes for tensor in header.tensors) == len(blob) - header.data_start
    return True


def reference_takes(blob: bytes, path: Path) -> bool:
    path.write_bytes(blob)
    try:
        with safe_open(path, framework="numpy") as opened:
            return opened.keys() is not None
    except SafetensorError:
        return False


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blob=st.binary(max_size=600))
@example(blob=LFS)
@example(blob=(MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
@example(blob=b"\2\0\0\0\0\0\0\0{}")
def test_fuzz_any_bytes(blob: bytes, tmp_path: Path) -> None:
    assert not judged(blob) or reference_takes(blob, tmp_path / "x.safetensors")


@settings(deadline=None, max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=HEADERS, data=st.binary(max_size=40))
def test_fuzz_headers_that_the_reference_library_refuses_are_refused(
    document: dict[str, Any], data: bytes, tmp_path: Path
) -> None:
    raw = json.dumps(document).encode()
    blob = len(raw).to_bytes(8, "little") + raw + data
    assert not judged(blob) or reference_takes(blob, tmp_path / "x.safetensors")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 4000), flips=st.integers(1, 255), cut=st.none() | st.integers(0, 4000))
def test_fuzz_damage_that_the_reference_library_refuses_is_refused(
    position: int, flips: int, cut: int | None, tmp_path: Path
) -> None:
    blob = bytearray((made.DATA / "model.safetensors").read_bytes())
    blob[position] ^= flips
    ours = judged(bytes(blob[:cut] if cut else blob))
    assert not ours or reference_takes(bytes(blob[:cut] if cut else blob), tmp_path / "x.safetensors")
