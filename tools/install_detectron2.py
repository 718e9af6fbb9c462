#!/usr/bin/env python
"""Give this interpreter a Detectron2, unless it has one.

A Detectron2 that can be imported is left alone, however it was installed. Otherwise the source archive of
``detectron2-cdo`` 0.5 is fetched from PyPI, whose Python files are those of Detectron2's tag v0.5, and installed as a
pure-Python wheel together with the shims beside this file. It trains and evaluates everything in this repository. What
needs compiled operators (rotated boxes, deformable convolution) needs a Detectron2 built from source by its INSTALL.md.

``pip list`` shows the result as ``detectron2 0.5+pypi.cdo``, ``pip uninstall detectron2`` removes it.
"""

import argparse
import base64
import hashlib
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ARCHIVE = "detectron2-cdo==0.5"
ARCHIVE_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
VERSION = "0.5+pypi.cdo"
SHIMS = Path(__file__).with_name("detectron2_pypi_shims.py")
INSTALLED_SHIMS = "_pypi_shims"  # the shims' module name inside the package

# What v0.5 imports at run time; its own list pins black and iopath to versions that no longer install.
REQUIREMENTS = (
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "matplotlib",
    "omegaconf>=2.1,<2.4",
    "Pillow>=7.1",
    "pycocotools>=2.0.2",
    "setuptools<82",  # model_zoo imports pkg_resources
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "torch",
    "tqdm>4.29.0",
    "yacs>=0.1.6",
)


def find_detectron2() -> Path | None:
    """Return the folder of the importable ``detectron2`` package, if there is one."""
    spec = importlib.util.find_spec("detectron2")
    # A bare folder of that name, such as a clone next to the script, is a namespace without origin: not an install.
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def is_outdated(package: Path) -> bool:
    """Tell whether ``package`` is one this tool installed, with shims that differ from today's."""
    shims = package / f"{INSTALLED_SHIMS}.py"
    return shims.is_file() and shims.read_bytes() != SHIMS.read_bytes()


def download(folder: Path) -> Path:
    """Fetch the source archive with pip, which also refuses other bytes than the known ones.

    pip asks the archive's ``setup.py`` for its metadata, and that imports torch and setuptools: hence no build
    isolation. The hash is given to pip so that nothing of a wrong archive is ever run.
    """
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{ARCHIVE} --hash=sha256:{ARCHIVE_SHA256}\n")
    options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"]
    _pip("download", *options, "--dest", str(folder), "--requirement", str(requirement))
    return next(folder.glob("*.tar.gz"))


def check_archive(archive: Path) -> None:
    """Stop unless ``archive`` has the SHA-256 of the source archive that was compared with Detectron2's tag v0.5."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != ARCHIVE_SHA256:
        raise SystemExit(
            f"error: {archive} is not the {ARCHIVE} known to equal Detectron2 v0.5: its SHA-256 is {found}, expected "
            f"{ARCHIVE_SHA256}. Nothing was installed. Install Detectron2 from source by its INSTALL.md instead."
        )


def build_wheel(archive: Path, folder: Path) -> Path:
    """Write the pure-Python wheel of the ``detectron2`` package inside ``archive`` into ``folder``.

    Every file of the package goes in as it is, except that ``__init__.py`` also imports the shims.
    """
    info = f"detectron2-{VERSION}.dist-info"
    files = _package_files(archive)
    files[f"detectron2/{INSTALLED_SHIMS}.py"] = SHIMS.read_bytes()
    files["detectron2/__init__.py"] += f"\nfrom . import {INSTALLED_SHIMS}  # added by this installer\n".encode()
    files[f"{info}/licenses/LICENSE"] = files.pop("LICENSE")
    files[f"{info}/METADATA"] = _metadata().encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: install_detectron2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD").encode()
    wheel = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return wheel


def install(wheel: Path) -> None:
    """Install ``wheel`` into this interpreter and make sure that what the project uses of it can be imported."""
    _pip("install", "--no-deps", "--force-reinstall", str(wheel))
    used = "import detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.modeling"
    # Away from the current folder, where a clone of Detectron2 could hide the installed one.
    if subprocess.run([sys.executable, "-W", "ignore", "-c", used], cwd=wheel.parent).returncode:
        raise SystemExit(
            "error: Detectron2 was installed, but importing it fails (see above). Is everything in pyproject.toml "
            "installed? `pip check` tells what is missing, `pip uninstall detectron2` removes it."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="the source archive, where it was already downloaded")
    given = parser.parse_args().archive
    package = find_detectron2()
    if package is not None and not is_outdated(package):
        print(f"Detectron2 is installed at {package} and is used as it is.")
        return
    if given is not None and not given.is_file():
        raise SystemExit(f"error: --archive {given} does not exist.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = given or download(folder)
        check_archive(archive)
        install(build_wheel(archive, folder))
    print(f"Detectron2 {VERSION} (pure Python) is installed.")


def _package_files(archive: Path) -> dict[str, bytes]:
    """Read the ``detectron2`` package and the licence out of the archive, named relative to its top folder."""
    files = {}
    with tarfile.open(archive) as source:
        for member in source:
            name = member.name.partition("/")[2]
            content = source.extractfile(member)
            if content is not None and (name == "LICENSE" or name.startswith("detectron2/")):
                files[name] = content.read()
    return files


def _metadata() -> str:
    head = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: Detectron2 v0.5 as pure Python, from PyPI's detectron2-cdo, with shims for current libraries",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "License: Apache-2.0",
        "Requires-Python: >=3.10",
    ]
    return "\n".join(head + [f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS]) + "\n"


def _record(files: dict[str, bytes], record: str) -> str:
    """List every file with its hash and size, as pip reads it to install, check and uninstall them."""
    rows = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    return "\n".join([*rows, f"{record},,"]) + "\n"


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _pip(command: str, *arguments: str) -> None:
    if subprocess.run([sys.executable, "-m", "pip", command, "--quiet", *arguments]).returncode:
        raise SystemExit(
            f"error: `pip {command}` failed (see above). Where PyPI cannot be reached, pass the source archive of "
            "detectron2-cdo 0.5 with --archive, or install Detectron2 from source by its INSTALL.md."
        )


if __name__ == "__main__":
    main()
