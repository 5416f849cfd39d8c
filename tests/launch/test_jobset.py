"""The Kubernetes manifests: known fields only, and what JAX and the exit codes of training need."""

import copy
import os
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt3jax import cli

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
MANIFESTS = {
    name: list(yaml.safe_load_all((ROOT / f"launch/jobset-{name}.yaml").read_text()))
    for name in ("tpu", "gpu")
}
BOTH = pytest.mark.parametrize("name", MANIFESTS)


def of_kind(name, kind):
    """The one document of a kind."""
    (found,) = [document for document in MANIFESTS[name] if document["kind"] == kind]
    return found


def parts(name):
    """JobSet, job, pod and container specs."""
    jobset = of_kind(name, "JobSet")["spec"]
    (replicated,) = jobset["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return jobset, job, job["template"]["spec"], container


# Fields that the API knows.


def dropped(before, after, path=""):
    """Where a document is not what it was."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            at for key in before for at in dropped(before[key], after.get(key), f"{path}.{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [at for number, pair in pairs for at in dropped(*pair, f"{path}.{number}")]
    return [] if before == after else [path]


def unknown_to_jobset(document):
    """Fields that the models of JobSet drop; they come with those of Job and Pod."""
    models = pytest.importorskip(
        "kubeflow_trainer_api.models",
        reason="FIELDS OF THE JOBSET GO UNCHECKED: pip install kubeflow-trainer-api",
    )
    return dropped(document, models.JobsetV1alpha2JobSet.from_dict(document).to_dict())


def unknown_to_kubernetes(kind, document):
    """Fields that the models of the Kubernetes client do not have."""
    client = pytest.importorskip(
        "kubernetes.client", reason="FIELDS OF THE ROLE GO UNCHECKED: pip install 'jax[k8s]'"
    )
    model = getattr(client, kind)
    types = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for key, value in document.items():
        if key not in types:
            yield f"{kind}.{key}"
        for inner in re.findall(r"\w*V1\w+", types.get(key, "")):
            for one in value if isinstance(value, list) else [value]:
                yield from unknown_to_kubernetes(inner, one)


@BOTH
def test_the_jobset_has_only_known_fields(name):
    assert unknown_to_jobset(of_kind(name, "JobSet")) == []


@BOTH
def test_its_jobs_have_only_known_fields(name):
    (replicated,) = of_kind(name, "JobSet")["spec"]["replicatedJobs"]
    assert list(unknown_to_kubernetes("V1JobTemplateSpec", replicated["template"])) == []


@pytest.mark.parametrize("kind", ["ServiceAccount", "Role", "RoleBinding"])
def test_the_role_has_only_known_fields(kind):
    assert list(unknown_to_kubernetes(f"V1{kind}", of_kind("gpu", kind))) == []


MISSPELT = [
    ("failurePolicy", "maxRestarts", "maxRestart"),
    ("failurePolicy.rules.0", "onJobFailureReasons", "onJobFailureReason"),
    ("replicatedJobs.0", "replicas", "replica"),
    ("replicatedJobs.0.template.spec", "completionMode", "completionsMode"),
    ("replicatedJobs.0.template.spec.template.spec", "dnsPolicy", "dnspolicy"),
    ("replicatedJobs.0.template.spec.template.spec.containers.0", "args", "arguments"),
]


@pytest.mark.parametrize(("path", "right", "wrong"), MISSPELT)
def test_the_check_detects_a_misspelt_field(path, right, wrong):
    document = copy.deepcopy(of_kind("tpu", "JobSet"))
    place = document["spec"]
    for step in path.split("."):
        place = place[int(step) if step.isdigit() else step]
    place[wrong] = place.pop(right)
    assert unknown_to_jobset(document) == [f".spec.{path}.{wrong}"]
    if "template" in path:
        (replicated,) = document["spec"]["replicatedJobs"]
        (found,) = unknown_to_kubernetes("V1JobTemplateSpec", replicated["template"])
        assert found.endswith(f".{wrong}")


# What it takes to train.


@BOTH
def test_pods_are_indexed_and_restart_only_together(name):
    jobset, job, pod, _ = parts(name)
    assert job["completionMode"] == "Indexed", "the index is JAX's process"
    assert job["parallelism"] == job["completions"]
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert jobset["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
    assert jobset["failurePolicy"]["maxRestarts"] > 0


@BOTH
def test_exit_codes_1_and_2_are_final(name):
    jobset, job, _, container = parts(name)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": [1, 2],
    }  # fmt: skip
    (rule,) = jobset["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@BOTH
def test_training_receives_sigterm_with_time_to_save(name):
    _, _, pod, container = parts(name)
    assert container["command"][0] == "gpt3jax", "a shell as process 1 would keep the signal"
    assert pod["terminationGracePeriodSeconds"] >= 60


@BOTH
def test_the_command_trains_into_the_shared_volume(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, _, pod, container = parts(name)
    program, command, *words = [*container["command"], *container["args"]]
    assert (program, command) == ("gpt3jax", "train")
    run = cli.parse(command, words)["run"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert run.is_relative_to(mounts["shared"])
    assert "persistentVolumeClaim" in volumes["shared"]


@pytest.mark.parametrize(("name", "chip"), [("tpu", "google.com/tpu"), ("gpu", "nvidia.com/gpu")])
def test_each_pod_requests_the_chips_of_its_host(name, chip):
    assert int(parts(name)[3]["resources"]["limits"][chip]) > 0


def test_a_tpu_slice_has_its_own_node_pool():
    pool = "cloud.google.com/gke-nodepool"
    annotations = of_kind("tpu", "JobSet")["metadata"]["annotations"]
    assert annotations == {"alpha.jobset.sigs.k8s.io/exclusive-topology": pool}
    selector = parts("tpu")[2]["nodeSelector"]
    kinds = ("accelerator", "topology")
    assert set(selector) == {f"cloud.google.com/gke-tpu-{kind}" for kind in kinds}


def test_the_tpu_coordinator_has_a_port():
    tpus = pytest.importorskip("jax._src.clusters.cloud_tpu_cluster")
    ports = [port["containerPort"] for port in parts("tpu")[3]["ports"]]
    assert int(tpus.coordinator_port) in ports


class FakeApi:
    """The part of the Kubernetes API that JAX asks, as the manifest would make it answer."""

    def __init__(self):
        self.asked = set()
        self.jobset = of_kind("gpu", "JobSet")
        (self.replicated,) = self.jobset["spec"]["replicatedJobs"]
        self.job_name = f"{self.jobset['metadata']['name']}-{self.replicated['name']}-0"

    def list_namespaced_pod(self, **_):
        self.asked.add(("", "pods", "list"))
        metadata = SimpleNamespace(
            labels={"job-name": self.job_name},
            owner_references=[SimpleNamespace(controller=True, kind="Job")],
        )
        return SimpleNamespace(items=[SimpleNamespace(metadata=metadata)])

    def read_namespaced_job(self, name, **_):
        assert name == self.job_name
        self.asked.add(("batch", "jobs", "get"))
        labels = {"jobset.sigs.k8s.io/jobset-name": self.jobset["metadata"]["name"]}
        spec = SimpleNamespace(parallelism=self.replicated["template"]["spec"]["parallelism"])
        return SimpleNamespace(metadata=SimpleNamespace(name=name, labels=labels), spec=spec)


def test_jax_discovers_processes_with_these_permissions(monkeypatch):
    """JAX's own detection against a fake of what it asks: that is what the Role allows."""
    found = pytest.importorskip("jax._src.clusters.k8s_cluster")
    api = FakeApi()
    client = SimpleNamespace(
        CoreV1Api=lambda: api,
        BatchV1Api=lambda: api,
        exceptions=SimpleNamespace(ApiException=OSError),
    )
    config = SimpleNamespace(load_incluster_config=lambda: None)
    monkeypatch.setitem(sys.modules, "kubernetes", SimpleNamespace(client=client, config=config))
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "10.0.0.1")
    for name in ("KUBERNETES_SERVICE_HOST", "HOSTNAME"):
        monkeypatch.setitem(os.environ, name, "any")
    monkeypatch.setitem(os.environ, "JOB_COMPLETION_INDEX", "1")
    cluster = type("Cluster", (found.K8sCluster,), {"_namespace": classmethod(lambda cls: "lab")})

    assert cluster.is_env_present()
    port = parts("gpu")[3]["ports"][0]["containerPort"]
    assert cluster.get_coordinator_address(None, None) == f"gpt3jax-node-0-0.gpt3jax:{port}"
    pods = api.replicated["template"]["spec"]["parallelism"]
    assert (cluster.get_process_id(), cluster.get_process_count()) == (1, pods)
    assert api.replicated["replicas"] == 1, "JAX counts the pods of one job"

    rules = of_kind("gpu", "Role")["rules"]
    allowed = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }  # fmt: skip
    assert allowed == api.asked


def test_the_pods_have_these_permissions():
    account = of_kind("gpu", "ServiceAccount")["metadata"]["name"]
    binding = of_kind("gpu", "RoleBinding")
    assert parts("gpu")[2]["serviceAccountName"] == account
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert binding["roleRef"]["name"] == of_kind("gpu", "Role")["metadata"]["name"]
