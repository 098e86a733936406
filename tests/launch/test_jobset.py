"""The JobSets of launch/: fields that Kubernetes knows, what becomes of every exit status, and sizes that agree.

The fields are those that these files may use, by their names in jobset.x-k8s.io_jobsets.yaml, the schema of the
JobSet API v1alpha2 (kubernetes-sigs/jobset, Apache-2.0, commit 0107852), which has those of Job and Pod in it.
"""

import math
import re

import pytest
import yaml
from conftest import ROOT

FILES = ["gke-jobset.yaml", "gke-jobset-gpu.yaml"]
TEXT = {str}
MAP = {"*": {str}}
# A field's type is a set of Python types or of permitted values, a dict of fields, or a list with its items' type;
# "!" marks a field that must be there, "*" stands for any name.
ENVIRONMENT = {"name!": TEXT, "value": TEXT, "valueFrom": {"fieldRef": {"fieldPath!": TEXT}}}
CONTAINER = {
    "name!": TEXT,
    "image": TEXT,
    "args": [TEXT],
    "env": [ENVIRONMENT],
    "resources": {"limits": {"*": {int, str}}},
    "volumeMounts": [{"name!": TEXT, "mountPath!": TEXT}],
}
POD = {
    "restartPolicy": {"Never"},  # all that a podFailurePolicy goes with
    "terminationGracePeriodSeconds": {int},
    "serviceAccountName": TEXT,
    "nodeSelector": MAP,
    "containers!": [CONTAINER],
    "volumes": [{"name!": TEXT, "emptyDir": {"medium": TEXT}}],
}
POD_FAILURE_RULE = {
    "action!": {"Count", "FailIndex", "FailJob", "Ignore"},
    "onExitCodes": {"operator!": {"In", "NotIn"}, "values!": [{int}]},
    "onPodConditions": [{"type!": TEXT, "status!": {"True", "False", "Unknown"}}],
}
JOB = {
    "completionMode": {"Indexed", "NonIndexed"},
    "completions": {int},
    "parallelism": {int},
    "backoffLimit": {int},
    "podFailurePolicy": {"rules!": [POD_FAILURE_RULE]},
    "template!": {"spec!": POD},
}
REASONS = {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"}
FAILURE_RULE = {
    "name!": TEXT,
    "action!": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
    "onJobFailureReasons": [REASONS],
    "targetReplicatedJobs": [TEXT],
}
JOBSET = {
    "apiVersion!": {"jobset.x-k8s.io/v1alpha2"},
    "kind!": {"JobSet"},
    "metadata!": {"name!": TEXT, "annotations": MAP},
    "spec!": {
        "failurePolicy": {
            "maxRestarts": {int},
            "restartStrategy": {"Recreate", "BlockingRecreate"},
            "rules": [FAILURE_RULE],
        },
        "replicatedJobs": [{"name!": TEXT, "replicas": {int}, "template!": {"spec!": JOB}}],
    },
}


def problems(value, fields, path="") -> list[str]:
    """What does not fit, each as `path: what`."""
    if isinstance(fields, set):
        fits = type(value) in fields or (not isinstance(value, (dict, list)) and value in fields)
        return [] if fits else [f"{path}: {value!r}"]
    if isinstance(fields, list):
        if not isinstance(value, list):
            return [f"{path}: no list"]
        return [p for i, item in enumerate(value) for p in problems(item, fields[0], f"{path}[{i}]")]
    if not isinstance(value, dict):
        return [f"{path}: no fields"]
    known = {name.rstrip("!"): of for name, of in fields.items()}
    found = [f"{path}.{name.rstrip('!')}: missing" for name in fields if name.endswith("!") and name[:-1] not in value]
    for name, item in value.items():
        of = known.get(name, known.get("*"))
        found += [f"{path}.{name}: unknown"] if of is None else problems(item, of, f"{path}.{name}")
    return found


@pytest.fixture(params=FILES)
def jobset(request):
    return yaml.safe_load((ROOT / "launch" / request.param).read_text())


def the_job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def test_the_fields_are_those_of_the_schema(jobset):
    assert problems(jobset, JOBSET) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("maxRestarts", "maxRestart", ".spec.failurePolicy.maxRestart: unknown"),
        ("action: Count", "action: Retry", ".podFailurePolicy.rules[0].action: 'Retry'"),
        ('status: "True"', "status: true", ".onPodConditions[0].status: True"),
        ("operator: NotIn, ", "", ".onExitCodes.operator: missing"),
        ("replicas: 1", 'replicas: "1"', ".replicas: '1'"),
    ],
)
def test_mistakes_are_found(old, new, problem):
    text = (ROOT / "launch" / FILES[0]).read_text()
    (found,) = problems(yaml.safe_load(text.replace(old, new, 1)), JOBSET)
    assert found.endswith(problem)


