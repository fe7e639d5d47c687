"""The deployment files agree with the service and with one another."""

import json
import re
import tomllib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.metrics import STAGES, Metrics
from app.server import FINISH_S, LAST_S
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/detector.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMING_SETTINGS = [
    *(ROOT / name for name in ("docker-compose.yml", "Dockerfile", "deploy/up", "deploy/detector.env", "README.md")),
    *(ROOT / "deploy" / name for name in ("kubernetes/detector.yaml", "ray_serve.py", "systemd/fcos-detect.service")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMPILED = sorted(path.stem for path in (ROOT / "requirements").glob("*.txt"))


def expressions() -> list[str]:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    queries += [one["expr"] for one in DASHBOARD["annotations"]["list"]]
    queries += [one["query"]["query"] for one in DASHBOARD["templating"]["list"]]
    return queries + [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]


def exported() -> set[str]:
    """Returns: The names that /metrics can show, also of those that nothing has happened to yet."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", Metrics().text().decode(), re.M):
        names |= {name} if kind != "histogram" else {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    return names


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_and_the_alerts_ask_for_metrics_that_exist(expression: str) -> None:
    own = set(re.findall(r"\b(?:fcos|process)_\w+", expression))
    assert own <= exported()
    assert set(re.findall(r'stage="(\w+)"', expression)) <= set(STAGES)


def test_a_figure_on_the_dashboard_is_what_holds_now() -> None:
    """The last value of the shown quarter of an hour would be a dead process's."""
    figures = [target for panel in DASHBOARD["panels"] if panel["type"] == "stat" for target in panel["targets"]]
    assert figures
    assert all(target["instant"] and not target["range"] for target in figures)


def test_panels_have_numbers_and_places_of_their_own() -> None:
    """Which a copied one has not."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = [
            max(one[start], other[start]) >= min(one[start] + one[size], other[start] + other[size])
            for start, size in (("x", "w"), ("y", "h"))
        ]
        assert any(apart), (one, other)


def test_the_gpu_is_reserved_for_the_service_and_never_for_the_cpu_variant() -> None:
    gpu, cpu = COMPOSE["services"]["detector"], COMPOSE["services"]["detector-cpu"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]
    assert gpu["environment"]["FCOS_PROVIDER"] == "cuda"
    assert gpu["build"]["args"]["VARIANT"] == "gpu"
    assert "deploy" not in cpu
    assert cpu["environment"]["FCOS_PROVIDER"] == "cpu"
    assert cpu["build"]["args"]["VARIANT"] == "cpu"


@pytest.mark.parametrize("name", ["detector", "detector-cpu"])
def test_the_service_is_locked_down_and_limited(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["mem_limit"]
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["driver"] == "json-file"  # which Podman takes, too
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    models = next(volume for volume in service["volumes"] if volume["target"] == "/models")
    assert models["read_only"] is True


def test_whatever_stops_the_service_waits_for_it_to_end() -> None:
    pod = next(yaml.safe_load_all((ROOT / "deploy/kubernetes/detector.yaml").read_text()))["spec"]["template"]["spec"]
    pods_drain_s = next(one["value"] for one in pod["containers"][0]["env"] if one["name"] == "FCOS_DRAIN_S")
    unit = (ROOT / "deploy/systemd/fcos-detect.service").read_text()
    waits_s = {
        "compose": int(re.findall(r":-(\d+)s", COMPOSE["services"]["detector"]["stop_grace_period"])[0]),
        "kubernetes": pod["terminationGracePeriodSeconds"] - int(pods_drain_s),
        "systemd": int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)[0]),
    }
    assert min(waits_s.values()) > Settings.model_fields["drain_s"].default + FINISH_S + LAST_S


def test_profiles_keep_the_rest_out_of_a_plain_up() -> None:
    services: dict[str, Any] = COMPOSE["services"]
    assert {name for name, service in services.items() if not service.get("profiles")} == {"detector"}
    monitoring = {name for name, service in services.items() if "monitoring" in service.get("profiles", ())}
    assert monitoring == {"prometheus", "grafana", "gpu-exporter"}
    assert services["locust"]["profiles"] == ["loadtest"]


@pytest.mark.parametrize("path", NAMING_SETTINGS, ids=lambda path: path.name)
def test_settings_in_deployment_files_and_pages_exist(path: Path) -> None:
    """An unknown FCOS_ variable would keep the service from starting."""
    known = {f"FCOS_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bFCOS_[A-Z0-9_]+\b", path.read_text())) <= known


def test_the_image_holds_no_torch() -> None:
    for name in ("serve", "gpu"):
        pinned = (ROOT / f"requirements/{name}.txt").read_text()
        assert not re.search(r"^(torch|torchvision|timm)\b", pinned, re.M)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    assert {word.split("/")[0] for line in copied for word in line.split()} == {"requirements", "tests", "model", "app"}
    assert "COPY model/weights" in (ROOT / "Dockerfile").read_text()


@pytest.fixture(params=["linux x86_64", "linux aarch64", "darwin arm64", "win32 AMD64", "win32 ARM64"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Returns: What markers of requirements are asked about on such a machine."""
    platform, machine = request.param.split()
    return {**default_environment(), "sys_platform": platform, "platform_machine": machine}


def asked_for(dependencies: list[str], environment: dict[str, str]) -> Iterator[Requirement]:
    """Yields: What `dependencies` ask for on such a machine, with the project's own extras taken apart."""
    for one in map(Requirement, dependencies):
        if one.marker and not one.marker.evaluate(environment):
            continue
        if one.name == PROJECT["project"]["name"]:
            for extra in one.extras:
                yield from asked_for(PROJECT["project"]["optional-dependencies"][extra], environment)
        else:
            yield one


def pinned(name: str, environment: dict[str, str]) -> dict[str, str]:
    """Returns: The versions in requirements/NAME.txt on such a machine, by normalised name."""
    lines = (ROOT / f"requirements/{name}.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins
        if not pin.marker or pin.marker.evaluate(environment)
    }


@pytest.mark.parametrize("name", COMPILED)
def test_what_pyproject_asks_for_is_pinned(name: str, environment: dict[str, str]) -> None:
    """As `make requirements` compiles it: a group alone, or the project's dependencies with the extra of that name."""
    dependencies = PROJECT["dependency-groups"].get(name)
    if dependencies is None:
        dependencies = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"].get(name, [])
    pins = pinned(name, environment)
    for one in asked_for(dependencies, environment):
        assert one.specifier.contains(pins.get(canonicalize_name(one.name), "0"), prereleases=True), f"{one}: {pins}"


@pytest.mark.parametrize("name", ["dev", "gpu"])
def test_what_is_tested_and_what_a_gpu_serves_with_has_the_versions_of_serve(
    name: str, environment: dict[str, str]
) -> None:
    assert pinned("serve", environment).items() <= pinned(name, environment).items()


def test_the_onnxruntime_that_is_pinned_has_a_wheel_for_the_machine(environment: dict[str, str]) -> None:
    """Of one version, that with CUDA has none for macOS and for Windows on ARM."""
    chosen = {name for name in pinned("serve", environment) if name.startswith("onnxruntime")}
    assert chosen == {"onnxruntime-gpu" if environment["platform_machine"] in ("x86_64", "AMD64") else "onnxruntime"}
