"""The manifests of deploy/kubernetes follow the published schemas, and fit the code that they deploy.

What Kustomize makes of them is checked where `kubectl` is installed; each resource by itself, and what the
kustomizations refer to, everywhere. No package carries the schemas of HTTPRoute and InferencePool: their fields are
checked by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor
from pydantic import BaseModel

from gateway.metrics.catalog import OWN
from ipc.option_table import all_options
from ipc.options import from_command_line
from supervision.supervisor import DRAIN_GRACE_S, SHUTDOWN_GRACE_S

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = sorted(FOLDER.rglob("kustomization.yaml"))
OVERLAYS = sorted(FOLDER.glob("overlays/*"))
NAMES = {metric.name + ("_total" if metric.kind == "counter" else "") for metric in OWN}
KUBERNETES = "1.34"
CHECKED: set[str] = set()
Resource = dict[str, Any]


def has_kustomize() -> bool:
    if shutil.which("kubectl") is None:
        return False
    done = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False)
    return re.search(r"Kustomize Version: v([5-9]|\d\d)", done.stdout) is not None


needs_kustomize = pytest.mark.skipif(not has_kustomize(), reason="needs kubectl, with Kustomize 5 or newer in it")


def identity(path: Path) -> str:
    return str((path.parent if path.suffix else path).relative_to(FOLDER))


def documents(path: Path) -> list[Resource]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def build(folder: Path) -> list[Resource]:
    command = ["kubectl", "kustomize", "--load-restrictor=LoadRestrictionsNone", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # it warns of what is deprecated
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def with_components(tmp_path: Path, overlay: Path, *components: str) -> list[Resource]:
    """An overlay as a user would extend it."""
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({
            "resources": [relative(tmp_path, overlay)],
            "components": [relative(tmp_path, FOLDER / "components" / name) for name in components],
        })
    )  # fmt: skip
    return build(tmp_path)


def relative(start: Path, path: Path) -> str:
    return str(Path(*[".."] * (len(start.resolve().parts) - 1), *path.parts[1:]))


def one(resources: list[Resource], kind: str, name: str = "quintet") -> Resource:
    """The resource of this kind and name, whether or not Kustomize has put a hash behind it."""
    names = re.compile(rf"{name}(-[a-z0-9]{{10}})?")
    [found] = [each for each in resources if each["kind"] == kind and names.fullmatch(each["metadata"]["name"])]
    return found


def check_schema(resource: Resource) -> None:
    """Every field is one of the published schema's, with the right type; every one that it needs is there."""
    written = json.dumps(resource, sort_keys=True)
    if written in CHECKED:  # most of an overlay is another one's as well
        return
    match resource["kind"]:
        case "ScaledObject":
            check_model(ScaledObject.model_validate(resource), resource)
        case "PodMonitor":
            check_model(PodMonitor.model_validate(resource), resource)
        case "HTTPRoute":
            check_route(resource)
        case "InferencePool":
            check_pool(resource)
        case _:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    CHECKED.add(written)


def check_model(model: BaseModel, resource: Resource) -> None:
    """A field that the model does not know is lost on the way through it."""
    assert json.loads(model.model_dump_json(by_alias=True, exclude_unset=True)) == resource


