"""Settings: the layers and their order, and one sentence for bad input."""

from pathlib import Path

import pytest

from glm4_deploy.catalog.rows import profiles
from glm4_deploy.errors import UsageError
from glm4_deploy.settings import Settings, load_settings, merge_settings, read_env_file, user_file


def test_flags_override_the_environment_the_file_and_the_profile(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text("port: 1001\nmax_num_seqs: 7\nshm_size: 2gb\nprofile: rtx-5090\nenv: {A: 1, B: true}\n")
    environ = {"GLM4_PORT": "1002", "GLM4_MAX_NUM_SEQS": "8", "GLM4_DEBUG": "1", "HOME": "/"}
    settings, profile = load_settings({"port": 1003, "bind": None}, file=file, environ=environ, sets=["env.B=x"])
    assert profile.name == "rtx-5090"
    assert (settings.port, settings.max_num_seqs, settings.shm_size) == (1003, 8, "2gb")
    assert settings.env == {"A": "1", "B": "x"}


def test_each_layer_wins_over_those_below_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_CONFIG_HOME": f"{tmp_path}/config", "GLM4_BIND": "::1"}
    user = user_file(environ)
    assert user == tmp_path / "config/glm4-deploy/glm4.yaml"
    user.parent.mkdir(parents=True)
    names = ("port", "max_num_seqs", "grafana_port", "shm_size", "bind")
    user.write_text("port: 1\nmax_num_seqs: 1\ngrafana_port: 1\nshm_size: 1gb\nbind: 127.0.0.1\nmodel_dir: m\n")
    (tmp_path / "glm4.yaml").write_text("port: 2\nmax_num_seqs: 2\nshm_size: 2gb\nbind: 127.0.0.2\n")
    (tmp_path / ".env").write_text("GLM4_PORT=3\nGLM4_SHM_SIZE=3gb\nGLM4_BIND=127.0.0.3\n")
    merged = merge_settings({"port": 4}, environ=environ, sets=["max_model_len=5"])
    values = {name: (getattr(merged.settings, name), merged.origin[name]) for name in names}
    assert values == {
        "port": (4, "command line"), "max_num_seqs": (2, "glm4.yaml"), "grafana_port": (1, str(user)),
        "shm_size": ("3gb", ".env"), "bind": ("::1", "environment"),
    }  # fmt: skip
    assert merged.origin["max_model_len"] == "--set"
    assert merged.origin["ipc"] == "profile seed"
    assert "restart" not in merged.origin
    assert merged.settings.model_dir == f"{user.parent}/m"  # a relative path starts at its file
    for file, text, said in ((user, "prot: 1", str(user)), (tmp_path / ".env", "GLM4_PROT=1", ".env.*GLM4_PROT")):
        before = file.read_text()
        file.write_text(text)
        with pytest.raises(UsageError, match=said):
            load_settings(environ=environ)
        file.write_text(before)


def test_a_dotenv_file_is_read_as_compose_reads_it(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "# GLM4_PORT=1\nexport GLM4_PORT = 2 # two\nGLM4_A='x # y'  # z\nGLM4_B=\"q\"\nGLM4_C=a#b\nGLM4_D=\n"
        "PASSWORD=secret\nGLM4_E\n  GLM4_F=1\n"
    )
    assert read_env_file(file) == {
        "GLM4_PORT": "2", "GLM4_A": "x # y", "GLM4_B": "q", "GLM4_C": "a#b", "GLM4_D": "", "GLM4_F": "1",
    }  # fmt: skip
    assert read_env_file(tmp_path / "none") == {}
    file.write_bytes(b"GLM4_PORT=\xff\n")
    with pytest.raises(UsageError, match="cannot read"):
        read_env_file(file)


def test_environment_and_flags_of_a_file_stay_as_they_are_written(tmp_path: Path) -> None:
    """YAML 1.1 reads yes as true, 010 as 8, 12:30:45 as 45045 and 1.10 as 1.1; a container got that."""
    file = tmp_path / "glm4.yaml"
    file.write_text(
        "env: {A: yes, B: on, C: 010, D: 12:30:45, E: 1.10, F: .inf, G: True, H: true, I: 2026-01-02, J: 1_000}\n"
        "args: {a: on, b: 010, c: 1e-3, d: true, e: null, f: {x: 1, y: true}, g: True}\n"
    )
    settings, _ = load_settings(file=file, environ={})
    assert settings.env == {
        "A": "yes", "B": "on", "C": "010", "D": "12:30:45", "E": "1.10", "F": ".inf", "G": "True", "H": "true",
        "I": "2026-01-02", "J": "1_000",
    }  # fmt: skip
    assert settings.args == {
        "a": "on", "b": "010", "c": "1e-3", "d": True, "e": None, "f": '{"x": 1, "y": true}', "g": None,
    }  # fmt: skip


def test_groups_are_json_in_the_environment() -> None:
    settings, _ = load_settings(environ={"GLM4_ENV": '{"A": "x", "B": 1.10}', "GLM4_KUBERNETES": '{"cpu": 3}'})
    assert (settings.env, settings.kubernetes.cpu) == ({"A": "x", "B": "1.10"}, 3)
    for bad in ("x", "{", "[1]"):
        with pytest.raises(UsageError, match=r"GLM4_ENV|env"):
            load_settings(environ={"GLM4_ENV": bad})


def test_a_relative_path_starts_at_its_file_or_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    file = tmp_path / "there/glm4.yaml"
    file.write_text("model_dir: ./models/x\napi_key_file: key\n")
    settings, _ = load_settings(file=file, environ={})
    assert (settings.model_dir, settings.api_key_file) == (f"{file.parent}/models/x", f"{file.parent}/key")
    for given in (load_settings({"model_dir": "m/x"}, environ={}), load_settings(environ={"GLM4_MODEL_DIR": "m/x"})):
        assert given[0].model_dir == f"{tmp_path}/m/x"


@pytest.mark.parametrize(
    ("sets", "environ"),
    [
        (["env.HF_TOKEN=hf_Zq7secret\r"], {}),
        (["env.DATABASE=https://me:hf_Zq7secret@host/\r"], {}),
        ([], {"GLM4_ENV": '{"HF_TOKEN": ["hf_Zq7secret"]}'}),
        ([], {"GLM4_ENV": '["hf_Zq7secret"]'}),
    ],
)
def test_a_refused_value_is_shown_without_its_secret(sets: list[str], environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(environ=environ, sets=sets)
    assert "Zq7secret" not in f"{caught.value.message} {caught.value.hint}"


def test_no_refusal_shows_a_regular_expression() -> None:
    wrong = {"env": {"A-B": "x"}, "args": {"A": 1}, "digests": {"x": "y"}} | {
        key: "a b\r" for key in Settings.model_fields if key not in ("profile", "env", "args", "digests", "kubernetes")
    }
    for key, value in wrong.items():
        with pytest.raises(UsageError) as caught:
            load_settings({key: value}, environ={})
        assert "pattern" not in caught.value.message, caught.value.message


def test_a_bare_no_is_the_restart_policy(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text("restart: no\n")
    assert load_settings(file=file, environ={})[0].restart == "no"
    assert load_settings(environ={}, sets=["restart=no"])[0].restart == "no"


def test_without_settings_the_seed_profile_is_used() -> None:
    settings, profile = load_settings(environ={})
    assert profile.name == settings.profile == "seed"
    assert settings.gpu_memory_utilization == 0.75


def test_every_profile_is_valid_and_gives_reasons_for_its_own_keys() -> None:
    for name, row in profiles().items():
        settings, _ = load_settings({"profile": name}, environ={})
        assert settings.profile == name
        assert set(row.reasons) <= {*Settings.model_fields, "profile"}


@pytest.mark.parametrize(
    ("sets", "environ", "message"),
    [
        (["gpu_memory_utilization=1.5"], {}, "gpu_memory_utilization"),
        (["gpu_memory_utilization=0"], {}, "gpu_memory_utilization"),
        (["gpu_memory_utilization=.nan"], {}, "gpu_memory_utilization"),
        (["max_model_len=0"], {}, "max_model_len"),
        (["port=70000"], {}, "port"),
        (["port=eighty"], {}, "port"),
        (["prot=1"], {}, "prot"),
        (["env.1X=1"], {}, "env.1X"),
        (["args.UPPER=1"], {}, "args.UPPER"),
        (["image_tag=a b"], {}, "image_tag"),
        (["image_tag="], {}, "image_tag"),
        (["image_tag=-x"], {}, "image_tag"),
        (["image_tag=x:y"], {}, "image_tag"),
        ([f"image_tag={'x' * 129}"], {}, "image_tag"),
        (["image_repository=nvidia/VLLM"], {}, "image_repository"),
        (["image_repository=a:tag"], {}, "image_repository"),
        (["image_repository=a//b"], {}, "image_repository"),
        (["image_repository=-a/b"], {}, "image_repository"),
        (["shm_size=lots"], {}, "shm_size"),
        (["bind=300.1.1.1"], {}, "bind"),
        (["bind=localhost"], {}, "IPv4 or IPv6"),
        (["model_dir=a\nb"], {}, "model_dir"),
        (["kubernetes.kit_image=a b"], {}, "kubernetes.kit_image"),
        (["kubernetes.kit_image={{ x }}"], {}, "kubernetes.kit_image"),
        (["kubernetes.namespace=a.b"], {}, "kubernetes.namespace"),
        (["kubernetes.prometheus_url=nonsense"], {}, "kubernetes.prometheus_url"),
        (["kubernetes.kit_imag=x"], {}, "unknown key 'kubernetes.kit_imag'"),
        (["nonsense"], {}, "KEY=VALUE"),
        (["deep.er=1"], {}, "deep"),
        (["profile=gb1"], {}, "gb1"),
        ([], {"GLM4_PROT": "1"}, "GLM4_PROT"),
        ([], {"GLM4_PORT": "[1"}, "port"),
    ],
)
def test_a_wrong_value_names_itself(sets: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(environ=environ, sets=sets)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1\n", "prot"),
        ("- a\n- b\n", "key: value"),
        ("port: [\n", "not valid YAML"),
        ("1: 2\n", "key: value"),
        ("[" * 5000, "not valid YAML"),
        ("env: 3\n", "env"),
        ("kubernetes: {node_selector: {a b: x}}\n", "kubernetes.node_selector"),
        ("kubernetes: {node_selector: {pool: ü}}\n", "kubernetes.node_selector"),
        ("replicas: yes\n", "replicas"),
        ("args: {model: x}\nenv: {A: [1]}\n", "env.A"),
    ],
)
def test_a_wrong_file_names_itself(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings(file=file, environ={})
    assert message in caught.value.message
    assert "glm4.yaml" in caught.value.message


def test_an_unknown_key_gets_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text("max_num_seq: 3\n")
    with pytest.raises(UsageError) as caught:
        load_settings(file=file, environ={})
    assert "max_num_seqs" in caught.value.hint


def test_a_settings_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no settings file"):
        load_settings(file=tmp_path / "none.yaml", environ={})
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read"):
        load_settings(file=binary, environ={})


@pytest.mark.parametrize("name", ["vllm", "nvcr.io/nvidia/vllm", "localhost:5000/a/b__c.d-e", "[::1]:5000/x"])
def test_an_image_may_come_from_any_registry(name: str) -> None:
    settings, _ = load_settings(environ={}, sets=[f"image_repository={name}", "image_tag=_26.01-py3"])
    assert settings.image_repository == name


def test_a_flag_without_a_value_is_bare(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text("args: {a: , b: '', c: null}\n")
    settings, _ = load_settings(file=file, environ={}, sets=["args.d=", "args.e=null"])
    assert settings.args == dict.fromkeys("abcde")
