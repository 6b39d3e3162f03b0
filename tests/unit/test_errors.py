"""Exit codes are unique, documented and stable."""

from pathlib import Path

from glm4_deploy import errors
from glm4_deploy.cli.app import INTERRUPTED, READER_GONE
from glm4_deploy.errors import DeployError

PAGE = (Path(__file__).parents[2] / "docs/reference/exit-codes.md").read_text()
STABLE = {
    "Judged": 1, "UsageError": 2, "Unreachable": 3, "WrongEngine": 4, "DockerMissing": 5, "ComposeMissing": 6,
    "DockerDenied": 7, "PortTaken": 8, "ModelMissing": 9, "CheckpointRefused": 10, "EngineDied": 11,
    "EngineTimeout": 12, "PlanRefused": 13, "Locked": 14, "RolledBack": 15, "RollbackFailed": 16,
    "ComposeFailed": 17, "StorageError": 18, "ImageMissing": 19, "ExtraMissing": 20, "DeployError": 70,
}  # fmt: skip


def classes() -> list[type[DeployError]]:
    return [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, DeployError)]


def test_every_error_has_its_own_code_and_keeps_it() -> None:
    assert {item.__name__: item.exit_code for item in classes()} == STABLE
    assert len({item.exit_code for item in classes()}) == len(classes())


def test_the_readme_documents_every_code() -> None:
    for item in classes():
        assert f"| {item.exit_code} | {item.meaning} |" in PAGE, item.__name__
    for code in (INTERRUPTED, READER_GONE):
        assert f"| {code} | " in PAGE


def test_each_thing_to_do_is_one_hint() -> None:
    assert DeployError("m").hints == ()
    one = DeployError("m", hint="first", details=["d"])
    two = one.advise("second", "")
    assert (one.hints, two.hints, two.hint) == (("first",), ("first", "second"), "first")
    assert (two.message, two.details) == ("m", ("d",))
    assert two.wire() == {"message": "m", "hints": ["first", "second"], "details": ["d"], "exit_code": 70}
