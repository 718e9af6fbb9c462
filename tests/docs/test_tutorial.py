"""docs/custom_data.md: its second config, and its tables of mistakes; `make docs-check` executes its commands."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from airm.data.prepare import prepare_refinement_datasets
from airm.data.synthetic_dataset import make_synthetic
from patchdct.data.prepare import prepare_datasets
from patchdct.data.shapes_dataset import make_shapes
from patchdct.predictor import Predictor
from pixelmask.checkpoint.checkpointer import SafeCheckpointer
from pixelmask.config import load_cfg, says
from pixelmask.data.mapper import CheckedDatasetMapper
from pixelmask.errors import UserError
from pixelmask.files import write_json
from tests.docs.blocks import ROOT, blocks_of

PAGE = "docs/custom_data.md"
SHAPES_CONFIG = "configs/patchdct/shapes/patchdct_shapes.yaml"


@contextlib.contextmanager
def checkout(folder: Path) -> Iterator[None]:
    """Work in a folder that has the repository's configs, and none of its data."""
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "datasets").mkdir()
    known = set(DatasetCatalog)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DETECTRON2_DATASETS", raising=False)
        yield
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    with checkout(tmp_path):
        yield tmp_path


def test_the_config_for_a_trained_model_loads(repository):
    (content,) = (block.code for block in blocks_of(PAGE) if block.language == "yaml")
    Path("datasets/my_set").mkdir()
    Path("datasets/my_set/my_set.yaml").write_text(content)
    cfg = load_cfg("datasets/my_set/my_set.yaml")
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == "MaskRCNNPatchDCTHead"
    # The text has the data tell the number of classes, although a _BASE_ says 80
    assert not says("datasets/my_set/my_set.yaml", (), "MODEL.ROI_HEADS.NUM_CLASSES")
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80
    # The figures that the text gives for one GPU
    assert (cfg.SOLVER.BASE_LR / 8, cfg.SOLVER.MAX_ITER * 8, cfg.SOLVER.IMS_PER_BATCH // 8) == (0.00125, 24000, 2)


# ---- The tables of mistakes: each message is provoked


@pytest.fixture(scope="module")
def mistakes() -> dict[str, str]:
    """The tables' rows: message by mistake."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    return dict(re.findall(r"^\| ([^|`]+) \| `(.*)` \|$", text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The tutorial's data sets."""
    folder = tmp_path_factory.mktemp("mistakes")
    with checkout(folder):
        for name in ("shapes_train_24_128px", "shapes_val_8_128px"):
            make_shapes(name)
        Path("datasets/my_set").mkdir()
        for split, source in (("train", "train_24_128px"), ("val", "val_8_128px")):
            shutil.copytree(f"datasets/shapes/{source}/images", f"datasets/my_set/{split}")
            content = json.loads(Path("datasets/shapes", source, "annotations.json").read_text())
            kept = content["categories"][:3]
            annotations = [a for a in content["annotations"] if a["category_id"] <= 3]
            write_json(f"datasets/my_set/{split}.json", {**content, "categories": kept, "annotations": annotations})
        make_synthetic("synthetic_refinement_train_12_160x120", Path("datasets/my_pairs"))
    return folder / "datasets"


def with_annotations(change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the annotations of train.json."""
    content = json.loads(Path("datasets/my_set/train.json").read_text())
    write_json("datasets/my_set/train.json", {**content, "annotations": change(content["annotations"])})


TRAIN = ["my_train", "datasets/my_set/train.json", "datasets/my_set/train"]
VAL = ["my_val", "datasets/my_set/val.json", "datasets/my_set/val"]


def check(
    *opts: str, sets: tuple[list[str], ...] = (TRAIN, VAL), classes: int = 3, train: str = "('my_train',)"
) -> None:
    opts = ("MODEL.ROI_HEADS.NUM_CLASSES", str(classes), "DATASETS.TEST", "('my_val',)", "DATASETS.TRAIN", train, *opts)
    prepare_datasets(load_cfg(SHAPES_CONFIG, opts, sets))


def other_classes() -> None:
    shutil.copy("datasets/my_set/val.json", "datasets/my_set/other.json")
    content = json.loads(Path("datasets/my_set/other.json").read_text())
    content["categories"][0]["name"] = "wheel"
    write_json("datasets/my_set/other.json", content)
    check(sets=(TRAIN, VAL, ["my_other", "datasets/my_set/other.json", VAL[2]]), train="('my_train','my_other')")


def results_instead() -> None:
    write_json("datasets/my_set/train.json", [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
    check()


def wrong_size() -> None:
    record = {"file_name": "datasets/my_set/train/000001.jpg", "image_id": 1, "height": 100, "width": 128}
    CheckedDatasetMapper(load_cfg(SHAPES_CONFIG), is_train=False)(record)


def eight_classes() -> None:
    Path("output").mkdir()
    SafeCheckpointer(build_model(load_cfg(SHAPES_CONFIG)), "output").save("model_final")
    opts = ["MODEL.WEIGHTS", "output/model_final.pth", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    Predictor(load_cfg(SHAPES_CONFIG, opts))


def pairs(name: str, *entry: str) -> None:
    opts = ["DATASETS.REFINEMENT", str([[name, *entry]] if entry else []), "DATASETS.TRAIN", f"('{name}',)"]
    prepare_refinement_datasets(load_cfg("configs/airm/small/airm_synthetic.yaml", opts), train=True)


def pair_without_mask() -> None:
    Path("datasets/my_pairs/000001.png").unlink()
    pairs("pairs_train", "datasets/my_pairs")


def list_of_files() -> None:
    Path("datasets/my_pairs/val.txt").write_text("000001.jpg\n")
    pairs("pairs_val", "datasets/my_pairs", "datasets/my_pairs", "datasets/my_pairs/val.txt")


def set_of_instances() -> None:
    with contextlib.suppress(UserError):
        check(classes=80)
    pairs("my_train")


PROVOKE: dict[str, Callable[[], Any]] = {
    "another number of classes than the JSON has": lambda: check(classes=80),
    "RLE masks, but the config expects polygons": lambda: check("INPUT.MASK_FORMAT", "polygon"),
    "boxes without masks": lambda: (
        with_annotations(lambda annotations: [{**a, "segmentation": []} for a in annotations]),
        check(),
    ),
    "a typing error in a name": lambda: check(train="('my_trian',)"),
    "a JSON that is not there": lambda: check(sets=([*TRAIN[:1], "datasets/my_set/trian.json", TRAIN[2]], VAL)),
    "the folder of other images": lambda: check(sets=([*TRAIN[:2], "datasets/my_pairs/.."], VAL)),
    "results instead of annotations": results_instead,
    "sets that were merged without new ids": lambda: (with_annotations(lambda a: a + a), check()),
    "a polygon of two points": lambda: (
        with_annotations(lambda annotations: [{**annotations[0], "segmentation": [[1, 1, 9, 9]]}]),
        check(),
    ),
    "an image that was turned or scaled after annotation": wrong_size,
    "training sets with different classes": other_classes,
    "a key that does not exist": lambda: load_cfg(SHAPES_CONFIG, ["SOLVER.MAX_ITERS", "20"]),
    "prediction with weights of a backbone, or none": lambda: Predictor(load_cfg(SHAPES_CONFIG)),
    "prediction with a checkpoint of other classes": eight_classes,
    "an image without a mask": pair_without_mask,
    "a list with other names": list_of_files,
    "a set for instance segmentation": set_of_instances,
    "a folder that is not there": lambda: pairs("pairs_train", "datasets/my_pears"),
}


def test_every_mistake_of_the_tables_is_provoked(mistakes):
    assert list(mistakes) == list(PROVOKE)


@pytest.mark.parametrize("mistake", PROVOKE)
def test_messages_are_those_of_the_tables(mistakes, prepared, repository, mistake):
    for name in ("my_set", "my_pairs"):
        shutil.copytree(prepared / name, repository / "datasets" / name)
    with pytest.raises(UserError) as error:
        PROVOKE[mistake]()
    pattern = ".*".join(map(re.escape, mistakes[mistake].split("…")))
    assert re.fullmatch(pattern, str(error.value)), str(error.value)
