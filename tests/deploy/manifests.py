"""The manifests of deploy/kubernetes as they lie there, and what tests ask of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
# Helm values, JSON patches and the content of a ConfigMap are no objects of a cluster.
_OTHER = {"adapter_values.yaml", "daily_cycle.yaml", "gpu_jobset.yaml", "kustomization.yaml"}
Manifest = dict[str, Any]


def manifests(folder: str = "") -> list[Manifest]:
    """Every object in a folder of deploy/kubernetes and below."""
    files = sorted(path for path in (KUBERNETES / folder).rglob("*.yaml") if path.name not in _OTHER)
    return [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]


def one(kind: str, folder: str = "", name: str | None = None) -> Manifest:
    """The only object of a kind, or of a kind and a name."""
    (found,) = [
        document
        for document in manifests(folder)
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    return found


def pod_templates(document: Manifest) -> Iterator[Manifest]:
    """Templates of pods, wherever an object keeps it: {metadata, spec}."""
    spec = document["spec"]
    match document["kind"]:
        case "Deployment" | "StatefulSet":
            yield spec["template"]
        case "CronJob":
            yield spec["jobTemplate"]["spec"]["template"]
        case "JobSet":
            for job in spec["replicatedJobs"]:
                yield job["template"]["spec"]["template"]


def as_published_kinds(document: Manifest) -> Iterator[Manifest]:
    """The objects whose schemas Kubernetes publishes: the object itself, or what one of another maker holds of them."""
    name = {"name": document["metadata"]["name"]}
    match document["kind"]:
        case "JobSet":
            for job in document["spec"]["replicatedJobs"]:
                yield {"apiVersion": "batch/v1", "kind": "Job", "metadata": name, **job["template"]}
        case "ServingRuntime":
            pod = {key: document["spec"][key] for key in ("containers", "volumes")}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": name, "spec": pod}
        case "InferenceService":
            own = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "model"}
            pod = {key: value for key, value in document["spec"]["predictor"].items() if key not in own}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": name, "spec": {"containers": [{"name": "x"}], **pod}}
        case "ServiceMonitor" | "PrometheusRule":
            return
        case _:
            yield document


def literals(folder: str, name: str) -> dict[str, str]:
    """The variables that a folder's kustomization puts into one ConfigMap."""
    kustomization = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
    (generator,) = [entry for entry in kustomization["configMapGenerator"] if entry["name"] == name]
    return dict(literal.split("=", 1) for literal in generator["literals"])
