"""What the registry would publish, and what the release check says of it."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from archive import LARGEST, files_to_publish, find_large_files, is_repository, write_archive
from banned import find_banned
from lock import read_project
from release import find_foreign_tag, find_misnamed, find_missing, find_untold

PACK = Path(__file__).resolve().parents[2]
KEPT_BACK = {".ci", ".github", "tests", "Makefile", "AGENTS.md", "CONTRIBUTING.md", "constraints.txt", "comfy-test.toml"}


@pytest.fixture
def small(tmp_path):
    """A pack of a few files in a repository: tracked, ignored by git, left out, included all the same, and new."""
    files = {
        "pyproject.toml": '[tool.comfy]\nincludes = ["/weights"]\n',
        ".gitignore": "*.bin\n",
        ".comfyignore": "# a comment\ntests/\n*.log\n!kept.log\nweights/\n",
        "named \u00e9 so.py": "",
        "tests/test.py": "",
        "deep/tests/test.py": "",
        "lost.log": "",
        "kept.log": "",
        "weights/in.txt": "",
        "gone.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for name in ("new.py", "new.log", "cache.bin", "weights/out.bin"):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "gone.py").unlink()
    return tmp_path


TRACKED = [".comfyignore", ".gitignore", "kept.log", "named \u00e9 so.py", "pyproject.toml", "weights/in.txt", "weights/out.bin"]


def test_the_archive_has_what_git_tracks_without_what_comfyignore_names_and_with_the_includes(small):
    assert files_to_publish(small) == TRACKED
    assert write_archive(small / "out.zip", small) == TRACKED
    assert zipfile.ZipFile(small / "out.zip").namelist() == TRACKED


def test_tests_see_new_files_too(small):
    assert files_to_publish(small, uncommitted=True) == sorted([*TRACKED, "new.py"])


def test_a_folder_that_is_no_repository_has_the_same_files(small):
    shutil.rmtree(small / ".git")
    assert files_to_publish(small) == sorted([*TRACKED, "new.py"])
    inner = small / "inner"
    inner.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=small, check=True)
    assert is_repository(small) and not is_repository(inner)


def test_nothing_of_the_workshop_is_published_and_no_file_is_large(tmp_path, capsys):
    names = write_archive(tmp_path / "published.zip")
    assert not {name.split("/")[0] for name in names} & KEPT_BACK
    assert {"__init__.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"} <= set(names)
    assert find_large_files() == []
    with capsys.disabled():
        print(f"\npublished: {len(names)} files, {(tmp_path / 'published.zip').stat().st_size / 2**20:.1f} MiB")


def test_a_large_file_is_named(small):
    with open(small / "weights" / "in.txt", "wb") as file:
        file.truncate(LARGEST + 1)
    (said,) = find_large_files(small)
    assert said.startswith("weights/in.txt has 24.0 MiB")


def test_every_published_script_is_one_that_the_registry_takes():
    for name in files_to_publish(PACK, uncommitted=True):
        if name.endswith((".py", ".js")):
            assert find_banned(name, (PACK / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')", "exec(code)", "compile(code, '', 'exec')", "__import__('os')", "import subprocess", "from subprocess import run",
        "import pip", "from pip._internal import main", "import os; os.system('ls')", "import sys; sys.path.insert(0, '')",
        "import pickle", "import torch; torch.load('a')", "import torch; torch.load('a', weights_only=False)",
        "import urllib.request", "import requests", "import socket", "import aiohttp", f"a = '{'x' * 300}'",
    ],
)  # fmt: skip
def test_what_the_registry_refuses_in_python_is_named_with_its_line(line):
    (said,) = find_banned("nodes/bad.py", f"\n{line}\n")
    assert said.startswith("nodes/bad.py, line 2: ")


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)", "new Function(text)()", "import('https://host/a.js')", 'import { a } from "https://host/a.js"',
        "script.src = 'https://host/a.js'", "fetch('https://host')", "new WebSocket(url)",
    ],
)  # fmt: skip
def test_what_the_registry_refuses_in_a_script_is_named_with_its_line(line):
    (said,) = find_banned("web/bad.js", f"\n{line}\n")
    assert said.startswith("web/bad.js, line 2: ")


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "nodes/good.py",
            "model.eval()\nimport re, torch\ntorch.load('a', weights_only=True)\nfrom .pickle import a\nre.compile('a')",
        ),
        ("web/good.js", "fetch('/cidm/a'); import { app } from '/scripts/app.js'; retrieval(a);"),
        ("nodes/routes.py", "from aiohttp import web"),  # what the host's server answers with
        ("docs/page.md", "eval(this)"),
    ],
)
def test_what_only_looks_like_it_is_not_refused(name, text):
    assert find_banned(name, text) == []


def test_the_metadata_say_everything_but_where_the_repository_is():
    project = read_project()
    assert set(find_missing(project)) <= {
        "pyproject.toml has no project.urls.Repository: write the address that the registry links to there."
    }
    assert list(find_misnamed(project, files_to_publish(uncommitted=True))) == []


@pytest.mark.parametrize(
    "table, name, value, said",
    [
        ("project", "name", "ComfyUI-cidm", "project.name is ComfyUI-cidm: "),
        ("project", "name", "1cidm", "project.name is 1cidm: "),
        ("project", "name", "cidm--two", "project.name is cidm--two: "),
        ("project", "version", "1.0", "project.version is 1.0: "),
        ("project", "license-files", ["COPYING"], "pyproject.toml names COPYING, and no such file is published"),
        ("comfy", "Icon", "web/gone.svg", "pyproject.toml names web/gone.svg, and no such file is published"),
        ("comfy", "Banner", "tests/banner.svg", "pyproject.toml names tests/banner.svg, and no such file is published"),
    ],
)
def test_what_the_metadata_misname_is_said(table, name, value, said):
    project = read_project()
    (project["tool"]["comfy"] if table == "comfy" else project["project"])[name] = value
    (found,) = find_misnamed(project, files_to_publish(uncommitted=True))
    assert found.startswith(said)


def test_what_the_metadata_lack_is_said():
    project = read_project()
    del project["tool"]["comfy"]["PublisherId"], project["project"]["classifiers"]
    said = find_missing(project)
    assert "pyproject.toml has no tool.comfy.PublisherId: write who publishes there." in said
    assert "pyproject.toml has no project.classifiers: write systems and versions of Python there." in said


def test_the_changelog_has_the_version_and_a_day_before_it_is_published():
    assert find_untold("## [1.2.0] - 2020-02-29\n", "1.2.0") == []
    assert "tells nothing of 1.2.0" in find_untold("## [1.2.0rc1] - 2020-02-29\n## [11.2.0] - 2020-02-29\n", "1.2.0")[0]
    assert "has no day for 1.2.0" in find_untold("## [1.2.0] - Unreleased\n", "1.2.0")[0]
    changelog, version = (PACK / "CHANGELOG.md").read_text(encoding="utf-8"), read_project()["project"]["version"]
    assert not [said for said in find_untold(changelog, version) if "tells nothing" in said]


def test_a_tag_names_the_version():
    assert find_foreign_tag("v1.2.0", "1.2.0") == []
    assert find_foreign_tag("v1.2.1", "1.2.0") and find_foreign_tag("1.2.0", "1.2.0")
