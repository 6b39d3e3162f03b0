"""Engine, gateway, guard and monitoring in real containers with their limits, seen from another network namespace."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import yaml

from e2e.gateway import CADDY
from e2e.kit import KIT, ROOT, Kit, free_port

pytestmark = pytest.mark.e2e
CANARY = "canary-5t4ck-k3y"
NAMESPACE, OUTSIDE, INSIDE = f"glm4-{os.getpid()}", "10.231.7.1", "10.231.7.2"
# Run in the other namespace: prints every TCP port of an address that accepts a connection.
SCAN = """
import socket, sys
for port in map(int, sys.argv[2:]) if sys.argv[2:] else range(1, 65536):
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((sys.argv[1], port)) == 0:
            print(port)
"""


@contextmanager
def neighbour() -> Iterator[None]:
    """A network namespace linked to this host's, like another machine on the same network."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and `ip` to make a network namespace")
    link = f"g{os.getpid()}"
    commands = [
        f"ip netns add {NAMESPACE}", f"ip link add {link} type veth peer name {link}p",
        f"ip link set {link}p netns {NAMESPACE}", f"ip addr add {OUTSIDE}/24 dev {link}", f"ip link set {link} up",
        f"ip -n {NAMESPACE} addr add {INSIDE}/24 dev {link}p", f"ip -n {NAMESPACE} link set {link}p up",
        f"ip -n {NAMESPACE} link set lo up", f"ip -n {NAMESPACE} route add default via {OUTSIDE}",
    ]  # fmt: skip
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False, capture_output=True)


