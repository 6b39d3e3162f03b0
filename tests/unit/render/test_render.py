"""The rendered file: the publisher's example, hostile values, Compose and its schema."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import FileSystemLoader
from typer.testing import CliRunner

from glm4_deploy import __version__
from glm4_deploy.catalog.rows import profiles
from glm4_deploy.cli.app import app
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.errors import Judged, UsageError
from glm4_deploy.files import write_text
from glm4_deploy.render.compose import COMPOSE, compose_file, rendered
from glm4_deploy.render.quoting import environment, scalar
from golden.render import committed

ROOT = Path(__file__).parents[3]
CARD = ROOT / "tests/data/model-card/compose.yaml"
# Where the rendered `seed` file differs from the publisher's example, and why.
DIFFERENCES = {
    "ports": "published on 127.0.0.1 only: the example opens every interface, without a key",
    "environment": "more variables, and all values as text (YAML numbers become text anyway)",
    "volumes": "a second one, for compiled kernels",
    "restart": "added: comes back after a reboot",
    "healthcheck": "added",
    "logging": "added: rotation",
    "ulimits": "added: NVIDIA's advice for this image",
    "command": "a list instead of a folded string, after the script that counts starts",
}


def service(text: str) -> dict[str, Any]:
    (only,) = yaml.safe_load(text)["services"].values()
    return dict(only)


def options(argv: list[str]) -> dict[str, str]:
    start = next(index for index, word in enumerate(argv) if word.startswith("--"))
    words = argv[start:]
    return dict(zip(words[::2], words[1::2], strict=True))


def render(**flags: object) -> str:
    return compose_file(resolve_spec(flags))


def test_seed_contains_every_line_of_the_publishers_example() -> None:
    card, ours = service(CARD.read_text()), service(render(profile="seed"))
    for key, value in card.items():
        if key not in DIFFERENCES:
            assert ours[key] == value, key
    assert set(ours) - set(card) <= set(DIFFERENCES)
    assert ours["ports"] == [f"127.0.0.1:{card['ports'][0]}"]
    assert card["volumes"][0] in ours["volumes"]
    for name, value in card["environment"].items():
        assert ours["environment"][name] == str(value)
    assert all(isinstance(value, str) for value in ours["environment"].values())
    assert isinstance(ours["command"], list)
    card_argv = card["command"].split()
    assert ours["command"][4:7] == card_argv[:3]
    assert options(ours["command"]) == options(card_argv)
    assert "entrypoint" not in ours


@pytest.mark.parametrize("name", list(profiles()))
def test_the_committed_file_of_each_profile_has_not_drifted(name: str) -> None:
    for path, text in committed(name).items():
        assert path.read_text() == text, "run `make compose`"


@pytest.mark.parametrize("name", list(profiles()))
def test_compose_and_its_schema_accept_each_profile(name: str, compose: list[str], check_schema: list[str]) -> None:
    file = ROOT / "compose" / f"{name}.yaml"
    done = subprocess.run(
        [*compose, "-f", file, "config", "--format", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (only,) = json.loads(done.stdout)["services"].values()
    assert only["command"] == service(file.read_text())["command"]
    subprocess.run([*check_schema, file], check=True, capture_output=True)


@pytest.mark.parametrize("name", list(profiles()))
def test_what_every_profile_must_have(name: str) -> None:
    ours = service(render(profile=name))
    assert ours["ports"] == ["127.0.0.1:8080:8080"]
    assert ours["healthcheck"]["test"][:2] == ["CMD", "python3"]
    assert ours["logging"]["options"].keys() == {"max-size", "max-file"}
    assert ours["restart"] == "on-failure", "and the command counts: tests/unit/render/test_restart_script.py"
    if name != "cpu":
        assert ours["environment"]["TRITON_PTXAS_PATH"] == ours["environment"]["TRITON_PTXAS_BLACKWELL_PATH"]
        assert options(ours["command"])["--kv-cache-dtype"] == "fp8"
        assert options(ours["command"])["--max-model-len"] == "32768"
    if name != "seed":
        assert ours["security_opt"] == ["no-new-privileges:true"]
        assert ours["cap_drop"] == ["ALL"]
        assert ours["pids_limit"] == 8192
        assert ours["environment"]["DO_NOT_TRACK"] == ours["environment"]["VLLM_NO_USAGE_STATS"] == "1"
        model = next(volume for volume in ours["volumes"] if volume["type"] == "bind")
        assert model["read_only"] is True
        assert model["bind"] == {"create_host_path": False}


def test_settings_reach_the_file() -> None:
    ours = service(
        compose_file(
            resolve_spec(
                {"profile": "gb10", "port": 9000, "bind": "192.0.2.7", "model_dir": "/data/glm-4-x", "shm_size": "4gb"},
                sets=[
                    'env.FOO=$HOME\'s "x"',
                    "args.seed=7",
                    "args.async-scheduling=null",
                    'args.hf-overrides={"a": 1}',
                ],
            )
        )
    )
    assert ours["ports"] == ["192.0.2.7:9000:8080"]
    assert ours["environment"]["FOO"] == '$$HOME\'s "x"'
    assert ours["shm_size"] == "4gb"
    command = ours["command"]
    assert command[command.index("--model") + 1] == "/mnt/models/glm-4-x"
    assert command[command.index("--seed") + 1] == "7"
    assert "--async-scheduling" in command
    assert command[command.index("--hf-overrides") + 1] == '{"a": 1}'


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1))
def test_no_value_can_break_a_scalar(text: str) -> None:
    assert yaml.safe_load(f"key: {scalar(text)}")["key"] == text.replace("$", "$$")


def test_the_same_settings_give_the_same_bytes() -> None:
    assert render(profile="b200", port=1234) == render(profile="b200", port=1234)


@pytest.mark.parametrize("path", ["~/models/x", "/", "..", "/models/.."])
def test_a_model_directory_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="model_dir"):
        render(model_dir=path)


def test_a_flag_that_contradicts_a_setting_is_refused() -> None:
    with pytest.raises(UsageError, match=r"args\.port"):
        resolve_spec({}, sets=["args.port=1"])


def test_a_misspelt_variable_causes_a_warning() -> None:
    warnings = resolve_spec({}, sets=["env.TRITON_TXAS_PATH=/x"]).warnings
    assert any("TRITON_PTXAS_PATH" in warning for warning in warnings)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An additional template folder, with the extra `side`, which has a file and a volume."""
    folder = tmp_path / "services"
    (folder / "side").mkdir(parents=True)
    (folder / "side.yaml.j2").write_text(
        '{% set volumes = ["side-data"] %}\n'
        "  side:\n    image: x\n    profiles: [side]\n    command: [{{ d.served_model_name | y }}]\n"
        "    volumes: [./side/side.conf:/side.conf:ro, side-data:/data]\n"
    )
    (folder / "side/side.conf.j2").write_text("port {{ d.port }}\n")
    loader = environment().loader
    assert isinstance(loader, FileSystemLoader)
    monkeypatch.setattr(loader, "searchpath", [*loader.searchpath, str(tmp_path)])
    return tmp_path


