"""A real ComfyUI server with the pack in its custom_nodes."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from archive import files_to_publish

PACK = Path(__file__).resolve().parents[1]


def install(custom_nodes: Path) -> Path:
    """Copy exactly what the registry would publish, new files too, into a folder whose name no Python module could have."""
    place = custom_nodes / "comfyui-cidm-1.0"
    for name in files_to_publish(PACK, uncommitted=True):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACK / name, place / name)
    return place


# No films on the first visit, and a canvas that does not paint all the time: in software that takes a third of a core.
SETTINGS = {"Comfy.TutorialCompleted": True, "LiteGraph.Canvas.MaximumFps": 10}


class Server:
    """A running ComfyUI: prompts in, history out. ``options`` are of its command line."""

    def __init__(self, host, folder: Path, options: Sequence[str] = ()):
        self.host, self.folder = host, folder
        self.pack = install(folder / "custom_nodes")
        for name in ("models", "input", "output", "user/default"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "user/default/comfy.settings.json").write_text(json.dumps(SETTINGS))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log.txt"
        command = [host.python, "main.py", "--cpu", "--port", self.port, "--base-directory", folder, "--database-url", "sqlite:///:memory:"]
        for option in ("output", "temp", "user", "input"):
            command += [f"--{option}-directory", folder / option]
        command += options
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([str(c) for c in command], cwd=host.path, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.wait_for(lambda: self.get("/object_info/CIDMOpenBank"), 300)
        except AssertionError:
            self.close()
            raise

    def wait_for(self, ready, seconds: float) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := ready():
                    return found
            except (urllib.error.URLError, ConnectionError):
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.3)
        raise AssertionError(f"{self.host}: not ready after {seconds} s:\n{self.log.read_text()[-4000:]}")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode()[:2000]}") from error
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any]) -> str:
        answer = self.post("/prompt", {"prompt": prompt})
        assert not answer["node_errors"], answer["node_errors"]  # the rest would run
        return answer["prompt_id"]

    def finished(self, prompt_id: str, seconds: float = 300) -> dict[str, Any]:
        return self.wait_for(lambda: self.get(f"/history/{prompt_id}").get(prompt_id), seconds)

    def run(self, prompt: dict[str, Any], seconds: float = 300) -> dict[str, Any]:
        """The outputs of a prompt by node. Fails with the node's error."""
        entry = self.finished(self.queue(prompt), seconds)
        assert entry["status"]["status_str"] == "success", message(entry)
        return entry["outputs"]

    def error(self, prompt: dict[str, Any]) -> str:
        """The message of the error that a prompt ends with, or that it is refused with before it runs."""
        try:
            entry = self.finished(self.queue(prompt))
        except AssertionError as refused:
            return str(refused)
        assert entry["status"]["status_str"] == "error", "it went through"
        return message(entry)

    def bank(self, name: str) -> Path:
        return self.folder / "models" / "cidm_banks" / name

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def message(entry: dict[str, Any]) -> str:
    return " ".join(m.get("exception_message", "") for kind, m in entry["status"]["messages"] if kind == "execution_error")


@pytest.fixture(scope="session")
def server(comfy_host, tmp_path_factory) -> Iterator[Server]:
    """One running ComfyUI for all tests of a checkout; for use in a conftest.py."""
    running = Server(comfy_host, tmp_path_factory.mktemp("comfy"))
    yield running
    running.close()
