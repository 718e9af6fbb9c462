"""The report of ``pixelmask.doctor``: every row, with libraries taken away and data sets put in place."""

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import detectron2
import pytest

from pixelmask import doctor

LIBRARIES = ("torch", "torchvision", "Detectron2", "pycocotools", "faster-coco-eval", "lvis", "cityscapesscripts")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What importing a module, or anything below it, gives instead: another object, or the error it raises."""
    replaced: dict[str, object] = {}

    def import_module(name: str) -> object:
        found = replaced.get(name, replaced.get(name.partition(".")[0]))
        if isinstance(found, Exception):
            raise found
        return found or importlib.import_module(name)

    monkeypatch.setattr(doctor, "import_module", import_module)
    return replaced


def examine() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine()}


def put_files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")


def test_everything_installed_is_found_with_its_version() -> None:
    checks = examine()
    for name in LIBRARIES:
        assert checks[name].status == "ok", checks[name]
        assert checks[name].found[0].isdigit(), checks[name]
        assert checks[name].remedy == ""
    folder = Path(detectron2.__file__).parent
    kind = "compiled" if any(folder.glob("_C.*")) else "pure Python"
    assert checks["Detectron2"].found == f"{detectron2.__version__}, {kind}, at {folder}"


@pytest.mark.parametrize(
    ("module", "row", "remedy", "exit_status"),
    [
        ("torch", "torch", "make install", 1),
        ("torchvision", "torchvision", "https://pytorch.org", 1),
        ("detectron2", "Detectron2", "INSTALL.md", 1),
        ("pycocotools", "pycocotools", "pip install pycocotools", 1),
        ("faster_coco_eval", "faster-coco-eval", "pip install faster-coco-eval", 1),
        ("lvis", "lvis", "pip install lvis", 0),
        ("cityscapesscripts", "cityscapesscripts", "pip install cityscapesscripts", 0),
    ],
)
def test_a_missing_library_is_named_with_its_remedy(module, row, remedy, exit_status, imports, capsys):
    imports[module] = ModuleNotFoundError(f"No module named {module!r}", name=module)
    check = examine()[row]
    assert check.status == "missing"
    assert check.found == f"no module {module}"
    assert remedy in check.remedy
    assert doctor.main() == exit_status
    output = capsys.readouterr().out
    assert row in output and "missing" in output and remedy in output


def test_the_environment_is_told_by_what_can_be_imported(imports: dict[str, object]) -> None:
    versions = (detectron2.__version__, importlib.import_module("torch").__version__, sys.version.split()[0])
    assert all(version in doctor.environment() for version in versions)
    imports["detectron2"] = ImportError("broken")
    assert versions[1] in doctor.environment() and "detectron2" not in doctor.environment()
    imports["torch"] = OSError("broken, too")
    assert doctor.environment() == ""


def test_broken_libraries_are_told_from_missing_ones(imports: dict[str, object]) -> None:
    imports["torchvision"] = RuntimeError("operator torchvision::nms does not exist\nand a second line")
    check = examine()["torchvision"]
    assert check.status == "broken"
    assert check.found == "operator torchvision::nms does not exist"
    assert "matching pair" in check.remedy
    assert doctor.main() == 1

    def nms(*_: object) -> None:
        raise NotImplementedError("no kernel for this device")

    imports["torchvision"] = SimpleNamespace(nms=nms)
    assert examine()["torchvision"][1:3] == ("broken", "no kernel for this device")
    imports["detectron2"] = ModuleNotFoundError("No module named 'fvcore'", name="fvcore")
    assert examine()["Detectron2"][1:3] == ("broken", "no module fvcore")


def test_an_extension_compiled_for_another_torch_is_broken(imports: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "_C.cpython-311-x86_64-linux-gnu.so").touch()
    imports["detectron2"] = SimpleNamespace(__file__=str(tmp_path / "__init__.py"), __version__="0.6")
    assert examine()["Detectron2"].found == f"0.6, compiled, at {tmp_path}"
    imports["detectron2._C"] = ImportError("undefined symbol: _ZN3c10")
    assert examine()["Detectron2"][1:3] == ("broken", "undefined symbol: _ZN3c10")


def test_no_data_sets_each_named_with_its_page() -> None:
    checks = examine()
    pages = {
        "COCO 2017": "https://cocodataset.org",
        "LVIS v0.5": "https://www.lvisdataset.org",
        "LVIS v0.5 cocofied": "datasets/README.md",
        "LVIS v1": "https://www.lvisdataset.org",
        "LVIS v1 cocofied": "datasets/README.md",
        "Cityscapes": "https://www.cityscapes-dataset.com",
        "AIRM training": "datasets/README.md",
        "DUT-OMRON": "http://saliencydetection.net",
        "BIG": "https://github.com/hkchengrex/CascadePSP",
        "VOC 2012 relabelled": "https://github.com/hkchengrex/CascadePSP",
        "shapes (synthetic)": "make demo",
    }
    for name, page in pages.items():
        assert checks[name].status == "missing"
        assert page in checks[name].remedy
        assert not checks[name].required


def test_data_sets_are_found_below_the_root(root: Path) -> None:
    for split in ("train", "val"):
        put_files(root, f"coco/annotations/instances_{split}2017.json", f"coco/{split}2017/1.jpg")
        put_files(root, f"cityscapes/leftImg8bit/{split}/ulm/1.png", f"lvis/lvis_v1_{split}.json")
    put_files(root, "lvis/lvis_v0.5_val_cocofied.json", "shapes/val/annotations.json")
    put_files(root, "DUTS-TR/DUTS-TR-Image/1.jpg", "BIG/fcn8s/1_im.jpg")
    checks = examine()
    assert checks["data sets"].found == f"in {root}"
    for name in ("COCO 2017", "LVIS v1", "LVIS v0.5 cocofied", "BIG", "shapes (synthetic)"):
        assert checks[name].status == "ok", checks[name]
    assert checks["Cityscapes"][1:3] == ("partial", "absent: cityscapes/gtFine/train, cityscapes/gtFine/val")
    assert checks["LVIS v1 cocofied"].status == "missing"
    assert checks["AIRM training"][1:3] == ("partial", "absent: MSRA10K, DUTS-TE, ECSSD, FSS-1000")


def test_an_absent_root_says_how_to_name_one_and_empty_files_are_no_data_set(root, monkeypatch):
    (root / "lvis").mkdir()
    (root / "lvis/lvis_v0.5_val_cocofied.json").touch()
    (root / "shapes").mkdir()
    checks = examine()
    assert checks["LVIS v0.5 cocofied"].status == "missing"
    assert checks["shapes (synthetic)"].status == "missing"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "nowhere"))
    check = examine()["data sets"]
    assert check.status == "missing"
    assert str(root / "nowhere") in check.found
    assert "DETECTRON2_DATASETS" in check.remedy


def test_plain_lines_where_rich_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert doctor.main() == 0
    output = capsys.readouterr().out
    assert output.startswith(f"Python {sys.version.split()[0]} at {sys.executable}\n")
    assert "\npycocotools: ok\n" in output


def test_the_command_reports_a_missing_detectron2(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.delitem(sys.modules, "pixelmask.doctor")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("pixelmask.doctor", run_name="__main__")
    output = capsys.readouterr().out
    assert end.value.code == 1
    assert "no module detectron2" in output
    assert "tools/install_detectron2.py" in output


def test_the_file_reports_where_the_package_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    result = subprocess.run([sys.executable, doctor.__file__], env=environment, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "libcudart.so: cannot open shared object file" in result.stdout
