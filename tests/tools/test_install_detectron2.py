"""``tools/install_detectron2.py`` on a small source archive made here, without network."""

import hashlib
import importlib.machinery
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest

from tests.support.models import load_tool

TOOL = Path(__file__).parents[2] / "tools" / "install_detectron2.py"
SOURCES = {
    "LICENSE": "Apache License\n",
    "setup.py": "raise SystemExit('must never run')\n",
    "detectron2/__init__.py": '__version__ = "0.5"\n',
    "detectron2/layers/__init__.py": "from detectron2 import _C\nfrom PIL.Image import LINEAR\n",
    "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
    "projects/PointRend/point_rend/__init__.py": "",
}


@pytest.fixture
def tool() -> types.ModuleType:
    return load_tool("install_detectron2")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "detectron2_cdo-0.5.tar.gz"
    with tarfile.open(path, "w:gz") as target:
        for name, text in SOURCES.items():
            member = tarfile.TarInfo(f"detectron2_cdo-0.5/{name}")
            member.size = len(text)
            target.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def installed(tool, archive: Path, tmp_path: Path) -> Path:
    """A folder into which pip has installed the wheel of the small archive."""
    wheel, target = tool.build_wheel(archive, tmp_path), tmp_path / "site"
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return target


def run_python(code: str, site: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=site, check=True, capture_output=True, text=True).stdout


def test_another_archive_is_refused(tool, archive, monkeypatch):
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(SystemExit) as stop:
        tool.check_archive(archive)
    message = str(stop.value)
    assert str(archive) in message and found in message and tool.ARCHIVE_SHA256 in message
    assert "Nothing was installed" in message and "INSTALL.md" in message
    monkeypatch.setattr(tool, "find_detectron2", lambda: None)
    monkeypatch.setattr(tool, "install", lambda wheel: pytest.fail(f"installed {wheel}"))
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--archive", str(archive)])
    with pytest.raises(SystemExit, match="SHA-256"):
        tool.main()
    monkeypatch.setattr(tool, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    tool.check_archive(archive)


def test_download(tool, tmp_path, monkeypatch):
    """pip is given the hash before it runs anything; a failure names the ways out."""
    calls: list[tuple[str, ...]] = []

    def pip(*arguments: str) -> None:
        calls.append(arguments)
        (tmp_path / "detectron2-cdo-0.5.tar.gz").touch()

    monkeypatch.setattr(tool, "_pip", pip)
    assert tool.download(tmp_path) == tmp_path / "detectron2-cdo-0.5.tar.gz"
    assert calls[0][0] == "download" and "--require-hashes" in calls[0]
    requirement = (tmp_path / "requirements.txt").read_text()
    assert requirement == f"detectron2-cdo==0.5 --hash=sha256:{tool.ARCHIVE_SHA256}\n"
    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SystemExit, match=r"`pip download` failed.*--archive.*INSTALL\.md"):
        tool.download(tmp_path)


def test_the_wheel_holds_the_package_and_the_shims(installed, tool):
    package = installed / "detectron2"
    for name in ("layers/__init__.py", "model_zoo/configs/Base.yaml"):
        assert (package / name).read_text() == SOURCES[f"detectron2/{name}"]
    start, added = (package / "__init__.py").read_text().split(SOURCES["detectron2/__init__.py"])
    assert start == "" and added.strip().startswith("from . import _pypi_shims")
    assert (package / "_pypi_shims.py").read_text() == TOOL.with_name("detectron2_pypi_shims.py").read_text()
    assert not (installed / "projects").exists()
    code = (
        "from importlib import metadata; found = metadata.distribution('detectron2');"
        "print(found.metadata['Name'], found.version, *found.requires, sep='|');"
        "print(sorted(str(file) for file in found.files if not file.locate().is_file()))"
    )
    described, absent = run_python(code, installed).splitlines()
    assert described.split("|") == ["detectron2", tool.VERSION, *tool.REQUIREMENTS]
    assert absent == "[]"
    license = installed / f"detectron2-{tool.VERSION}.dist-info" / "licenses" / "LICENSE"
    assert license.read_text() == SOURCES["LICENSE"]
    assert not tool.is_outdated(package)
    (package / "_pypi_shims.py").write_text("# an older one\n")
    assert tool.is_outdated(package)
    (package / "_pypi_shims.py").unlink()
    assert not tool.is_outdated(package)


def test_compiled_operators_raise_only_when_they_are_used(installed):
    code = """
import copy, importlib.util, inspect
import detectron2.layers
from detectron2 import _C
assert inspect.unwrap(_C) is _C and not hasattr(_C, "__wrapped__") and not hasattr(_C, "__deepcopy__")
assert importlib.util.find_spec("detectron2._C") is None
try:
    import detectron2._C
except ImportError:
    print("absent")
try:
    _C.anything
except ImportError as error:
    print(error)
"""
    absent, message = run_python(code, installed).splitlines()
    assert absent == "absent"
    assert message.startswith("detectron2._C.anything is a compiled operator") and "INSTALL.md" in message


def test_names_that_libraries_removed_are_back(installed):
    code = """
import numpy as np
from PIL import Image
before = Image.BILINEAR, np.bool_
import detectron2
assert Image.LINEAR == before[0]
print(np.zeros(1, np.int).dtype, np.zeros(1, np.float).dtype, np.zeros(1, np.bool).dtype == before[1], np.str("x"))
"""
    assert run_python(code, installed).split() == ["int64", "float64", "True", "x"]


def test_an_importable_detectron2_is_left_alone(tmp_path):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('need not be imported')\n")
    result = subprocess.run(
        [sys.executable, str(TOOL)],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(package) in result.stdout and "used as it is" in result.stdout
    assert [path.name for path in package.iterdir()] == ["__init__.py"]


def test_a_folder_without_python_package_is_no_detectron2(tool, tmp_path, monkeypatch):
    (tmp_path / "detectron2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    assert tool.find_detectron2() is None