def test_an_extra_is_one_template_with_its_files_and_volumes(beside: Path, compose: list[str]) -> None:
    plain = rendered(resolve_spec({"profile": "cpu", "port": 9000}))
    files = rendered(resolve_spec({"profile": "cpu", "port": 9000, "extras": ["side"]}, sets=["project=p"]))
    assert list(plain) == [COMPOSE]
    assert files["side/side.conf"] == "port 9000\n"
    for name, text in files.items():
        write_text(beside / "out" / name, text)
    done = subprocess.run(
        [*compose, "-f", beside / "out" / COMPOSE, "--profile", "*", "config", "--format", "json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)
    assert config["services"]["side"]["command"] == ["glm-4-9b-chat"]
    assert set(config["volumes"]) == {"cache", "side-data"}


def networks_and_ports(extras: tuple[str, ...], *sets: str) -> dict[str, tuple[set[str], list[str]]]:
    """Service → the networks it is on, the ports it publishes."""
    made = rendered(resolve_spec({"profile": "cpu", "extras": list(extras)}, sets=sets))[COMPOSE]
    services = yaml.safe_load(made)["services"]
    return {name: (set(one.get("networks", ["default"])), one.get("ports", [])) for name, one in services.items()}


EVERYTHING = ("gateway", "guard", "monitoring", "ui", "watch")


@pytest.mark.parametrize(
    ("extras", "sets", "closed"),
    [
        (("gateway",), (), True),
        (EVERYTHING, (), True),
        ((), ("replicas=2",), True),
        (("gateway", "guard"), ("replicas=2",), True),
        ((), (), False),
        (("monitoring", "watch"), (), False),
        (("gateway",), ("egress=true",), False),
        ((), ("replicas=2", "egress=true"), False),
        (("gateway",), ("env.HF_HUB_OFFLINE=0",), False),
    ],
)
def test_an_engine_behind_another_service_has_no_way_out(
    extras: tuple[str, ...], sets: tuple[str, ...], closed: bool
) -> None:
    services = networks_and_ports(extras, *sets)
    engines = [name for name in services if name.startswith("glm4-9b-nvfp4")]
    for name in engines:
        assert services[name][0] == ({"engine"} if closed else {"default"})
    # Docker publishes no port of a container that is only on an internal network.
    for name, (networks, ports) in services.items():
        assert "default" in networks or not ports, name
    (owner,) = (
        name for name, (_, ports) in services.items() if any(port.startswith("127.0.0.1:8080:") for port in ports)
    )
    front = "router" if "replicas=2" in sets else "gateway"
    assert owner == (front if closed or front == "router" else engines[0])
    for name in {"gateway", "guard", "ui", "watch", "prometheus", "router"} & services.keys():
        assert ("engine" in services[name][0]) is closed, f"{name} must reach the engine"


def test_the_gateway_passes_the_engines_own_port_only_where_it_publishes_it() -> None:
    def sites(*sets: str) -> str:
        return rendered(resolve_spec({"profile": "cpu", "extras": ["gateway"], "port": 8123}, sets=sets))[
            "gateway/Caddyfile"
        ]

    assert "http://:{$ENGINE_PORT:8123}" in sites()
    assert "ENGINE_PORT" not in sites("egress=true")
    assert "ENGINE_PORT" not in sites("replicas=2")


SERVICES = ("gateway", "gateway-auth", "guard", "prometheus", "node-exporter", "grafana", "ui", "watch")
PORTS = ("gateway_port", "gateway_ui_port", "prometheus_port", "grafana_port", "watch_port")


@pytest.mark.parametrize(
    "sets",
    [
        *((f"service={name}",) for name in SERVICES),
        *((f"container_name={name}",) for name in SERVICES),
        *((f"container_name=p-{name}-1", "project=p") for name in SERVICES),
        ("service=router-1", "replicas=2", "container_name=p-gateway", "project=p", "gateway_port=8080"),
        *((f"{name}=8080",) for name in PORTS),
        *((f"{one}=9000", f"{other}=9000") for one in PORTS for other in PORTS if one < other),
        *((f"{name}=8080", "egress=true") for name in PORTS),
    ],
)
def test_two_things_of_one_name_or_on_one_port_are_refused(sets: tuple[str, ...]) -> None:
    extras = list(EVERYTHING)
    with pytest.raises(UsageError, match="is wanted twice"):
        rendered(resolve_spec({"profile": "cpu", "extras": extras}, sets=sets))


def test_the_chat_page_without_the_gateway_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        resolve_spec({"extras": ["ui"]})
    assert "--with gateway,ui" in refused.value.hint
    assert set(resolve_spec({"extras": ["ui", "gateway"]}).extras) == {"ui", "gateway"}


def ui_service(*sets: str) -> dict[str, Any]:
    made = rendered(resolve_spec({"profile": "gb10", "extras": ["gateway", "ui"]}, sets=sets))
    return dict(yaml.safe_load(made["compose.yaml"])["services"]["ui"])


def test_the_chat_pages_administrator_is_made_from_a_secret_and_nobody_signs_up() -> None:
    ui = ui_service("ui_admin=ada@example.org")
    assert ui["environment"]["WEBUI_ADMIN_EMAIL"] == "ada@example.org"
    assert ui["environment"]["ENABLE_SIGNUP"] == "false"
    assert not [name for name in ui["environment"] if "PASSWORD" in name]
    for wrong in ("ada", "@x.org", "a b@x.org", "a@b"):
        with pytest.raises(UsageError, match="e-mail"):
            ui_service(f"ui_admin={wrong}")


@pytest.mark.parametrize("password", [None, "", "\n"])
def test_the_chat_page_does_not_start_without_its_administrators_password(tmp_path: Path, password: str | None) -> None:
    (tmp_path / "engine_api_key").write_text("k3y\n")
    (tmp_path / "start.sh").write_text('echo "$WEBUI_ADMIN_PASSWORD $OPENAI_API_KEY"')
    shell, flag, script = ui_service("api_key_file=/k")["command"]
    words = [shell, flag, script.replace("/run/secrets", str(tmp_path)).replace("$$", "$")]
    if password is not None:
        (tmp_path / "ui_admin_password").write_text(password)
    refused = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (78, "")
    (tmp_path / "ui_admin_password").write_text("s3cret\n")
    started = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert started.stdout == "s3cret k3y\n"


def test_an_extra_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="'nosuch'"):
        render(extras=["nosuch"])


def test_render_writes_and_checks_additional_files(beside: Path) -> None:
    out = beside / "deploy"
    out.mkdir()
    runner, words = CliRunner(), ["render", "--profile", "cpu", "--with", "side", "-o", str(out)]
    assert runner.invoke(app, words).exit_code == 0
    assert (out / COMPOSE).is_file()
    assert runner.invoke(app, [*words, "--check"]).exit_code == 0
    (out / "side/side.conf").write_text("changed\n")
    drifted = runner.invoke(app, [*words, "--check"])
    assert isinstance(drifted.exception, Judged)
    assert "side.conf" in str(drifted.exception)


@pytest.mark.parametrize("extra", [(), ("--target", "kubernetes"), ("--target", "quadlet")], ids=" ".join)
def test_a_file_of_another_version_of_the_kit_has_not_drifted(tmp_path: Path, extra: tuple[str, ...]) -> None:
    """A hook's or an action's clone has no tags, so its version is another one than the user's."""
    runner, words = CliRunner(), ["render", "--profile", "gb10", *extra, "-o", f"{tmp_path}/"]
    assert runner.invoke(app, words).exit_code == 0
    files = [path for path in tmp_path.iterdir() if __version__ in path.read_text()]
    assert files
    for path in files:
        path.write_text(path.read_text().replace(__version__, "9.8.7.dev6"))
    assert runner.invoke(app, [*words, "--check"]).exit_code == 0
    assert "9.8.7.dev6" in runner.invoke(app, [*words[:-2], "--diff", str(tmp_path)]).stdout
    assert isinstance(runner.invoke(app, [*words, "--port", "9", "--check"]).exception, Judged)


def test_without_the_tool_an_env_file_overrides_what_is_meant_to_be_and_nothing_else(
    tmp_path: Path, compose: list[str]
) -> None:
    values = {"overridable": True, "api_key_file": "/etc/glm4/key", "bind": "::1", "model_dir": "/models/a: b'\"#c"}
    plain = resolve_spec({**values, "overridable": False, "profile": "gb10"})
    write_text(tmp_path / COMPOSE, compose_file(resolve_spec({**values, "profile": "gb10"})))
    write_text(tmp_path / "plain" / COMPOSE, compose_file(plain))

    def config(file: Path) -> Any:
        done = subprocess.run(
            [*compose, "-f", file, "config", "--format", "json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    by_default = config(tmp_path / COMPOSE)
    without = config(tmp_path / "plain" / COMPOSE)
    assert by_default["services"] == without["services"]
    assert by_default["secrets"] == without["secrets"]
    write_text(
        tmp_path / ".env",
        "GLM4_PORT=9000\nGLM4_BIND=127.0.0.2\nGLM4_MODEL_DIR=/srv/other model\nGLM4_API_KEY_FILE=/srv/key\n",
    )
    changed = config(tmp_path / COMPOSE)
    (engine,) = changed["services"].values()
    assert (engine["ports"][0]["published"], engine["ports"][0]["host_ip"]) == ("9000", "127.0.0.2")
    assert "/srv/other model" in {mount["source"] for mount in engine["volumes"]}
    assert changed["secrets"]["engine_api_key"]["file"] == "/srv/key"


@pytest.mark.parametrize(
    ("key", "value"), [("model_dir", "/models/$HOME"), ("model_dir", "/m/}x"), ("mount", "parent")]
)
def test_what_cannot_be_a_default_in_compose_is_refused(key: str, value: str) -> None:
    with pytest.raises(UsageError, match="overridable"):
        compose_file(resolve_spec({"profile": "gb10", "overridable": True, key: value}))


def test_a_dash_is_stdout_for_every_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in ("compose", "kubernetes", "quadlet"):
        words = ["render", "--profile", "cpu", "--target", target]
        plain, dash = (CliRunner().invoke(app, [*words, *more]) for more in ((), ("-o", "-")))
        assert (dash.exit_code, dash.stdout) == (0, plain.stdout)
    assert not list(tmp_path.iterdir())
