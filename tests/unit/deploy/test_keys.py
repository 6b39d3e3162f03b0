"""Named keys: shown once, stored as hashes, refused if the file or the name is bad."""

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from glm4_deploy.cli.app import app
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.keys import PATHS, add_key, load_keys, revoke_key
from glm4_deploy.deploy.state import hold_lock
from glm4_deploy.errors import Locked, UsageError
from glm4_deploy.render.compose import rendered


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["key", *words])


def test_a_key_is_shown_once_and_kept_hashed(tmp_path: Path) -> None:
    place = ("--dir", str(tmp_path / "keys"))
    made = run("add", "ada", "--rate", "7", *place)
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert token.startswith("glm4-")
    assert len(token) > 40
    file = tmp_path / "keys/keys.json"
    assert token not in file.read_text()
    (row,) = json.loads(file.read_text())["keys"]
    assert (row["name"], row["rate"]) == ("ada", 7)
    assert row["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert run("add", "bob", *place).stdout.strip() != token
    listed = json.loads(run("list", "--json", *place).stdout)
    assert [(item["name"], item["rate"]) for item in listed] == [("ada", 7), ("bob", 120)]
    assert "sha256" not in listed[0]
    assert run("revoke", "ada", *place).exit_code == 0
    assert [key.name for key in load_keys(tmp_path / "keys")] == ["bob"]


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x" * 64, "é", "a\nb"])
def test_an_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid key name"):
        add_key(tmp_path, name, rate=1)
    assert not (tmp_path / "keys.json").exists()


def test_a_name_is_taken_once_and_revoked_once(tmp_path: Path) -> None:
    add_key(tmp_path, "ada", rate=1)
    with pytest.raises(UsageError, match="exists already"):
        add_key(tmp_path, "ada", rate=1)
    revoke_key(tmp_path, "ada")
    with pytest.raises(UsageError, match="no key is named"):
        revoke_key(tmp_path, "ada")


NAMELESS = '{"schema": 1, "keys": [{"name": "x"}]}'


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": 1, "keys": [1]}', NAMELESS, '{"schema": 9, "keys": []}', "[" * 100_000]
)
def test_a_damaged_file_is_reported_and_not_overwritten(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(UsageError):
        add_key(tmp_path, "ada", rate=1)
    assert file.read_text() == content


def test_two_at_once_do_not_lose_a_key(tmp_path: Path) -> None:
    with hold_lock(tmp_path, "key add"), pytest.raises(Locked):
        add_key(tmp_path, "ada", rate=1)


def authorise() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[3] / "templates/services/gateway/authorise.py"))


def test_a_key_may_be_for_some_paths_only(tmp_path: Path) -> None:
    token = run("add", "ada", "--path", "chat/completions", "--path", "models", "--dir", str(tmp_path)).stdout.strip()
    plain = run("add", "bob", "--dir", str(tmp_path)).stdout.strip()
    assert [key.paths for key in load_keys(tmp_path)] == [("chat/completions", "models"), ()]
    with pytest.raises(UsageError, match="the gateway has no path"):
        add_key(tmp_path, "eve", rate=1, paths=("load_lora_adapter",))
    keys = authorise()["Keys"](tmp_path / "keys.json")
    inside = ("/v1/models", "/v1/models/x", "/v1/chat/completions?a=/../", "/v1/%6dodels")
    outside = (
        "/v1/completions", "/v1/modelsx", "/v1", "", "/v1/models/../completions", "/v1/models/%2e%2e/completions",
        "/v1/models%2f..%2fcompletions", "//v1/models", "/V1/models", "/v1//models", "/v1/%256dodels",
    )  # fmt: skip
    assert {keys.admit(token, uri)[0] for uri in inside} == {200}
    assert {keys.admit(token, uri)[0] for uri in outside} == {403}
    assert keys.admit(plain, "/v1/completions")[0] == 200


def test_the_paths_of_a_key_are_those_of_the_gateway() -> None:
    caddyfile = rendered(resolve_spec({"profile": "gb10", "extras": ["gateway"]}))["gateway/Caddyfile"]
    assert f"^/v1/({'|'.join(PATHS)})(/|$)" in caddyfile
