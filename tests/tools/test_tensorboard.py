"""What TensorBoard shows of a training with VIS_PERIOD: loss parts, learning rate, metrics, pictures of predictions."""

import io

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from airm import Refiner
from airm.figures.side_by_side import side_by_side
from pixelmask.images import read_picture
from tests.support.training import AIRM, PATCHDCT, metrics_of, same

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root")]


def events_of(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def pictures_of(events: EventAccumulator, tag: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(e.encoded_image_string))) for e in events.Images(tag)]


def test_detectors(tmp_path, trained_patchdct):
    PATCHDCT.run("OUTPUT_DIR", str(tmp_path), "VIS_PERIOD", "2")
    events = events_of(tmp_path)
    parts = {"total_loss", "loss_mask", "patchdct/loss_dct", "patchdct/loss_patch_cls", "patchdct/loss_patch_dct"}
    assert parts | {"lr", "bbox/AP", "segm/AP", "boundary/AP"} <= set(events.Tags()["scalars"])
    tags = [f"{PATCHDCT.test_set}/prediction_{i}" for i in range(3)]
    assert set(tags) <= set(events.Tags()["images"])
    first = pictures_of(events, tags[0])
    assert len(first) == 1 and first[0].shape[1] > 3.5 * first[0].shape[0], "four panels, at the second of three steps"
    assert same(metrics_of(tmp_path), metrics_of(trained_patchdct))


def test_a_detector_without_masks_has_no_pictures_of_them(tmp_path):
    PATCHDCT.run("OUTPUT_DIR", str(tmp_path), "VIS_PERIOD", "2", "MODEL.MASK_ON", "False")
    tags = events_of(tmp_path).Tags()
    assert "bbox/AP" in tags["scalars"] and not any("prediction" in tag for tag in tags["images"])


def test_refinement(tmp_path, trained_airm):
    AIRM.run("OUTPUT_DIR", str(tmp_path), "VIS_PERIOD", "2")
    events = events_of(tmp_path)
    losses = {f"loss_{name}" for name in ("l1", "l2", "ce", "gradient", "affinity")}
    assert losses | {"lr", "refinement/refined_IoU", "refinement/refined_mBA"} <= set(events.Tags()["scalars"])
    _, last = pictures_of(events, f"{AIRM.test_set}/prediction_2")
    files = DatasetCatalog.get(AIRM.test_set)[2]
    image, coarse = read_picture(files["file_name"]), read_picture(files["coarse_file_name"])[..., 0] >= 128
    refined = Refiner(tmp_path / "model_final.pth", guard=None).refine(image, coarse)
    np.testing.assert_array_equal(last, side_by_side(image, coarse, refined))
    assert same(metrics_of(tmp_path), metrics_of(trained_airm))
