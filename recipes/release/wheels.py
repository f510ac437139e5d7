"""Builds and checks what is released: `make wheels`.

    three folders ──> dist/*.whl, *.tar.gz ──> twine, files, versions ──> a fresh environment of each Python: smoke.py

Nothing is uploaded. Environments are in a temporary folder, one at a time, and are removed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
# Each distribution's folder, and its package inside it.
DISTRIBUTIONS = {
    "memograft": ("", "src/memograft"),
    "langchain_memograft": ("integrations/langchain", "langchain_memograft"),
    "llama_index_llms_memograft": ("integrations/llama-index", "llama_index/llms/memograft"),
}
LARGEST = 8_000_000  # bytes of a wheel
BESIDE = {"PKG-INFO", "pyproject.toml", "README.md", "LICENSE", ".gitignore", "CHANGELOG.md"}  # of an sdist


def run(*command: str | Path) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True)


def tracked(folder: Path) -> set[str]:
    """The files of a folder that git knows, relative to it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, check=True, capture_output=True, text=True).stdout
    return set(listed.split("\0")) - {""}


def build() -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    for folder, _ in DISTRIBUTIONS.values():  # a wheel is built from its sdist, so both are complete
        run(sys.executable, "-m", "build", "--outdir", DIST, ROOT / folder)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))


def check_files(name: str) -> str:
    """Compare the files of a wheel and its sdist with those that git knows; return the version.

    Raises:
        SystemExit: other files, a missing one, a wheel that is too large, or a description with relative links.
    """
    folder, package = DISTRIBUTIONS[name]
    (wheel,), (sdist,) = DIST.glob(f"{name}-*.whl"), DIST.glob(f"{name}-*.tar.gz")
    expected = {f"{package}/{file}" for file in tracked(ROOT / folder / package)}
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive if not member.isdir()}
    differ(sdist, packed - BESIDE, expected)
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        (metadata,) = (file for file in files if file.endswith(".dist-info/METADATA"))
        about = message_from_bytes(archive.read(metadata))
    info = metadata.partition("/")[0]
    differ(wheel, {f for f in files if not f.startswith(info)}, {file.removeprefix("src/") for file in expected})
    differ(wheel, {f"{info}/licenses/LICENSE", f"{package.removeprefix('src/')}/py.typed"} - files, set())
    if broken := re.findall(r"\]\((?!https?:)[^)]*\)", str(about.get_payload())):
        raise SystemExit(f"the links {broken[:5]} of {wheel.name} have no target on PyPI; mend the build")
    if wheel.stat().st_size > LARGEST:
        raise SystemExit(f"{wheel.name} has {wheel.stat().st_size} bytes, more than {LARGEST}; leave large files out")
    return str(about["Version"])


def differ(archive: Path, found: set[str], expected: set[str]) -> None:
    if found != expected:
        raise SystemExit(
            f"{archive.name} differs from git in {sorted(found ^ expected)[:5]}; commit these files, or mend the build"
        )


def check_versions(versions: set[str], released: str | None) -> None:
    """Refuse distributions of several versions, and with `released` any version that is not ready for its release.

    Raises:
        SystemExit: the versions differ, an integration takes an older core, or the changelog has no such section.
    """
    if len(versions) != 1 or (released and versions != {released}):
        wanted = f"they must all be {released}" if released else "they must be equal"
        raise SystemExit(f"the versions are {sorted(versions)}; {wanted}: set `__version__` of all three packages")
    if released is None:
        return
    for folder, _ in list(DISTRIBUTIONS.values())[1:]:
        project = ROOT / folder / "pyproject.toml"
        if f'"memograft[structured]>={released},' not in project.read_text(encoding="utf-8"):
            raise SystemExit(
                f"{project} must require memograft>={released}, the core that it was tested with; raise it"
            )
    sections = re.findall(rf"^### \[{re.escape(released)}\] ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    if len(sections) != len(DISTRIBUTIONS):
        raise SystemExit(f"CHANGELOG.md has {len(sections)} sections [{released}], one for each package is needed")


def try_out(python: str) -> None:
    """Install the wheels without extras into a fresh environment of this Python, the core first, and use them."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder, "bin", "python")
        run(python, "-m", "venv", folder)
        run(fresh, "--version")
        torch = Path(folder, "torch.txt")  # the newest torch may install gigabytes of CUDA
        constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
        torch.write_text("".join(re.findall(r"^torch==.*\n", constraints, re.MULTILINE)), encoding="utf-8")
        for part, names in (("core", ["memograft"]), ("integrations", list(DISTRIBUTIONS)[1:])):
            wheels = [wheel for name in names for wheel in DIST.glob(f"{name}-*.whl")]
            run(fresh, "-m", "pip", "install", "--quiet", "-c", torch, "--find-links", DIST, *wheels)
            run(fresh, "-I", ROOT / "recipes" / "release" / "smoke.py", ROOT, part)
        run(fresh, "-m", "pip", "check")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", help="the Pythons to try the wheels with")
    parser.add_argument("--release", metavar="VERSION", help="also check that everything has this version")
    options = parser.parse_args()
    build()
    check_versions({check_files(name) for name in DISTRIBUTIONS}, options.release)
    for python in options.pythons:
        try_out(python)
    print("the wheels are in dist/")
