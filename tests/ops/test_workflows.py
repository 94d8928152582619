"""What runs elsewhere says the same as the project: systems, versions and forms; it may read, and takes the parts of others by version."""

import re
from pathlib import Path

import pytest
import yaml
from archive import files_to_publish
from lock import environments_of, read_project

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((PACK / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(file for file in (PACK / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if file.stem != "config")
PARTS = sorted((PACK / ".github").rglob("*.y*ml"))


def read(file):
    return yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)  # `on` is a word, and 3.10 no number


def matrix(name):
    return read(PACK / ".github" / "workflows" / f"{name}.yml")["jobs"]["suite"]["strategy"]["matrix"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_only_reads_and_ends(file):
    workflow = read(file)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] == ("false" if file.stem == "publish" else "true")
    for name, job in workflow["jobs"].items():
        assert "uses" in job or int(job["timeout-minutes"]) <= 300, f"{name} may run for hours"
        assert "permissions" not in job


@pytest.mark.parametrize("file", PARTS, ids=lambda file: file.stem)
def test_the_parts_of_others_are_taken_by_version(file):
    for used in re.findall(r"uses: (\S+)", file.read_text(encoding="utf-8")):
        if not used.startswith("./"):
            owner, _, version = used.partition("@")
            assert re.fullmatch(r"v\d+" if owner.startswith("actions/") else r"[0-9a-f]{40}", version), f"{used}: name a version"


def test_the_suite_runs_on_every_system_and_python_that_the_project_names():
    environments = environments_of(read_project())
    assert matrix("tests")["python"] == sorted({one["python_version"] for one in environments}, key=lambda python: int(python[2:]))
    systems = {"Linux": "ubuntu-latest", "Windows": "windows-latest", "Darwin": "macos-latest"}
    assert set(matrix("tests")["system"]) == {systems[one["platform_system"]] for one in environments}


def test_the_suite_runs_on_the_oldest_comfyui_that_the_project_allows():
    oldest = read_project()["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    assert matrix("hosts")["comfyui"] == [f"v{oldest}", "newest"]


def test_what_comfy_test_queues_is_published():
    text = (PACK / "comfy-test.toml").read_text(encoding="utf-8")
    queued = re.findall(r'"([^"/]+\.json)"', text)
    assert queued and {f"workflows/{name}" for name in queued} <= set(files_to_publish(uncommitted=True))


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_a_form_asks_each_thing_once_and_says_what_is_meant(file):
    asked = [part for part in read(file)["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in asked}) == len({part["attributes"]["label"] for part in asked}) == len(asked)


def test_the_form_for_faults_asks_what_a_fault_needs():
    asked = {part["id"]: part for part in read(FORMS[0])["body"]}
    assert {"comfyui", "frontend", "pack", "machine", "said", "workflow", "file"} <= asked.keys()
    assert "cidm doctor" in asked["file"]["attributes"]["description"] and "Inspect File" in asked["file"]["attributes"]["description"]
