"""docker-compose.yml and the Dockerfile, as far as they can be checked without a container engine."""

import importlib.resources
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from ray.scripts.scripts import cli as ray_cli

from autotune.cli.main import app

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
#: They end by themselves; all others run until they are stopped.
ONE_SHOT = {"migrate"}
NODES = {"ray-head", "ray-worker", "ray-worker-gpu", "controller"}
DAEMONS = sorted(SERVICES.keys() - ONE_SHOT)

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def commands(service: dict[str, Any]) -> list[list[str]]:
    """The words of each program a service's command runs."""
    words: list[str] = service.get("command", [])
    if words[:2] != ["sh", "-c"]:
        return [words] if words else []
    programs = [shlex.split(part) for part in words[2].split("&&")]
    return [program[program[0] == "exec" :] for program in programs]


def parse(command: Any, words: list[str]) -> None:
    """Parse the words as the program would, without running it; a wrong word is an error."""
    # Typer carries its own copy of click, so there is no common class to ask for.
    while hasattr(command, "commands"):
        words = words[1:]
        command = command.commands[words[0]]
    command.make_context(words[0], words[1:])


def test_file_follows_the_compose_specification() -> None:
    schema = importlib.resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json")
    jsonschema.validate(COMPOSE, json.loads(schema.read_text(encoding="utf-8")))


def test_services_are_those_the_documentation_names() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE) == list(SERVICES)


@each_service
def test_service_has_no_rights(service: dict[str, Any]) -> None:
    assert int(service["user"].partition(":")[0]) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & service.keys()


@each_service
def test_service_writes_to_memory_or_named_volumes_only(service: dict[str, Any]) -> None:
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    for volume in service.get("volumes", ()):
        source, _, *mode = volume.split(":")
        assert source in COMPOSE["volumes"] or mode == ["ro"]


def test_only_api_and_dashboard_are_published_and_to_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8123:8123"], "dashboard": ["127.0.0.1:8501:8501"]}
    assert "--no-authentication" not in SERVICES["api"]["command"]


def test_database_and_cluster_have_no_way_out() -> None:
    assert COMPOSE["networks"]["internal"]["internal"] is True
    outside = {name for name, service in SERVICES.items() if service["networks"] != ["internal"]}
    assert outside == {"api", "dashboard"}


@pytest.mark.parametrize("name", DAEMONS)
def test_daemon_is_watched_and_restarted(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(ONE_SHOT))
def test_one_shot_is_not_started_twice(name: str) -> None:
    assert SERVICES[name]["restart"] == "no"


@each_service
def test_service_has_time_to_stop(service: dict[str, Any]) -> None:
    assert int(service["stop_grace_period"].removesuffix("s")) >= 10


@each_service
def test_service_waits_until_what_it_needs_is_ready(service: dict[str, Any]) -> None:
    for name, dependency in service.get("depends_on", {}).items():
        ready = "service_completed_successfully" if name in ONE_SHOT else "service_healthy"
        assert dependency["condition"] == ready


def test_whoever_opens_the_database_waits_for_its_migration() -> None:
    users = {name for name, service in SERVICES.items() if "AUTOTUNE_DATABASE" in service.get("environment", {})}
    assert users == {"migrate", "controller", "api", "dashboard"}
    assert all("migrate" in SERVICES[name]["depends_on"] for name in users - {"migrate"})


@each_service
def test_image_has_a_full_version(service: dict[str, Any]) -> None:
    assert re.search(r":\d+\.\d+(\.\d+)?(-\w+)*$", service["image"])


def test_image_of_this_project_has_its_version_and_base() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = {service["image"] for service in SERVICES.values() if "build" in service}
    assert ours == {f"quant-autotune:{version}"}
    assert re.search(r"^ARG BASE=python:3\.\d+\.\d+-slim-\w+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_secrets_are_files_that_git_ignores() -> None:
    assert all(secret.keys() == {"file"} for secret in COMPOSE["secrets"].values())
    assert all(secret["file"].startswith("secrets/") for secret in COMPOSE["secrets"].values())
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "secrets" not in (ROOT / ".dockerignore").read_text()


@each_service
def test_credentials_are_named_by_their_file_only(service: dict[str, Any]) -> None:
    mounted = {f"/run/secrets/{name}" for name in service.get("secrets", ())}
    environment: dict[str, str] = service.get("environment", {})
    told = {name: value for name, value in environment.items() if re.search("PASSWORD|TOKEN|SECRET|KEY", name)}
    assert set(told.values()) == mounted
    assert not any(re.search(r"://[^/@]*:[^/@]*@", value) for value in environment.values())


def test_cluster_asks_every_node_for_its_token() -> None:
    for name in NODES:
        assert SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert "ray_token" in SERVICES[name]["secrets"]


@each_service
def test_programs_know_their_options(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    programs = {"autotune": typer.main.get_command(app), "ray": ray_cli}
    health = service.get("healthcheck", {}).get("test", ["CMD"])[1:]
    for words in [*commands(service), *([health] if health[:1] == ["ray"] else [])]:
        parse(programs[words[0]], words)


def test_gpus_are_given_to_the_workers_of_one_profile_only() -> None:
    with_gpus = {name for name, service in SERVICES.items() if "deploy" in service}
    assert with_gpus == {"ray-worker-gpu"}
    assert SERVICES["ray-worker-gpu"]["profiles"] == ["gpu"]
