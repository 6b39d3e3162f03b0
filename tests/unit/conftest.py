"""The real programs that the tests call."""

import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def compose() -> list[str]:
    """The real Compose binary; `config` needs no engine."""
    return [str(BIN / "docker-compose")]


@pytest.fixture(scope="session")
def check_schema() -> list[str]:
    """The Compose specification's JSON schema, which check-jsonschema contains."""
    return [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
