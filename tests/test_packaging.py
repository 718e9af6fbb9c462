"""The wheel: what is in it, and that it works where there is no checkout. Built without network and isolation."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"pixelmask", "patchdct", "airm"}
# What a wheel is made of, and what must not get into one
COPIED = [*sorted(PACKAGES), "tools", "tests", "configs", "pyproject.toml", "README.md", "LICENSE"]

IMPORT_ALL = """
import importlib, pathlib, pkgutil, runpy, sys
import airm, patchdct, pixelmask

for package in (airm, patchdct, pixelmask):
    assert pathlib.Path(package.__file__).parent.parent == pathlib.Path(sys.argv[1]), package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
for command in ("airm.refine", "pixelmask.doctor"):
    sys.argv = [command, "--help"]
    try:
        runpy.run_module(command, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy: setuptools leaves a folder in which files that were deleted since live on."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in COPIED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(target)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (built,) = target.glob("*.whl")
    return built


def test_contents(wheel):
    names = [Path(name) for name in ZipFile(wheel).namelist()]
    (info,) = {name.parts[0] for name in names} - PACKAGES
    assert info == f"{'-'.join(wheel.name.split('-')[:2])}.dist-info" and info.startswith("pixelmask-")
    packed = {name for name in names if name.suffix == ".py"}
    assert packed == {path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert {Path(name, "py.typed") for name in PACKAGES} == {name for name in names if name.name == "py.typed"}
    assert any(name.name == "LICENSE" for name in names)
    # The weights that come with the project, and their card
    beside = {path.relative_to(ROOT) for path in (ROOT / "airm/pretrained").iterdir()}
    assert beside == {name for name in names if name.parent.name == "pretrained"}


@pytest.mark.slow
def test_every_module_is_imported_without_the_checkout(wheel, tmp_path, monkeypatch):
    """An editable installation of the checkout comes after PYTHONPATH, which the paths of the packages prove."""
    ZipFile(wheel).extractall(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    command = [sys.executable, "-c", IMPORT_ALL, str(tmp_path / "site")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "python -m airm.refine" in ended.stdout and "Detectron2" in ended.stdout