def check_route(resource: Resource) -> None:
    assert resource["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert set(resource["spec"]) <= {"parentRefs", "hostnames", "rules"}
    assert all(set(parent) <= {"group", "kind", "namespace", "name"} for parent in resource["spec"]["parentRefs"])
    for rule in resource["spec"]["rules"]:
        assert set(rule) <= {"name", "matches", "filters", "backendRefs", "timeouts"}
        assert all(set(backend) <= {"group", "kind", "name", "port", "weight"} for backend in rule["backendRefs"])
        assert re.fullmatch(r"([0-9]{1,5}(h|m|s|ms)){1,4}", rule["timeouts"]["request"])


def check_pool(resource: Resource) -> None:
    assert resource["apiVersion"] == "inference.networking.k8s.io/v1"
    spec = resource["spec"]
    assert set(spec) == {"selector", "targetPorts", "endpointPickerRef"}
    assert set(spec["selector"]) == {"matchLabels"}
    assert all(set(port) == {"number"} for port in spec["targetPorts"])
    picker = spec["endpointPickerRef"]
    assert set(picker) <= {"group", "kind", "name", "port", "failureMode"}
    assert set(picker["port"]) == {"number"}
    assert picker["failureMode"] in ("FailOpen", "FailClose")


def option_literals() -> Iterator[tuple[Path, dict[str, str]]]:
    """What each kustomization adds to the server's options."""
    for path in KUSTOMIZATIONS:
        for generator in documents(path)[0].get("configMapGenerator", []):
            if generator["name"] == "quintet-options":
                pairs = [re.sub(r"\s#.*", "", literal).partition("=") for literal in generator["literals"]]
                yield path, {name: value for name, _, value in pairs}


# -- everywhere --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=identity)
def test_what_a_kustomization_names_is_there_and_follows_its_schema(path: Path) -> None:
    [kustomization] = documents(path)
    for name in kustomization.get("resources", []):
        target = path.parent / name
        assert target.is_file() or (target / "kustomization.yaml").is_file(), name
        for resource in documents(target) if target.is_file() else []:
            check_schema(resource)
    for name in kustomization.get("components", []):
        assert documents(path.parent / name / "kustomization.yaml")[0]["kind"] == "Component"
    for patch in kustomization.get("patches", []):
        assert "patch" in patch or (path.parent / patch["path"]).is_file()
    for generator in kustomization.get("configMapGenerator", []):
        assert all((path.parent / name).is_file() for name in generator.get("files", []))


def test_every_file_is_named_by_a_kustomization() -> None:
    named = set()
    for path in KUSTOMIZATIONS:
        [kustomization] = documents(path)
        names = [*kustomization.get("resources", [])]
        names += [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        names += [name for each in kustomization.get("configMapGenerator", []) for name in each.get("files", [])]
        named |= {(path.parent / name).resolve() for name in names}
    named.add(FOLDER / "components/hpa/prometheus-adapter-values.yaml")  # for Helm, as components/hpa says
    assert set(FOLDER.rglob("*.yaml")) <= named | set(KUSTOMIZATIONS)


def test_every_option_exists_and_all_of_an_overlay_are_taken_together() -> None:
    known = {f"QUINTET_{option.name.upper()}" for option in all_options()}
    found = dict(option_literals())
    for path, literals in found.items():
        assert set(literals) <= known, path
    base = found[FOLDER / "base" / "kustomization.yaml"]
    for path, literals in found.items():
        options = from_command_line([], base | literals)
        assert options["host"] == "0.0.0.0", path


def test_the_files_outside_kustomize_ask_for_metrics_that_exist() -> None:
    text = (FOLDER / "components/hpa/prometheus-adapter-values.yaml").read_text()
    asked = set(re.findall(r"quintet_\w+", text))
    scaler = documents(FOLDER / "components/hpa/horizontalpodautoscaler.yaml")[0]
    wanted = {each["pods"]["metric"]["name"] for each in scaler["spec"]["metrics"]}
    assert wanted <= asked <= NAMES
    for trigger in documents(FOLDER / "components/keda/scaledobject.yaml")[0]["spec"]["triggers"]:
        queried = set(re.findall(r"quintet_\w+", trigger["metadata"]["query"]))
        assert queried
        assert queried <= NAMES


# -- what Kustomize makes ----------------------------------------------------------------------------------------------


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS, ids=identity)
def test_an_overlay_follows_the_schemas_and_fits_the_server(overlay: Path) -> None:
    resources = build(overlay)
    for resource in resources:
        check_schema(resource)
    options = from_command_line([], one(resources, "ConfigMap", "quintet-options")["data"])
    pod = one(resources, "Deployment")["spec"]["template"]
    spec, [container] = pod["spec"], pod["spec"]["containers"]

    # Time to end: what the orchestrator waits is no less than what the server takes.
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = pause + options["shutdown_timeout"] + DRAIN_GRACE_S + SHUTDOWN_GRACE_S
    assert needed <= spec["terminationGracePeriodSeconds"] <= needed + 30

    # Ports and probes.
    assert {"name": "http", "containerPort": options["port"]} in container["ports"]
    paths = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {
        "startupProbe": {"path": "/health", "port": "http"},
        "livenessProbe": {"path": "/health", "port": "http"},
        "readinessProbe": {"path": "/ready", "port": "http"},
    }

    # Without rights, and without what a Service called quintet would put into the environment.
    assert spec["enableServiceLinks"] is False
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {"/tmp", "/var/cache/quintet"} <= set(mounts)
    assert set(mounts.values()) == {volume["name"] for volume in spec["volumes"]}
    assert options["profile_dir"].startswith("/tmp/")

    # Whoever selects the pods selects these.
    labels = pod["metadata"]["labels"]
    selectors = [
        *(one(resources, "Service", name)["spec"]["selector"] for name in ("quintet", "quintet-replicas")),
        one(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(each["spec"]["selector"]["matchLabels"] for each in resources if each["kind"] == "InferencePool"),
    ]
    assert all(selector == labels for selector in selectors)
    for pool in (each for each in resources if each["kind"] == "InferencePool"):
        assert pool["spec"]["targetPorts"] == [{"number": options["port"]}]
        picker = pool["spec"]["endpointPickerRef"]
        service = one(resources, "Service", picker["name"])
        assert picker["port"]["number"] in [port["port"] for port in service["spec"]["ports"]]
        assert one(resources, "HTTPRoute")["spec"]["rules"][0]["backendRefs"][0]["name"] == pool["metadata"]["name"]


@needs_kustomize
def test_components_add_up_on_any_overlay(tmp_path: Path) -> None:
    for overlay in OVERLAYS:
        keys = [] if overlay.name != "cpu-demo" else ["api-key"]  # the others have it
        for scaler, kind in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
            resources = with_components(tmp_path, overlay, *keys, scaler, "pod-monitor", "kv-events")
            for resource in resources:
                check_schema(resource)
            deployment = one(resources, "Deployment")
            assert "replicas" not in deployment["spec"]
            assert one(resources, kind)["spec"]["scaleTargetRef"]["name"] == "quintet"
            [container] = deployment["spec"]["template"]["spec"]["containers"]
            assert [each["name"] for each in container["env"]] == ["QUINTET_API_KEY"]
            options = from_command_line([], one(resources, "ConfigMap", "quintet-options")["data"])
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert options["kv_events_endpoint"] == f"tcp://*:{ports['kv-events']}"
            assert options["kv_events_replay_endpoint"] == f"tcp://*:{ports['kv-replay']}"
            [monitored] = one(resources, "PodMonitor")["spec"]["podMetricsEndpoints"]
            assert monitored["port"] in ports


# -- the image ---------------------------------------------------------------------------------------------------------


def test_the_image_takes_what_the_package_is_made_of() -> None:
    """.dockerignore lets every package of ours in, and the image runs as the user that the manifests name."""
    allowed = {line[1:].split("/")[0] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages | {"launch.py", "quintet.py", "pyproject.toml", "README.md"} == allowed
    dockerfile = (ROOT / "Dockerfile").read_text()
    deployment = documents(FOLDER / "base/deployment.yaml")[0]["spec"]["template"]["spec"]
    assert f"USER {deployment['securityContext']['runAsUser']}:" in dockerfile
    home = re.search(r"HOME=(\S+)", dockerfile)
    assert home is not None
    assert home[1] in {mount["mountPath"] for mount in deployment["containers"][0]["volumeMounts"]}
    set_there = set(re.findall(r"QUINTET_(\w+)=", dockerfile))
    assert {name.lower() for name in set_there} <= {option.name for option in all_options()}
