"""What KubeRay takes: the fields of a RayJob and a RayCluster of ray.io/v1, as JSON Schema.

Written by hand after the API reference of KubeRay 1.5 (RayJobSpec, RayClusterSpec, HeadGroupSpec, WorkerGroupSpec,
AuthOptions); only fields that a job may use are here, so that a misspelt or a new one is refused. A pod template is
checked by Kubernetes' own schema instead.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def closed(required: list[str], **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
SWITCH: Json = {"type": "boolean"}
TEXTS: Json = {"type": "object", "additionalProperties": TEXT}
TEMPLATE = closed(["spec"], metadata={"type": "object"}, spec={"type": "object", "required": ["containers"]})

HEAD = closed(
    ["template"],
    rayStartParams=TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    template=TEMPLATE,
)
WORKERS = closed(
    ["groupName", "minReplicas", "maxReplicas", "template"],
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
CLUSTER = closed(
    ["headGroupSpec"],
    authOptions=closed([], mode={"enum": ["disabled", "token"]}),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    enableInTreeAutoscaling=SWITCH,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(
        ["name"],
        name={"type": "string", "pattern": r"^[a-z]([a-z0-9-]*[a-z0-9])?$", "maxLength": 47},
        namespace=TEXT,
        labels=TEXTS,
        annotations=TEXTS,
    ),
    spec=closed(
        ["rayClusterSpec", "entrypoint"],
        activeDeadlineSeconds={**COUNT, "minimum": 1},
        backoffLimit=COUNT,
        entrypoint=TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        metadata=TEXTS,
        rayClusterSpec=CLUSTER,
        runtimeEnvYAML=TEXT,
        shutdownAfterJobFinishes=SWITCH,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterConfig=closed([], backoffLimit=COUNT),
        submitterPodTemplate=TEMPLATE,
        suspend=SWITCH,
        ttlSecondsAfterFinished=COUNT,
    ),
)
