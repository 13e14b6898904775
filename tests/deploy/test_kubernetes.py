"""deploy/kubernetes: valid by the schemas that Kubernetes publishes, consistent, closed, and in step with the service.

JobSet, KServe and the Prometheus operator publish no schemas that could be installed here: of their objects the pods
and jobs inside are held against what Kubernetes publishes, the rest against what this file says.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.prometheus_rule import TARGET, prometheus_rule
from service.metrics.metrics import ENDPOINTS, Metrics
from service.serve import END_SECONDS
from service.settings import Settings, read_settings
from tests.deploy.manifests import (
    KUBERNETES,
    Manifest,
    as_published_kinds,
    literals,
    manifests,
    one,
    pod_templates,
)

# The oldest release that has all of what is used, and the newest whose schemas are at hand.
RELEASES = ("1.31", "1.37")
BUILT = ("overlays/cpu", "overlays/gpu", "kserve")
DEPLOYMENT = one("Deployment")
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
SETTINGS = literals("base", "feedrank-settings")
LABELS = POD["metadata"]["labels"]


def _built(folder: str) -> list[Manifest]:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl, which has kustomize built in, is not installed")
    command = [program, "kustomize", str(KUBERNETES / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _validate(documents: list[Manifest]) -> int:
    checked = 0
    for document in documents:
        for published in as_published_kinds(document):
            for release in RELEASES:
                try:
                    kubernetes_validate.validate(published, release, strict=True)
                except kubernetes_validate.ValidationError as error:
                    name = f"{document['kind']} {document['metadata']['name']}"
                    pytest.fail(f"{name}, {release}: {'.'.join(map(str, error.path))}: {error.message}")
            checked += 1
    return checked


def test_files_are_valid() -> None:
    assert _validate(manifests()) >= 13


def test_an_unknown_field_is_found() -> None:
    """The schemas are strict: what a cluster would drop without a word fails here."""
    wrong = yaml.safe_load(yaml.safe_dump(DEPLOYMENT))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(pytest.fail.Exception, match="readynessProbe"):
        _validate([wrong])


@pytest.mark.parametrize("folder", BUILT)
def test_kustomize_builds_what_is_valid(folder: str) -> None:
    documents = _built(folder)
    assert _validate(documents) >= 2
    text = yaml.safe_dump_all(documents)
    images = {line.split("image:")[1].strip() for line in text.splitlines() if "image:" in line}
    assert images
    assert all(image.startswith("registry.example.com/feedrank-") and ":" in image for image in images)
    assert {document["metadata"].get("namespace") for document in documents} == {"feedrank"}


def test_gpu_overlay_trains_on_gpus_and_serves_as_the_other() -> None:
    cpu, gpu = ({(d["kind"], d["metadata"]["name"]): d for d in _built(f"overlays/{kind}")} for kind in ("cpu", "gpu"))
    assert cpu.keys() == gpu.keys()
    assert cpu["Deployment", "feedrank"] == gpu["Deployment", "feedrank"]
    (container,) = gpu["JobSet", "feedrank-train"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values["DEVICE"] == "cuda"
    assert values["PROCESSES"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert {"OMP_NUM_THREADS", "POD_IP"} <= values.keys()


def test_settings_are_ones_that_the_service_takes(tmp_path: Path) -> None:
    given = dict(SETTINGS)
    assert given.pop("FEEDRANK_KEYS_FILE") == "/etc/feedrank/keys.yaml"
    assert given.pop("FEEDRANK_MODELS") == "/models"
    assert given.pop("FEEDRANK_USER_HASH_KEY") == "/etc/feedrank/user_hash.key"
    mounted = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    for log in ("IMPRESSION", "EVENT"):
        # The folder has to be there, as a mount's is.
        assert given.pop(f"FEEDRANK_{log}_LOG") in mounted
    settings = read_settings([], {**given, "FEEDRANK_MODELS": str(tmp_path)})
    assert str(settings.port) == SETTINGS["FEEDRANK_PORT"]
    assert settings.host == "0.0.0.0"
    known = {f"FEEDRANK_{name.upper()}" for name in Settings.model_fields}
    (runtime,) = one("ServingRuntime")["spec"]["containers"]
    for names in (SETTINGS.keys(), *([entry["name"] for entry in one_["env"]] for one_ in (CONTAINER, runtime))):
        assert set(names) <= known


@pytest.mark.parametrize("folder", ["base", "kserve"])
def test_probes_ask_routes_of_the_service(folder: str) -> None:
    container = CONTAINER if folder == "base" else one("ServingRuntime")["spec"]["containers"][0]
    (port,) = container["ports"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        request = container[probe]["httpGet"]
        assert request["path"] in ENDPOINTS
        assert request["port"] in (port.get("name"), port["containerPort"])
    assert str(port["containerPort"]) == SETTINGS["FEEDRANK_PORT"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > float(SETTINGS["FEEDRANK_STARTUP_SECONDS"])


def test_a_pod_has_time_to_finish_and_the_cluster_to_notice() -> None:
    drain, shutdown = (float(SETTINGS[f"FEEDRANK_{name}_SECONDS"]) for name in ("DRAIN", "SHUTDOWN"))
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    # A single worker ends on its own once its requests have. What a supervisor would grant it is granted here too.
    assert POD["spec"]["terminationGracePeriodSeconds"] > before + drain + shutdown + END_SECONDS
    predictor = one("InferenceService")["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] > drain + shutdown + END_SECONDS
    assert drain > 2 * CONTAINER["readinessProbe"]["periodSeconds"]
    # The default fits what Kubernetes grants where nobody says otherwise.
    assert Settings(models=Path()).drain_seconds + Settings(models=Path()).shutdown_seconds < 30


def test_everything_finds_the_pods() -> None:
    service, monitor, policy = one("Service", "base"), one("ServiceMonitor"), one("NetworkPolicy", "base", "feedrank")
    spec = DEPLOYMENT["spec"]
    selectors = [
        spec["selector"]["matchLabels"],
        service["spec"]["selector"],
        one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        policy["spec"]["podSelector"]["matchLabels"],
        *(entry["labelSelector"]["matchLabels"] for entry in POD["spec"]["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= LABELS.items() for selector in selectors)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (port,), (container_port,) = service["spec"]["ports"], CONTAINER["ports"]
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == [port["name"]]
    assert monitor["spec"]["endpoints"][0]["path"] in ENDPOINTS
    assert port["targetPort"] == container_port["name"]
    assert [entry["port"] for rule in policy["spec"]["ingress"] for entry in rule["ports"]] == [container_port["name"]]
    # A training pod must not be taken for one that serves.
    for document in (one("JobSet"), *(one("CronJob", name=f"feedrank-{job}") for job in ("daily", "judge"))):
        for template in pod_templates(document):
            labels = template["metadata"]["labels"]
            assert not service["spec"]["selector"].items() <= labels.items()
            assert one("NetworkPolicy", "training")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_autoscaler_asks_for_a_metric_that_there_is() -> None:
    autoscaler = one("HorizontalPodAutoscaler")["spec"]
    target = autoscaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (DEPLOYMENT["kind"], DEPLOYMENT["metadata"]["name"])
    assert "replicas" not in DEPLOYMENT["spec"]
    (name,) = [metric["pods"]["metric"]["name"] for metric in autoscaler["metrics"] if metric["type"] == "Pods"]
    adapter = yaml.safe_load((KUBERNETES / "monitoring/adapter_values.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert f"\n{name} ".encode() in Metrics().exposition()
    assert autoscaler["minReplicas"] >= 2


def test_rules_are_those_that_prometheus_has_and_know_the_job_by_its_name() -> None:
    assert TARGET.read_text(encoding="utf-8") == prometheus_rule(), "run `make manifests`"
    configuration = yaml.safe_load((KUBERNETES.parent / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (scraped,) = configuration["scrape_configs"]
    # Without a jobLabel the operator names a job after its Service.
    assert "jobLabel" not in one("ServiceMonitor")["spec"]
    assert scraped["job_name"] == one("Service", "base")["metadata"]["name"]


def _pods() -> list[tuple[str, dict[str, Any]]]:
    found = [
        (document["metadata"]["name"], template["spec"])
        for document in manifests()
        if document["kind"] in ("Deployment", "StatefulSet", "CronJob", "JobSet")
        for template in pod_templates(document)
    ]
    predictor = {**one("InferenceService")["spec"]["predictor"], **one("ServingRuntime")["spec"]}
    return [*found, ("kserve", predictor)]


@pytest.mark.parametrize(("name", "pod"), _pods(), ids=[f"{i}-{name}" for i, (name, _) in enumerate(_pods())])
def test_pods_can_do_no_more_than_they_must(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    # Otherwise a Service of the name feedrank sets FEEDRANK_PORT to an address.
    assert pod["enableServiceLinks"] is False
    # A StatefulSet's own claims are volumes beside those of its pods.
    mounted = {volume["name"] for volume in pod["volumes"]} | ({"data"} if name == "feedrank-redis" else set())
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= mounted


def test_what_pods_mount_is_declared() -> None:
    claims = {document["metadata"]["name"] for document in manifests() if document["kind"] == "PersistentVolumeClaim"}
    assert claims == {"feedrank-logs", "feedrank-models", "feedrank-training"}
    volumes = [volume for _, pod in _pods() for volume in pod["volumes"]]
    used = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}
    assert used == claims
    storage = one("InferenceService")["spec"]["predictor"]["model"]["storageUri"]
    assert storage.removeprefix("pvc://") in claims
    (keys,) = [mount for mount in CONTAINER["volumeMounts"] if mount["name"] == "keys"]
    assert SETTINGS["FEEDRANK_KEYS_FILE"] == f"{keys['mountPath']}/keys.yaml"
