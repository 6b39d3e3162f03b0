"""Files that an earlier glm4-deploy wrote (tests/data/schema-1) are read like current ones."""

import json
import shutil
from pathlib import Path

import pytest

from glm4_deploy.deploy.endpoint import EngineKind, Started
from glm4_deploy.deploy.releases import RECORD, RELEASE_SCHEMA, Release, Store
from glm4_deploy.deploy.state import RECORD_SCHEMA, load_record, save_record
from glm4_deploy.errors import UsageError
from glm4_deploy.result import Status

DATA = Path(__file__).parents[2] / "data/schema-1"


@pytest.fixture(params=["process", "replicas"])
def state_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A state directory of that time, with one release."""
    old = DATA / str(request.param)
    shutil.copy(old / "up.json", tmp_path)
    release = tmp_path / "releases" / json.loads((old / RECORD).read_text())["id"]
    release.mkdir(parents=True)
    shutil.copy(old / RECORD, release)
    return tmp_path


def test_a_process_is_still_known() -> None:
    record = load_record(DATA / "process")
    assert record is not None
    endpoint = record.endpoint
    assert (endpoint.runner, endpoint.engines) == (EngineKind.PROCESS, ("glm4-9b-nvfp4",))
    assert (endpoint.base_url, endpoint.bind, endpoint.port) == ("http://127.0.0.1:24680", "127.0.0.1", 24680)
    assert record.started == Started(id="27880:230853", started_at=1795857844.488274)
    assert (record.verdict, record.ready_seconds, record.release) == (Status.OK, 1.3, "0001-20261128T092406Z")


def test_replicas_are_still_known_with_their_files_and_their_key() -> None:
    record = load_record(DATA / "replicas")
    assert record is not None
    assert record.endpoint.engines == ("glm4-9b-nvfp4-1", "glm4-9b-nvfp4-2")
    assert record.endpoint.api_key_file == "/srv/keys/engine"
    assert record.files == (".glm4/compose.yaml",)


def test_a_release_is_still_good_and_means_the_same(state_dir: Path) -> None:
    record = load_record(state_dir)
    (release,) = Store(state_dir).all()
    assert isinstance(release, Release), release
    assert record is not None
    assert release.good
    assert release.schema == RELEASE_SCHEMA
    assert release.id == record.release
    assert release.endpoint.same_engines(record.endpoint)
    assert (release.endpoint.base_url, release.endpoint.model) == (record.endpoint.base_url, record.endpoint.model)
    old = json.loads((state_dir / "releases" / release.id / RECORD).read_text())
    assert release.endpoint.model_dir == old["service"]["model_dir"]
    assert release.settings == old["settings"]
    assert list(release.endpoint.vllm or ()) == (old["service"]["vllm"] or [])


def test_the_next_write_has_the_current_schema_and_the_same_content(state_dir: Path) -> None:
    record = load_record(state_dir)
    assert record is not None
    save_record(record, state_dir)
    assert json.loads((state_dir / "up.json").read_text())["schema"] == RECORD_SCHEMA
    assert load_record(state_dir) == record


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("rest", [{}, {"endpoint": 1}, {"files": 3, "base_url": ":"}])
def test_a_damaged_record_is_one_error(schema: int, rest: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"schema": schema, **rest}))
    with pytest.raises(UsageError, match="damaged"):
        load_record(tmp_path)
