"""One kit a test: its own directory, port and engines, none of which outlives it."""

import fcntl
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeys.kit import Kit


@pytest.fixture
def kit(tmp_path: Path, port: int) -> Iterator[Kit]:
    lease = tmp_path / "lease"
    with lease.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        one = Kit(directory=tmp_path, lease=lease, port=port)
        try:
            yield one
        finally:
            for command in one.running:
                command.process.kill()
                command.process.wait()


@pytest.fixture
def port() -> Iterator[int]:
    """A free port that no other test gets meanwhile. It lies below those that the kernel gives to clients, and its
    claim is a name in the abstract socket namespace, which ends with this process."""
    while True:
        number = random.randrange(20_000, 32_000)
        with socket.socket(socket.AF_UNIX) as claim, socket.socket() as probe:
            try:
                claim.bind(f"\0glm4-deploy-journey-{number}")
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
            probe.close()
            yield number
            return