def scan(address: str, *ports: int) -> set[int]:
    """The ports (of these, or of all) that accept a connection from the other namespace."""
    words = ["ip", "netns", "exec", NAMESPACE, sys.executable, "-c", SCAN, address, *map(str, ports)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    return set(map(int, done.stdout.split()))


def fill(engine_override: Path, target: Path) -> Path:
    """Write the override that fills the other services' images from this host, like the engine's.

    Grafana and the node exporter are left out: the host has no Grafana to mount.
    """
    (engine,) = yaml.safe_load(engine_override.read_text())["services"].values()
    image = "glm4-deploy/vllm-cpu:0.32.0"
    programs = {"gateway": CADDY, "prometheus": shutil.which("prometheus")}
    services = {"gateway-auth": {"image": image, "environment": engine["environment"], "volumes": engine["volumes"]}}
    for name, program in programs.items():
        mount = _read_only(program) | {"target": f"/opt/bin/{name}"}
        services[name] = {
            "image": image,
            "volumes": [*engine["volumes"], mount],
            "environment": {"PATH": "/opt/bin:/usr/bin"},
        }
    mounted = {volume["target"] for volume in engine["volumes"]}
    places = {sys.prefix, sys.base_prefix, str(ROOT / "src")} - mounted
    services["guard"] = {
        "image": image,
        "volumes": [*engine["volumes"], *(_read_only(place) for place in sorted(places) if place != "/usr")],
        "environment": {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        "entrypoint": KIT,
    }
    services["gateway"]["command"] = ["gateway", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
    services["gateway"]["environment"] |= {"XDG_DATA_HOME": "/data", "XDG_CONFIG_HOME": "/config"}
    # The program itself, since the image has no entrypoint.
    services["prometheus"]["entrypoint"] = ["prometheus"]
    text = yaml.safe_dump({"services": services})
    target.write_text(text + "  grafana: !reset null\n  node-exporter: !reset null\n")
    return target


def _read_only(place: str | None) -> dict[str, object]:
    return {"type": "bind", "source": place, "target": place, "read_only": True}


def containers(project: str) -> dict[str, dict[str, object]]:
    label = f"label=com.docker.compose.project={project}"
    names = subprocess.run(["docker", "ps", "-aq", "--filter", label], capture_output=True, text=True, check=True)
    done = subprocess.run(["docker", "inspect", *names.stdout.split()], capture_output=True, text=True, check=True)
    return {row["Config"]["Labels"]["com.docker.compose.service"]: row for row in json.loads(done.stdout)}


def published(project: str) -> set[int]:
    rows = containers(project).values()
    ports = [
        binding
        for row in rows
        for bindings in (row["HostConfig"]["PortBindings"] or {}).values()
        for binding in bindings
    ]  # type: ignore[index]
    return {int(binding["HostPort"]) for binding in ports}


def test_the_running_stack_opens_only_the_requested_ports_and_leaks_no_secret(kit: Kit, override: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus: apt-get install prometheus")
    (kit.directory / "secrets").mkdir(mode=0o700)
    (kit.directory / "secrets/key").write_text(CANARY + "\n")
    port, prometheus = free_port(), free_port()
    token = kit.run("key", "add", "ada", "--rate", "1000").out.strip()
    sets = [f"api_key_file={kit.directory}/secrets/key", f"gateway_port={port}", f"gateway_bind={OUTSIDE}",
            f"prometheus_port={prometheus}", f"gateway_host={OUTSIDE}"]  # fmt: skip
    words = [word for item in sets for word in ("--set", item)]
    beside = fill(override, kit.directory / "beside.yaml")
    with neighbour():
        before = scan(OUTSIDE)
        done = kit.up("--override", override, "--override", beside, "--with", "gateway,guard,monitoring", *words)
        assert done.code == 0, done.err
        assert published(kit.project) == {kit.port, port, prometheus}
        assert (scan(OUTSIDE) - before) & published(kit.project) == {port}
        routed_to_the_containers(kit)
        the_engine_has_no_way_out(kit)
        through_the_gateway(kit, port, token)
        judged_by_the_guard(kit)
        scraped(prometheus)
        limits(kit)
        contents = places(kit)
        assert {name for name, content in contents.items() if CANARY.encode() in content} == set()
        assert {name for name, content in contents.items() if token.encode() in content} == set()
        assert kit.run("down", "--volumes", "--yes").code == 0


def routed_to_the_containers(kit: Kit) -> None:
    """A neighbour that sends packets to the containers' own addresses through this host.

    Docker before 28 lets it reach ports that are published on loopback (moby#49325); the engine still requires its key.
    """
    inside = (8080, 9090, 9180, kit.port, 2019)
    for name, row in containers(kit.project).items():
        bindings = row["HostConfig"]["PortBindings"] or {}  # type: ignore[index]
        for network in row["NetworkSettings"]["Networks"].values():  # type: ignore[index]
            reached = scan(network["IPAddress"], *inside)
            assert reached <= {int(port.split("/")[0]) for port in bindings}, name
            if kit.port in reached:
                code = "import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=10)"
                words = ["ip", "netns", "exec", NAMESPACE, sys.executable, "-c", code]
                url = f"http://{network['IPAddress']}:{kit.port}/v1/models"
                assert "401" in subprocess.run([*words, url], capture_output=True, text=True, check=False).stderr


def the_engine_has_no_way_out(kit: Kit) -> None:
    """A server in the other namespace: the gateway and Prometheus reach it, the engine and the authoriser do not."""
    listen = f"import http.server as h; h.HTTPServer(('{INSIDE}', 80), h.SimpleHTTPRequestHandler).serve_forever()"
    words = ["ip", "netns", "exec", NAMESPACE, sys.executable, "-c", listen]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while scan(INSIDE, 80) != {80}:
            assert time.monotonic() < deadline, "the server in the other namespace does not listen"
        reach = f"import socket; socket.create_connection(('{INSIDE}', 80), timeout=5)"
        reached = set()
        for name, row in containers(kit.project).items():
            words = ["docker", "exec", str(row["Id"]), "/usr/bin/python3", "-c", reach]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0 or "Network is unreachable" in done.stderr or "timed out" in done.stderr, done
            if done.returncode == 0:
                reached.add(name)
        assert reached == {"gateway", "prometheus"}
    finally:
        server.kill()
        server.wait()


def through_the_gateway(kit: Kit, port: int, token: str) -> None:
    """A client of the gateway: its certificate is verified, a key is required, a chat is answered."""
    gateway = str(containers(kit.project)["gateway"]["Name"]).lstrip("/")
    root = kit.directory / "root.crt"
    source = f"{gateway}:/data/caddy/pki/authorities/local/root.crt"
    subprocess.run(["docker", "cp", source, root], check=True, capture_output=True)
    body = {
        "model": "glm-4-9b-chat",
        "messages": [{"role": "user", "content": "What is 17 + 25? Answer with the number only."}],
    }
    with httpx.Client(verify=ssl.create_default_context(cafile=str(root)), trust_env=False, timeout=60) as client:
        url = f"https://{OUTSIDE}:{port}"
        assert client.get(f"{url}/health").status_code == 200
        assert client.get(f"{url}/metrics").status_code == 404
        assert client.get(f"{url}/v1/models").status_code == 401
        headers = {"authorization": f"Bearer {token}"}
        answer = client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        assert "42" in answer.text, answer.text
        assert kit.run("key", "revoke", "ada").code == 0
        assert client.get(f"{url}/v1/models", headers=headers).status_code == 401


def judged_by_the_guard(kit: Kit) -> None:
    """`status` asks the guard in its container: what the client got was read, and nothing was found in it."""
    status = kit.run("status", "--json")
    assert status.code == 0, status.err
    guard = status.json["guard"]
    assert (guard["answers"], guard["mode"]) == (True, "observe"), guard
    assert guard["counts"]["judged"] == 1 and guard["counts"]["sick"] == 0, guard
    assert "1 answers judged" in kit.run("status").out


def scraped(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{port}/api/v1/query"
            answer = httpx.get(url, params={"query": 'up{job="engine"} == 1'}, trust_env=False).json()
            if answer["data"]["result"]:
                return
        assert time.monotonic() < deadline
        time.sleep(1)


def limits(kit: Kit) -> None:
    for name, row in containers(kit.project).items():
        host = row["HostConfig"]
        assert host["CapDrop"] == ["ALL"], name  # type: ignore[index]
        assert host["ReadonlyRootfs"] is True, name  # type: ignore[index]
        assert "no-new-privileges:true" in host["SecurityOpt"], name  # type: ignore[index]
        assert host["PidsLimit"] > 0, name  # type: ignore[index]
        assert host["Memory"] > 0, name  # type: ignore[index]
        assert host["Privileged"] is False, name  # type: ignore[index]


def places(kit: Kit) -> dict[str, bytes]:
    """Where a key could leak: logs, `docker inspect`, the process list, every file that the kit wrote."""
    contents = {}
    for name, row in containers(kit.project).items():
        logs = subprocess.run(["docker", "logs", str(row["Id"])], capture_output=True, check=True)
        contents[f"log of {name}"] = logs.stdout + logs.stderr
        contents[f"inspect {name}"] = json.dumps(row).encode()
    contents["process list"] = subprocess.run(["ps", "axww"], capture_output=True, check=True).stdout
    files = (path for path in kit.directory.rglob("*") if path.is_file() and path.parent.name != "secrets")
    return contents | {str(path): path.read_bytes() for path in files}
