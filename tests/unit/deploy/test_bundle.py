"""What goes into a bundle, and what does not. Images and wheels: tests/e2e/test_bundle.py."""

import io
import json
import os
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.bundle import BundledImage, check_tags, create_bundle, verify_bundle
from glm4_deploy.errors import Judged, UsageError
from glm4_deploy.files import write_text
from glm4_deploy.render.compose import rendered


def bundle(tmp_path: Path, *files: Path, checkpoint: Path | None = None, notes: list[str] | None = None) -> Path:
    out, said = tmp_path / "bundle", notes if notes is not None else []
    create_bundle(out, files=files, images=(), checkpoint=checkpoint, wheels=False, key=None, note=said.append)
    return out


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "models/ck"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "copy.json").symlink_to("config.json")
    return directory


def test_the_files_that_a_compose_file_mounts_are_taken_along(tmp_path: Path) -> None:
    directory = tmp_path / "deploy"
    for name, text in rendered(resolve_spec({"profile": "gb10", "extras": ["gateway", "monitoring"]})).items():
        write_text(directory / name, text)
    (directory / "keys").mkdir()
    (directory / "keys/keys.json").write_text("{}")
    notes: list[str] = []
    made = bundle(tmp_path, directory / "compose.yaml", notes=notes) / "compose"
    taken = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert taken >= {"compose.yaml", "gateway/Caddyfile", "gateway/authorise.py", "monitoring/prometheus.yml"}
    assert not any("keys" in name for name in taken)
    assert any(note.startswith("not included:") and "keys" in note for note in notes)


def test_two_files_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for name in "ab":
        write_text(tmp_path / name / "compose.yaml", f"services: {{{name}: {{image: x}}}}\n")
    with pytest.raises(UsageError, match=r"would both be compose/compose\.yaml"):
        bundle(tmp_path, tmp_path / "a/compose.yaml", tmp_path / "b/compose.yaml")
    assert not (tmp_path / "bundle").exists()


def test_a_link_inside_the_checkpoint_is_taken_and_one_out_of_it_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    made = bundle(tmp_path, checkpoint=checkpoint)
    assert (made / "checkpoint/ck/copy.json").read_text() == "{}"
    (tmp_path / "models/secret").write_text("s")
    (checkpoint / "readme.txt").symlink_to("../secret")
    with pytest.raises(UsageError, match="link out of the checkpoint"):
        bundle(tmp_path / "second", checkpoint=checkpoint)
    assert not (tmp_path / "second").exists()


def test_a_snapshot_of_the_hugging_face_cache_is_taken_with_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x/snapshots/abc", tmp_path / "models--x/blobs"
    for directory in (snapshot, blobs):
        directory.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    assert (bundle(tmp_path, checkpoint=snapshot) / "checkpoint/abc/config.json").read_text() == "{}"


def _list_again(made: Path) -> None:
    names = sorted(
        str(path.relative_to(made)) for path in made.rglob("*") if path.is_file() and "SUMS" not in path.name
    )
    lines = [f"{sha256((made / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (made / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize("file", ["../outside.txt", 3, "images/none.tar"])
def test_an_image_file_outside_the_bundle_is_refused(tmp_path: Path, checkpoint: Path, file: object) -> None:
    made = bundle(tmp_path, checkpoint=checkpoint)
    meta = json.loads((made / "bundle.json").read_text())
    meta["images"] = [{"reference": "x", "id": "sha256:0", "file": file}]
    (made / "bundle.json").write_text(json.dumps(meta))
    _list_again(made)
    with pytest.raises(UsageError, match=r"bundle\.json"):
        verify_bundle(made, signers=None, note=lambda _: None)


def test_a_pipe_in_a_bundle_is_not_listed(tmp_path: Path, checkpoint: Path) -> None:
    made = bundle(tmp_path, checkpoint=checkpoint)
    os.mkfifo(made / "pipe")
    with pytest.raises(Judged) as caught:
        verify_bundle(made, signers=None, note=lambda _: None)
    assert "pipe: not listed" in caught.value.details


NAME = "nvcr.io/nvidia/vllm:26.01-py3"


def archive(path: Path, files: dict[str, str], mode: str = "w:") -> Path:
    with tarfile.open(path, mode) as made:  # type: ignore[call-overload]
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            made.addfile(member, io.BytesIO(text.encode()))
    return path


def named(*tags: str) -> dict[str, str]:
    return {"manifest.json": json.dumps([{"Config": "x.json", "RepoTags": list(tags), "Layers": []}])}


def index(name: str) -> dict[str, str]:
    row = {"annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "26.01-py3"}}
    return {"index.json": json.dumps({"manifests": [row, {}]})}


@pytest.mark.parametrize(
    ("reference", "files"),
    [
        (NAME, named(NAME)),
        (NAME, named()),
        (NAME, {"manifest.json": '[{"RepoTags": null}]'}),
        ("caddy:2", named("caddy:2") | index("docker.io/library/caddy:2") | {"index.json": "{}"}),
        (NAME, {f"./{name}": text for name, text in (named(NAME) | index(NAME)).items()}),
    ],
)
def test_an_archive_of_the_named_image_is_loaded(tmp_path: Path, reference: str, files: dict[str, str]) -> None:
    check_tags(archive(tmp_path / "a.tar", files), BundledImage(reference=reference, id="sha256:1", file="a.tar"))


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        (named(NAME, "caddy:2.11.4-alpine"), "w:"),
        (named("caddy:2.11.4-alpine"), "w:"),
        (named(NAME) | index("docker.io/library/caddy:2"), "w:"),
        (named(NAME) | {"x/../index.json": index("caddy:2")["index.json"]}, "w:"),
        ({"repositories": '{"caddy": {"2": "x"}}'}, "w:"),
        ({"manifest.json": "[" * 50_000}, "w:"),
        ({"manifest.json": '{"a": 1}'}, "w:"),
        ({"manifest.json": '[{"RepoTags": 5}]'}, "w:"),
        (named(NAME), "w:gz"),
    ],
)
def test_an_archive_that_would_name_another_image_is_not_loaded(
    tmp_path: Path, files: dict[str, str], mode: str
) -> None:
    """`docker load` gives every name in it, also one that this host's other services are started from."""
    with pytest.raises(Judged, match=r"a\.tar"):
        check_tags(archive(tmp_path / "a.tar", files, mode), BundledImage(reference=NAME, id="sha256:1", file="a.tar"))
