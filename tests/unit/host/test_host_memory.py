"""Memory figures: of recorded trees in the kernel's formats, and of this host."""

from pathlib import Path

import pytest

from glm4_deploy.host.memory import Pressure, largest_users, parse_pressure, read_memory

HOSTS = Path(__file__).parents[2] / "data/hosts"
# The format of the kernel's Documentation/accounting/psi.rst.
PSI = "some avg10=12.50 avg60=3.10 avg300=0.70 total=48210\nfull avg10=4.25 avg60=1.00 avg300=0.20 total=21001\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def host(root: Path, cgroup: str) -> Path:
    meminfo = (HOSTS / "gb10-meminfo.txt").read_text()
    return tree(root / "proc", {"meminfo": meminfo, "pressure/memory": PSI, "7/cgroup": cgroup})


def test_a_limited_container_on_cgroup_2_and_the_slice_above_it(tmp_path: Path) -> None:
    proc = host(tmp_path, "0::/system.slice/docker-1f.scope\n")
    sys = tree(
        tmp_path / "sys",
        {
            "system.slice/docker-1f.scope/memory.current": "3000\n",
            "system.slice/docker-1f.scope/memory.max": "4000\n",
            "system.slice/docker-1f.scope/memory.stat": "anon 1500\nfile 1200\ninactive_file 900\n",
            "system.slice/docker-1f.scope/memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n",
            "system.slice/docker-1f.scope/memory.pressure": PSI,
            "system.slice/memory.current": "9000\n",
            "system.slice/memory.max": "max\n",
        },
    )
    facts = read_memory(7, proc=proc, sys=sys)
    assert facts.pressure == Pressure(some=12.5, full=4.25)
    (group,) = facts.groups
    assert (group.used, group.limit, group.left, group.oom_kills) == (2100, 4000, 1900, 2)
    assert group.pressure == facts.pressure
    assert (facts.total or 0) / 2**30 == pytest.approx(121.69, abs=0.01)


def test_a_limited_container_on_cgroup_1(tmp_path: Path) -> None:
    proc = host(tmp_path, "9:name=systemd:/docker/1f\n4:memory:/docker/1f\n0::/\n")
    sys = tree(
        tmp_path / "sys",
        {
            "unified/cgroup.controllers": "",
            "memory/docker/1f/memory.usage_in_bytes": "3000\n",
            "memory/docker/1f/memory.limit_in_bytes": "4000\n",
            "memory/docker/1f/memory.stat": "cache 1200\ntotal_inactive_file 900\n",
            "memory/docker/1f/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            "memory/docker/memory.usage_in_bytes": "9000\n",
            "memory/docker/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    (group,) = read_memory(7, proc=proc, sys=sys).groups
    assert (group.used, group.limit, group.oom_kills, group.pressure) == (2100, 4000, 1, None)


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    facts = read_memory(7, proc=tmp_path / "none", sys=tmp_path / "none")
    assert (facts.total, facts.available, facts.pressure, facts.groups) == (None, None, None, ())
    for text in ("", "some avg10=x\n", "some avg10=1.0\n", "full\n"):
        assert parse_pressure(text) is None


def test_this_host_and_its_largest_processes() -> None:
    facts = read_memory()
    assert facts.available is not None and facts.total is not None
    assert 0 < facts.available <= facts.total
    users = largest_users(3)
    assert users == sorted(users, key=lambda one: -one.used) and users[0].used > 0
    assert users[0].pid not in {one.pid for one in largest_users(3, without=frozenset({users[0].pid}))}
