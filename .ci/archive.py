"""What the registry publishes of this folder: ``python .ci/archive.py [FILE.zip]`` says how much, and writes it.

The registry's command line takes every file that git tracks, leaves out what ``.comfyignore`` names in the language of ``.gitignore``, and
adds whatever lies in the folders of ``includes``. Git itself reads the patterns here.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lock import ROOT, read_project

LARGEST = 24 * 2**20  # bytes of one file


def files_to_publish(root: Path = ROOT, uncommitted: bool = False) -> list[str]:
    """Paths from ``root`` with ``/`` between; with ``uncommitted`` also of files that are new, and would be published after a commit."""
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(root)]
        if not is_repository(root):  # as out of an archive: everything is new to a repository that is made for this alone
            run(["git", "init", "--quiet", "--bare", folder])
            git, uncommitted = ["git", "-C", str(root), f"--git-dir={folder}", "--work-tree=."], True
        known = run([*git, "ls-files", "-z", "--cached"])
        kinds = ["--cached"]
        if uncommitted:
            known += run([*git, "ls-files", "-z", "--others", "--exclude-standard"])
            kinds += ["--others"]
        left_out = run([*git, "ls-files", "-z", *kinds, "--ignored", "--exclude-from=.comfyignore"])
    included: set[str] = set()
    for name in read_project(root)["tool"]["comfy"].get("includes", []):
        place = root / name.strip("/")
        inside = place.rglob("*") if place.is_dir() else [place]
        included |= {file.relative_to(root).as_posix() for file in inside}
    return sorted(name for name in set(known) - set(left_out) | included if (root / name).is_file())


def is_repository(root: Path) -> bool:
    """Whether ``root`` is the top of a repository of its own, and not a folder inside another one."""
    said = subprocess.run(["git", "-C", str(root), "rev-parse", "--show-cdup"], capture_output=True, text=True)
    return said.returncode == 0 and not said.stdout.strip()


def run(command: list[str]) -> list[str]:
    """The names that a command of git says, an empty character after each. Raises ``RuntimeError`` with what it said where it fails."""
    said = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if said.returncode:
        raise RuntimeError(f"{' '.join(command)}: {said.stderr.strip()}")
    return [name for name in said.stdout.split("\0") if name]


def write_archive(target: Path, root: Path = ROOT) -> list[str]:
    """Writes what would be published and returns its names."""
    names = files_to_publish(root)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(root / name, name)
    return names


def find_large_files(root: Path = ROOT) -> list[str]:
    """A sentence for each published file that is over the limit."""
    sizes = {name: (root / name).stat().st_size for name in files_to_publish(root)}
    return [
        f"{name} has {size / 2**20:.1f} MiB, and at most {LARGEST // 2**20} are published: make it smaller, or name it in .comfyignore."
        for name, size in sizes.items()
        if size > LARGEST
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "published.zip"
        names = write_archive(target)
        whole = sum((ROOT / name).stat().st_size for name in names)
        print(f"{len(names)} files, {whole / 2**20:.1f} MiB, as an archive {target.stat().st_size / 2**20:.1f} MiB")
        print(*find_large_files(), sep="\n", end="")


if __name__ == "__main__":
    main()
