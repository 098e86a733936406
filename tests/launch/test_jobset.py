"""The JobSets of launch/: fields that Kubernetes knows, what becomes of every exit status, and sizes that agree.

jobset_schema.yaml, cut by hand from the real schema, tells the name, place and type of each field, what must be there,
and which values there are; `problems` checks all of that. Not checked: fields that these files do not use, which are
refused, known or not; rules between fields other than those below; lengths of names; what admission to a cluster asks
for. `kubectl apply --dry-run=server` asks the cluster itself.
"""

import math
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ["gke-jobset.yaml", "gke-jobset-gpu.yaml"]
SCHEMA = yaml.safe_load((ROOT / "tests/launch/jobset_schema.yaml").read_text())
TYPES = {"object": dict, "array": list, "string": str, "integer": int}
KEYWORDS = {"type", "enum", "pattern", "properties", "required", "additionalProperties", "items", "uniqueItems"} | {
    f"{end}{of}" for end in ("min", "max") for of in ("Items", "Properties")
}


def problems(value, schema, path="") -> list[str]:
    """What does not fit a JSON Schema of KEYWORDS alone, each as `path: what`."""
    assert schema.keys() <= KEYWORDS, schema
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    # A bool is an int to isinstance, and to no schema.
    if type(value) not in [TYPES[name] for name in types] or value not in schema.get("enum", [value]):
        return [f"{path}: {value!r}"]
    found = []
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{path}: {value!r}")
    if isinstance(value, dict):
        found += [f"{path}.{name}: missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            of = schema.get("properties", {}).get(name, schema["additionalProperties"])
            found += problems(item, of, f"{path}.{name}") if of else [f"{path}.{name}: unknown"]
    if isinstance(value, list):
        found += [p for i, item in enumerate(value) for p in problems(item, schema["items"], f"{path}[{i}]")]
        if schema.get("uniqueItems") and len(set(value)) < len(value):
            found.append(f"{path}: the same again")
    if isinstance(value, (dict, list)):
        of = "Items" if isinstance(value, list) else "Properties"
        if not schema.get(f"min{of}", 0) <= len(value) <= schema.get(f"max{of}", math.inf):
            found.append(f"{path}: {len(value)} entries")
    return found


@pytest.fixture(params=FILES)
def jobset(request):
    return yaml.safe_load((ROOT / "launch" / request.param).read_text())


def the_job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def test_the_fields_are_those_of_the_schema(jobset):
    assert problems(jobset, SCHEMA) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("maxRestarts", "maxRestart", ".spec.failurePolicy.maxRestart: unknown"),
        ("action: Count", "action: Retry", ".podFailurePolicy.rules[0].action: 'Retry'"),
        ('status: "True"', "status: true", ".onPodConditions[0].status: True"),
        ("operator: NotIn, ", "", ".onExitCodes.operator: missing"),
        ("replicas: 1", 'replicas: "1"', ".replicas: '1'"),
        ("name: again", "name: once more", ".rules[1].name: 'once more'"),
        ("values: [75, 134]", "values: []", ".onExitCodes.values: 0 entries"),
        ("values: [75, 134]", "values: [75, 75]", ".onExitCodes.values: the same again"),
        ("onExitCodes: {operator: NotIn, values: [75, 134]}", "", ".podFailurePolicy.rules[1]: 1 entries"),
        ("securityContext: {runAsUser: 0}", "securityContext: {runAsUser: true}", ".runAsUser: True"),
        ("restartPolicy: Never", "restartPolicy: OnFailure", ".restartPolicy: 'OnFailure'"),
    ],
)
def test_mistakes_are_found(old, new, problem):
    text = (ROOT / "launch" / FILES[0]).read_text()
    (found,) = problems(yaml.safe_load(text.replace(old, new, 1)), SCHEMA)
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


def test_pods_of_tpus_open_devices_that_are_root_s_and_have_no_more_rights():
    jobset = yaml.safe_load((ROOT / "launch/gke-jobset.yaml").read_text())
    (container,) = the_job(jobset)["template"]["spec"]["containers"]
    assert container["securityContext"] == {"runAsUser": 0}


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
