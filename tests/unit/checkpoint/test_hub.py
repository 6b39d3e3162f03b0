"""`pull` against a server that speaks the hub's protocol: pinned, resumed, compared, refused for the right reason."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from checkpoints import DATA
from glm4_deploy.checkpoint.hub import CHUNK, UNFINISHED, parse_id
from glm4_deploy.checkpoint.hub import Hub as Client
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.cli.app import app
from glm4_deploy.errors import CheckpointRefused, DeployError, ModelMissing, StorageError, Unreachable, UsageError
from glm4_deploy.files import hub_id_of
from servers.hub import COMMIT, Hub, serving

BIG = "model.safetensors"
WEIGHTS = random.Random(1).randbytes(3 * CHUNK + 12345)


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {"config.json": b"{}", BIG: WEIGHTS, "sub/notes.txt": b"n" * 200, ".gitattributes": b"x", "old.bin": b"y"}
    with serving(Hub(files=files)) as running:
        yield running


def nothing(_done: int, _total: int) -> None:
    return


def pulled(hub: Hub, directory: Path, text: str = "owner/glm-4-tiny", **environ: str) -> list[tuple[int, int]]:
    """Fetch what is missing; returns the progress."""
    seen: list[tuple[int, int]] = []
    client = Client({"HF_ENDPOINT": hub.endpoint, "HF_TOKEN_PATH": "/nowhere"} | environ, pause=0)
    try:
        model = client.model(text)
        client.fetch(model, client.missing(model, directory, nothing), directory, lambda *now: seen.append(now))
    finally:
        client.close()
    return seen


def ranges(hub: Hub) -> list[str | None]:
    return [asked for origin, _, asked, _ in hub.requests if origin == "cdn"]


def test_a_model_is_fetched_at_its_commit_and_compared(hub: Hub, tmp_path: Path) -> None:
    seen = pulled(hub, tmp_path, "owner/glm-4-tiny@v1")
    assert (tmp_path / BIG).read_bytes() == WEIGHTS
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "config.json", BIG, "sub/notes.txt",
    }  # fmt: skip
    assert seen[-1] == (len(WEIGHTS) + 202, len(WEIGHTS) + 202)
    assert all(f"/resolve/{COMMIT}/" in path for origin, path, _, _ in hub.requests[1:] if origin == "hub")
    hub.requests.clear()
    assert pulled(hub, tmp_path) == []
    assert [path for _, path, _, _ in hub.requests] == ["/api/models/owner/glm-4-tiny/revision/main"]


def test_a_cut_in_mid_file_continues_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cuts[BIG] = [CHUNK + 7, 11, 0, CHUNK]
    hub.busy = 1
    pulled(hub, tmp_path)
    assert (tmp_path / BIG).read_bytes() == WEIGHTS
    starts = [int(asked[6:-1]) if asked else 0 for asked in ranges(hub)]
    assert starts == sorted(starts)
    assert starts[-1] > CHUNK


def test_a_later_run_continues_what_an_earlier_one_left(hub: Hub, tmp_path: Path) -> None:
    hub.cuts[BIG] = [2 * CHUNK, 0, 0, 0, 0, 0]
    with pytest.raises(Unreachable, match="5 times in a row") as failed:
        pulled(hub, tmp_path)
    assert "continues" in failed.value.hint
    left = (tmp_path / (BIG + UNFINISHED)).stat().st_size
    assert 0 < left <= 2 * CHUNK
    assert read_checkpoint(tmp_path).unfinished == (BIG + UNFINISHED,)
    hub.cuts.clear()
    hub.requests.clear()
    pulled(hub, tmp_path)
    assert ranges(hub) == [f"bytes={left}-"]
    assert (tmp_path / BIG).read_bytes() == WEIGHTS


@pytest.mark.parametrize("left", [WEIGHTS[:5000], WEIGHTS + b"more", b"other" * 1000])
def test_what_lies_about_does_no_harm(hub: Hub, tmp_path: Path, left: bytes) -> None:
    (tmp_path / (BIG + UNFINISHED)).write_bytes(left)
    (tmp_path / "config.json").write_bytes(b"[]")
    pulled(hub, tmp_path)
    assert (tmp_path / BIG).read_bytes() == WEIGHTS
    assert (tmp_path / "config.json").read_bytes() == b"{}"


def test_a_mirror_that_ignores_ranges_is_asked_from_the_start(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    hub.cuts[BIG] = [CHUNK]
    pulled(hub, tmp_path)
    assert (tmp_path / BIG).read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", [BIG, "config.json"])
def test_other_bytes_than_the_hub_records_are_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    data = hub.files[name]
    hub.sent[name] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(CheckpointRefused, match="differs from the hash"):
        pulled(hub, tmp_path)
    assert not (tmp_path / name).exists()
    assert not (tmp_path / (name + UNFINISHED)).exists()
    assert len([path for _, path, _, _ in hub.requests if path.endswith(f"/{COMMIT}/{name}")]) == 2  # once more


def test_a_token_opens_a_gated_model_and_is_not_sent_to_another_host(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    for environ in ({}, {"HF_TOKEN": "hf_wrong"}):
        with pytest.raises(ModelMissing, match=r"is gated: .*restricted") as refused:
            pulled(hub, tmp_path, **environ)
        assert "HF_TOKEN" in refused.value.hint
    stored = tmp_path / "token"
    stored.write_text("hf_right\n")
    hub.requests.clear()
    pulled(hub, tmp_path / "model", HF_TOKEN_PATH=str(stored))
    sent = {origin: {token for at, _, _, token in hub.requests if at == origin} for origin in ("hub", "cdn")}
    assert sent == {"hub": {"Bearer hf_right"}, "cdn": {None}}


@pytest.mark.parametrize(
    ("text", "environ", "error", "message"),
    [
        ("owner/other", {}, ModelMissing, "has no model owner/other"),
        ("owner/glm-4-tiny@v9", {}, ModelMissing, "no revision 'v9'"),
        ("just-a-name", {}, UsageError, "not a model's id"),
        ("../x/y", {}, UsageError, "not a model's id"),
        ("owner/glm-4-tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, Unreachable, "does not answer"),
        ("owner/glm-4-tiny", {"HF_ENDPOINT": "mirror"}, UsageError, "not an address"),
        ("owner/glm-4-tiny", {"HF_HUB_OFFLINE": "1"}, UsageError, "HF_HUB_OFFLINE"),
    ],
)
def test_what_cannot_be_fetched_says_why(
    hub: Hub, tmp_path: Path, text: str, environ: dict[str, str], error: type[DeployError], message: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        pulled(hub, tmp_path, text, **environ)
    assert refused.value.hint


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "a\nb"])
def test_a_listing_cannot_lead_out_of_the_directory(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.files[name] = b"z"
    with pytest.raises(Unreachable, match="not as a model hub does"):
        pulled(hub, tmp_path / "in")
    assert not (tmp_path / "escape").exists()


def test_room_is_checked_before_the_first_byte(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "listing", lambda _hub: {
        "sha": COMMIT, "siblings": [{"rfilename": "config.json", "size": 10**16, "blobId": "0" * 40}],
    })  # fmt: skip
    with pytest.raises(StorageError, match="GB are to come"):
        pulled(hub, tmp_path)
    assert not list(tmp_path.iterdir())


def test_ids_are_read_in_each_form() -> None:
    for text in ("o/n", "https://huggingface.co/o/n", "hf://o/n", "https://huggingface.co/o/n/"):
        assert parse_id(text) == ("o/n", None)
    for text in ("o/n@abc", "https://huggingface.co/o/n/tree/abc", "https://huggingface.co/o/n/blob/abc/config.json"):
        assert parse_id(text) == ("o/n", "abc")


def test_an_id_in_place_of_a_directory_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert hub_id_of(Path("zai-org/glm-4-9b-chat-hf")) == "zai-org/glm-4-9b-chat-hf"
    assert hub_id_of(tmp_path / "zai-org/glm-4") == "zai-org/glm-4"
    for text in ("models/glm-4", "models", "/models/glm-4", "a/b/c", "./x"):
        assert hub_id_of(Path(text)) is None
    runner = CliRunner()
    for argv in (["checkpoint", "verify", "zai-org/glm-4"], ["up", "--profile", "cpu", "--model-dir", "zai-org/glm-4"]):
        done = runner.invoke(app, argv)
        assert isinstance(done.exception, ModelMissing)
        assert done.exception.hints[0].startswith("fetch it: glm4-deploy pull zai-org/glm-4;")
    done = runner.invoke(app, ["render", "--profile", "gb10", "--model-dir", "zai-org/glm-4"])
    assert "model's id on a hub" in done.stderr


def test_the_command_fetches_verifies_and_repairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny NVFP4 checkpoint, which vLLM 0.13 cannot load as llm-compressor writes it."""
    files = {path.name: path.read_bytes() for path in DATA.iterdir() if path.is_file()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere")
    with serving(Hub(files=files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        argv = ["pull", hub.id, "--output", "m/tiny", "--image", "nvcr.io/nvidia/vllm:26.01-py3"]
        dry = CliRunner().invoke(app, [*argv, "--dry-run", "--json"])
        assert json.loads(dry.stdout)["fetched_size"] == sum(map(len, files.values()))
        assert not (tmp_path / "m").exists()
        raw = CliRunner().invoke(app, [*argv, "--json"])
        assert raw.exit_code == 1, raw.output
        answer = json.loads(raw.stdout)
        assert answer["results"][1]["remedy"].startswith("glm4-deploy checkpoint repair m/tiny --output ")
        assert (answer["commit"], answer["licence"]) == (COMMIT, "glm-4")
        assert "licence glm-4" in raw.stderr
        good = CliRunner().invoke(app, [*argv, "--repair", "--json"])
        assert good.exit_code == 0, good.output
        answer = json.loads(good.stdout)
        assert answer["fetched"] == []
        assert answer["model_dir"] == f"{os.path.realpath(tmp_path)}/m/tiny-0.13.0"
        checked = CliRunner().invoke(app, ["checkpoint", "verify", answer["model_dir"], "--image-tag", "26.01-py3"])
        assert checked.exit_code == 0, checked.output
