"""The images and the compose file, read as data: no Docker engine is needed, and none is asked."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))
TRAINING_IMAGES = [path for path in DOCKERFILES if path.name in ("Dockerfile", "Dockerfile.cpu")]


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, comments dropped and continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def values_of(path: Path, name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions(path) if instruction == name]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """compose.yaml with the default of every `${VARIABLE:-default}` filled in."""
    text = (ROOT / "docker" / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs)
    return {canonicalize_name(name): version for name, version in pairs}


def test_constraints_pin_every_dependency_inside_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = constraints()
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + extras["dev"] + extras["serve"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_all_dockerfiles_are_looked_at() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile", "Dockerfile.cpu", "Dockerfile.mlflow"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_unprivileged_and_without_secrets(path: Path) -> None:
    for base in values_of(path, "FROM"):
        assert re.search(r":\d+\.\d+", base), f"{base}: no version"
    last = instructions(path)
    users = [index for index, (name, _) in enumerate(last) if name == "USER"]
    assert last[users[-1]][1] not in ("0", "root")
    assert not [name for name, _ in last[users[-1] :] if name == "RUN"]
    for command in values_of(path, "RUN"):
        for install in re.findall(r"pip install.*?(?=&&|$)", command):
            assert re.search(r"-c \S*constraints\.txt|--no-deps|constraints\.txt\)", install), install
    assert not re.search(r"(?i)token|secret|password", path.read_text())


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_not_ignored(path: Path) -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignore[0] == "*"
    kept = [line[1:] for line in ignore if line.startswith("!")]
    sources = [source for arguments in values_of(path, "COPY") for source in arguments.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


@pytest.mark.parametrize("path", TRAINING_IMAGES, ids=lambda path: path.name)
def test_a_training_image_starts_deepspeed_with_a_recipe_that_exists(path: Path) -> None:
    entrypoint, command = (json.loads(values_of(path, name)[-1]) for name in ("ENTRYPOINT", "CMD"))
    assert entrypoint[0] == "deepspeed"
    assert (ROOT / command[0]).is_file()
    assert command[1] == "--recipe"
    assert (ROOT / command[2]).is_file()


def test_the_requirements_of_the_images_are_those_of_the_package() -> None:
    printed = subprocess.run(
        [sys.executable, "docker/requirements.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert printed.stdout.splitlines() == project["dependencies"]


def test_services_are_built_from_our_files(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"mlflow", "train", "train-cpu"}
    for service in compose["services"].values():
        folder = (ROOT / "docker" / service["build"]["context"]).resolve()
        assert folder == ROOT.resolve()
        assert (folder / service["build"]["dockerfile"]).is_file()
    volumes = {entry.split(":")[0] for entry in compose["services"]["mlflow"]["volumes"]}
    assert volumes <= set(compose["volumes"])


@pytest.mark.parametrize("name", ["train", "train-cpu"])
def test_training_services(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    script, option, recipe, uri = service["command"]
    assert (ROOT / script).is_file()
    assert option == "--recipe"
    assert (ROOT / recipe).is_file()
    # The address under which the server is reached must be one it answers to.
    host = uri.removeprefix("tracking.tracking_uri=http://")
    [allowed] = [a for a in compose["services"]["mlflow"]["command"] if a.startswith("--allowed-hosts=")]
    assert host in allowed.removeprefix("--allowed-hosts=").split(",")
    assert host.split(":")[0] in compose["services"]
    assert service["depends_on"]["mlflow"]["condition"] == "service_healthy"
    assert compose["services"]["mlflow"]["healthcheck"]["test"][0] == "CMD"
    assert not service["user"].startswith(("0", "root"))
    assert service["environment"] == ["HF_TOKEN"]  # a name without a value: never written down
    targets = {volume["target"] for volume in service["volumes"]}
    assert targets == {"/workspace/recipes", "/workspace/data", "/workspace/runs", "/cache"}
    named = {volume["source"] for volume in service["volumes"] if volume["type"] == "volume"}
    assert named <= set(compose["volumes"])
    assert service["shm_size"] == "8gb"


def test_only_train_reserves_gpus_and_only_train_cpu_is_optional(compose: dict[str, Any]) -> None:
    [device] = compose["services"]["train"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "deploy" not in compose["services"]["train-cpu"]
    assert compose["services"]["train-cpu"]["profiles"] == ["cpu"]


def test_the_server_is_reached_from_this_machine_only(compose: dict[str, Any]) -> None:
    [port] = compose["services"]["mlflow"]["ports"]
    assert port == "127.0.0.1:5000:5000"