def outcome(jobset, status, disrupted=False):
    """What the JobSet's controller does after a pod with this exit status, as the two APIs define their policies."""
    job = the_job(jobset)
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and (status in codes["values"]) == (codes["operator"] == "In"):
            break
        if disrupted and {"type": "DisruptionTarget", "status": "True"} in rule.get("onPodConditions", []):
            break
    else:
        rule = {"action": "Count"}
    assert job["backoffLimit"] == 0
    reason = {"Count": "BackoffLimitExceeded", "FailJob": "PodFailurePolicy"}[rule["action"]]
    rules = jobset["spec"]["failurePolicy"]["rules"]
    return next((r["action"] for r in rules if reason in r["onJobFailureReasons"]), "RestartJobSet")


@pytest.mark.parametrize("status", [75, 134])
def test_75_and_134_start_again_without_end(jobset, status):
    assert outcome(jobset, status) == "RestartJobSetAndIgnoreMaxRestarts"


@pytest.mark.parametrize("status", [1, 2, 137, 139])
def test_mistakes_and_faults_end_it_but_not_a_lost_node(jobset, status):
    assert outcome(jobset, status) == "FailJobSet"
    assert outcome(jobset, status, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"


def test_a_job_has_a_pod_for_every_host(jobset):
    job = the_job(jobset)
    pod = job["template"]["spec"]
    assert job["completions"] == job["parallelism"]
    assert job["completionMode"] == "Indexed"
    (limits,) = [c["resources"]["limits"] for c in pod["containers"]]
    if topology := pod["nodeSelector"].get("cloud.google.com/gke-tpu-topology"):
        chips = math.prod(int(side) for side in topology.split("x"))
        assert job["parallelism"] * limits["google.com/tpu"] == chips
    else:
        assert limits["nvidia.com/gpu"] == 8


def test_a_slice_has_a_node_pool_of_its_own():
    """Its chips are wired to each other, and to none of another pool."""
    jobset = yaml.safe_load((ROOT / "launch/gke-jobset.yaml").read_text())
    placement = jobset["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert placement == "cloud.google.com/gke-nodepool"


def test_gpu_hosts_are_told_of_each_other():
    jobset = yaml.safe_load((ROOT / "launch/gke-jobset-gpu.yaml").read_text())
    (replicated,) = jobset["spec"]["replicatedJobs"]
    (container,) = the_job(jobset)["template"]["spec"]["containers"]
    given = {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}
    name = jobset["metadata"]["name"]
    # <JobSet>-<replicated job>-<job>-<pod>.<subdomain>, which is the JobSet's name if not set
    assert re.fullmatch(rf"{name}-{replicated['name']}-0-0\.{name}:\d+", given["JAX_COORDINATOR_ADDRESS"])
    assert given["JAX_NUM_PROCESSES"] == str(the_job(jobset)["parallelism"])
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert given["JAX_PROCESS_ID"] == {"fieldRef": {"fieldPath": index}}


def test_what_is_trained_is_there(jobset):
    (container,) = the_job(jobset)["template"]["spec"]["containers"]
    flags = dict(argument.split("=", 1) for argument in container["args"])
    assert (ROOT / flags["--config"].partition(":")[0]).is_file()
    assert flags["--workdir"].startswith("gs://")
