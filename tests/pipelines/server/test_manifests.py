"""The manifest for Kubernetes has a form that KubeRay, Kubernetes and Ray Serve take; no cluster needed.

The fields of a RayService are those of KubeRay's API reference (ray.io/v1); pods and claims are
checked by Kubernetes' own schemas, the Serve configuration by Ray's own.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FILE = Path(__file__).parents[3] / "spaces_config" / "serve" / "rayservice.yaml"
kubernetes_validate = pytest.importorskip("kubernetes_validate")
WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
POD = {"type": "object", "required": ["spec"], "properties": {"metadata": {}, "spec": {}}}


def fields(required: list[str], **known: Any) -> dict[str, Any]:
    """An object with these fields and no other."""
    return {
        "type": "object", "required": required, "properties": known, "additionalProperties": False
    }  # fmt: skip


COUNT = {"type": "integer", "minimum": 0}
WORKERS = fields(
    ["groupName", "template", "rayStartParams"], groupName={"type": "string"}, replicas=COUNT,
    minReplicas=COUNT, maxReplicas=COUNT, idleTimeoutSeconds=COUNT, numOfHosts=COUNT,
    suspend={"type": "boolean"}, rayStartParams=WORDS, template=POD, scaleStrategy={},
)  # fmt: skip
HEAD = fields(
    ["template", "rayStartParams"], template=POD, headService={}, rayStartParams=WORDS,
    enableIngress={"type": "boolean"}, serviceType={"type": "string"},
)  # fmt: skip
AUTOSCALER = fields(
    [], resources={}, image={"type": "string"}, imagePullPolicy={"type": "string"},
    securityContext={}, idleTimeoutSeconds=COUNT, version={"enum": ["v1", "v2"]}, env={},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}, envFrom={}, volumeMounts={},
)  # fmt: skip
CLUSTER = fields(
    ["headGroupSpec"], suspend={"type": "boolean"}, managedBy={"type": "string"},
    autoscalerOptions=AUTOSCALER, headServiceAnnotations=WORDS,
    enableInTreeAutoscaling={"type": "boolean"}, gcsFaultToleranceOptions={}, headGroupSpec=HEAD,
    rayVersion={"type": "string"}, workerGroupSpecs={"type": "array", "items": WORKERS},
)  # fmt: skip
RAY_SERVICE = fields(
    ["apiVersion", "kind", "metadata", "spec"], apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"}, metadata=fields(["name"], name={"type": "string"}),
    spec=fields(
        ["serveConfigV2", "rayClusterConfig"], serveService={}, upgradeStrategy={},
        serveConfigV2={"type": "string"}, rayClusterConfig=CLUSTER,
        excludeHeadPodFromServeSvc={"type": "boolean"},
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text()))


def check(service: dict[str, Any]) -> None:
    """By KubeRay's fields and, for pods, by Kubernetes' own schema."""
    jsonschema.validate(service, RAY_SERVICE)
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {
            "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"},
            "template": group["template"],
        }  # fmt: skip
        kubernetes_validate.validate(pod, "1.28", strict=True)


def test_kuberay_and_kubernetes_take_the_manifest(documents: list[dict[str, Any]]):
    claim, service = documents
    kubernetes_validate.validate(claim, "1.28", strict=True)
    check(service)


@pytest.mark.parametrize("place", ["workerGroupSpecs", "pod", "spec"])
def test_a_misspelt_field_is_found(documents: list[dict[str, Any]], place: str):
    service = copy.deepcopy(documents[1])
    group = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    if place == "workerGroupSpecs":
        group["maxReplica"] = 3
    elif place == "pod":
        group["template"]["spec"]["containers"][0]["imagee"] = "x"
    else:
        service["spec"]["serveConfig"] = "x"
    wrong = (jsonschema.ValidationError, kubernetes_validate.ValidationError)
    with pytest.raises(wrong, match=r"maxReplica|imagee|serveConfig"):
        check(service)


def test_ray_serve_and_our_builder_take_the_configuration(
    documents: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As many workers as replicas, and the arguments are some that `build` knows."""
    schema = pytest.importorskip("ray.serve.schema", reason="needs Ray Serve")
    from pipelines.server import cluster
    from tests.pipelines.server.test_keys import line

    config = yaml.safe_load(documents[1]["spec"]["serveConfigV2"])
    (application,) = schema.ServeDeploySchema.model_validate(config).applications
    module, _, name = application.import_path.partition(":")
    assert (module, getattr(cluster, name)) == (cluster.__name__, cluster.build)
    (group,) = documents[1]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["maxReplicas"] == application.args["max_replicas"]
    assert group["minReplicas"] == application.args["min_replicas"]
    (tmp_path / "keys.txt").write_text(line("a", "b"))
    assert cluster.build({**application.args, "keys": str(tmp_path / "keys.txt")})
