"""The demo: images and videos of every kind in, pictures and COCO results out, nothing lost when a file is bad."""

import json
import re
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from patchdct.predictor import Predictor
from pixelmask.cli import run
from pixelmask.config import load_cfg
from pixelmask.errors import UserError
from pixelmask.images import read_picture
from pixelmask.video import VideoReader, VideoWriter
from tests.support.models import disc, load_tool, tiny_cfg

CLASSES = ["disc", "square", "star"]


@pytest.fixture(scope="module")
def tool():
    return load_tool("demo")


@pytest.fixture(autouse=True)
def no_data_sets(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))


def picture(width: int = 72, height: int = 56) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[disc(height, width, (30, 25), 15).numpy()] = (30, 200, 90)
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        picture(72 + 8 * i).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture
def demo(tool, config_file, detector_weights, tmp_path):
    """A function that runs the tool as its command line does, and returns the folder, detections and images."""
    output = tmp_path / "out"

    def call(*args: str | Path, head="patchdct", weights: Path | None = detector_weights, edit=lambda cfg: None):
        options = ["--weights", str(weights)] if weights else []
        command = ["--config-file", config_file(head, edit), *options, "--output", str(output)]
        command += ["--score-threshold", "0"]
        run(tool.main, tool.argument_parser().parse_args([*command, *map(str, args)]))
        return output, *(json.loads((output / f"{name}.json").read_text()) for name in ("detections", "images"))

    return call


def test_images_of_a_folder_become_pictures_and_coco_results(demo, photos, capsys):
    (photos / "notes.txt").write_text("no picture")
    output, detections, images = demo("--input", photos)
    assert [Path(image["file_name"]).name for image in images["images"]] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [image["width"] for image in images["images"]] == [72, 80, 88]
    assert {d["image_id"] for d in detections} == {1, 2, 3} and len(detections) == 15
    for d in detections:
        image = images["images"][d["image_id"] - 1]
        assert d["segmentation"]["size"] == [image["height"], image["width"]]
        assert mask_util.decode(d["segmentation"]).shape == (image["height"], image["width"])
    for i in range(3):
        drawn = Image.open(output / f"{i}_masks.jpg")
        assert drawn.size == (72 + 8 * i, 56)
        assert np.abs(np.asarray(drawn, int) - np.asarray(Image.open(photos / f"{i}.jpg"), int)).max() > 30
    assert "15 objects in 3 images" in capsys.readouterr().out
    (photos / "truth.json").write_text(json.dumps({**images, "annotations": []}))
    assert len(COCO(str(photos / "truth.json")).loadRes(str(output / "detections.json")).anns) == 15


def test_score_threshold_leaves_out_the_rest(demo, photos):
    _, all_of_them, _ = demo("--input", photos / "0.jpg")
    threshold = sorted(d["score"] for d in all_of_them)[2] + 1e-6
    _, some, _ = demo("--input", photos / "0.jpg", "--overwrite", "--score-threshold", threshold)
    assert len(some) < len(all_of_them) and all(d["score"] > threshold for d in some)
    output, none, images = demo("--input", photos / "0.jpg", "--overwrite", "--score-threshold", "0.99")
    assert none == [] and len(images["images"]) == 1 and (output / "0_masks.jpg").is_file()


def test_exotic_images_are_read_and_bad_ones_named_at_the_end(demo, tmp_path, fails):
    folder = tmp_path / "exotic"
    folder.mkdir()
    image = picture()
    for mode in ("1", "L", "LA", "P", "RGBA"):
        image.convert(mode).save(folder / f"{mode}.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.save(folder / "lzw.tiff", compression="tiff_lzw")
    Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257).save(folder / "sixteen.png")
    whole = folder / "whole.jpg"
    picture(300, 300).save(whole)
    (folder / "truncated.jpg").write_bytes(whole.read_bytes()[:2000])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").touch()
    bad = [f"cannot read image {folder / name}" for name in ("truncated.jpg", "text.png", "empty.png")]
    with fails("3 of 12 files could not be used", *bad):
        demo("--input", folder)
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    names = [Path(image["file_name"]).name for image in images]
    expected = ["1.png", "L.png", "LA.png", "P.png", "RGBA.png", "cmyk.jpg", "lzw.tiff", "sixteen.png", "whole.jpg"]
    assert sorted(names) == expected
    for name in names:
        suffix = ".jpg" if name.endswith(".jpg") else ".png"
        assert (tmp_path / "out" / f"{Path(name).stem}_masks{suffix}").is_file()


def test_pictures_have_the_right_values(tmp_path):
    grey = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "sixteen.png")
    assert read_picture(tmp_path / "sixteen.png")[..., 1].tolist() == [[0, 0, 1], [128, 255, 255]]
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "red.tiff")
    assert read_picture(tmp_path / "red.tiff")[0, 0].tolist() == [255, 0, 0]
    turned = picture()
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png").shape == (72, 56, 3)
    with pytest.raises(UserError, match=r"cannot read image .*missing\.png"):
        read_picture(tmp_path / "missing.png")


def test_video_keeps_its_frames(demo, tmp_path):
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (72, 56))
    for i in range(4):
        writer.write(np.asarray(picture())[:, :, ::-1] // (i + 1))
    writer.release()
    output, detections, images = demo("--input", clip)
    assert [image["frame_index"] for image in images["images"]] == [0, 1, 2, 3]
    assert {image["file_name"] for image in images["images"]} == {str(clip)}
    assert {d["image_id"] for d in detections} == {1, 2, 3, 4}
    drawn = VideoReader(output / "clip_masks.mp4")
    frames = list(drawn)
    assert len(frames) == 4 and drawn.rate == 10.0 and frames[0].shape == (56, 72, 3)
    brightness = [np.median(frame[:, -6:, 0]) for frame in frames]
    assert brightness[0] > 200 and brightness == sorted(brightness, reverse=True) and brightness[3] < 90


def test_video_is_rgb(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    with VideoWriter(tmp_path / "red.mp4", 5.0) as writer:
        writer.write(red)
    (frame,) = VideoReader(tmp_path / "red.mp4")
    assert np.abs(frame.astype(int) - red).max() < 30
    (tmp_path / "no").touch()
    with pytest.raises(UserError, match=r"cannot write .*no is no folder"), VideoWriter(tmp_path / "no/red.mp4", 5.0):
        pass
    with pytest.raises(UserError, match="cannot write video"), VideoWriter(tmp_path / "odd.mp4", 5.0) as writer:
        writer.write(red[:1, :1])  # which no encoder takes
    assert not list(tmp_path.glob("odd*"))


def test_stages_stand_side_by_side(demo, photos):
    output, detections, _ = demo("--input", photos / "0.jpg", "--stages", "--panel-size", "200")
    width, height = Image.open(output / "0_masks.jpg").size
    assert width >= 3 * 200 and height < 250
    assert len(detections) == 5


def test_what_cannot_be_done_is_named(demo, photos, tmp_path, fails):
    def change(*opts):
        return lambda cfg: cfg.merge_from_list(opts)

    (tmp_path / "broken.mp4").write_bytes(b"no video" * 50)
    with fails(f"cannot read video {tmp_path / 'broken.mp4'}"):
        demo("--input", tmp_path / "broken.mp4", "--overwrite")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with fails("only PatchDCT has stages to show"):
        demo("--input", photos, "--stages", head="mask_rcnn")
    with fails("MODEL.WEIGHTS is empty", "--weights"):
        demo("--input", photos, weights=None)
    with fails("a backbone to train from", "--weights"):
        demo("--input", photos, weights=None, edit=change("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/R-50.pkl"))
    with fails("absent.pth"):
        demo("--input", photos, weights=tmp_path / "absent.pth")
    with fails("would stay random", "3 classes in the checkpoint, 5 in the model"):
        demo("--input", photos, edit=change("MODEL.ROI_HEADS.NUM_CLASSES", 5))
    assert not (tmp_path / "out").exists()


def test_inputs_are_files_folders_and_patterns(tool, demo, photos, tmp_path, capsys):
    found = tool.find_images([str(photos / "1.jpg"), str(photos), str(photos / "*.jpg")], tool.SUFFIXES, deep=False)
    assert [path.name for path in found] == ["1.jpg", "0.jpg", "2.jpg"]
    (tmp_path / "void").mkdir()
    for text in ("void", "absent.jpg", "*.gif"):
        with pytest.raises(SystemExit):
            demo("--input", tmp_path / text)
        assert re.search(rf"{re.escape(text)}: (no such|a folder without) media file", capsys.readouterr().err)


def test_nothing_is_overwritten_unasked(demo, photos, fails):
    output, _, _ = demo("--input", photos / "0.jpg")
    (output / "0_masks.jpg").write_text("mine")
    with fails("--overwrite"):
        demo("--input", photos / "0.jpg")
    assert (output / "0_masks.jpg").read_text() == "mine"
    demo("--input", photos / "0.jpg", "--overwrite")
    assert Image.open(output / "0_masks.jpg").size == (72, 56)


def test_equal_names_and_inputs_in_the_output_folder_are_kept_apart(tool, tmp_path):
    sources = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.tif", tmp_path / "out" / "y_masks.png", tmp_path / "y.png"]
    items = tool.plan_outputs(sources, tmp_path / "out")
    assert [item.inputs for item in items.values()] == [[source] for source in sources]
    assert list(items) == ["x_masks.png", "x_masks_2.png", "y_masks_masks.png", "y_masks_2.png"]


def test_interruption_leaves_what_was_done(demo, tool, photos, tmp_path, monkeypatch):
    def read(path):
        if path.name == "1.jpg":
            raise KeyboardInterrupt
        return read_picture(path)

    monkeypatch.setattr(tool, "read_picture", read)
    with pytest.raises(SystemExit) as stopped:
        demo("--input", photos)
    assert stopped.value.code == 130
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in images] == ["0.jpg"]
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 5


def test_categories_have_names_or_numbers(tool, caplog):
    categories = tool.find_categories(load_cfg("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml"))
    assert categories[0] == {"id": 1, "name": "person"} and categories[-1] == {"id": 90, "name": "toothbrush"}
    assert len(categories) == 80 and "numbers for names" not in caplog.text
    cfg = tiny_cfg()
    cfg.DATASETS.TEST = ("unheard_of",)
    assert tool.find_categories(cfg) == [{"id": i, "name": str(i)} for i in range(3)]
    assert "3 classes of the model get numbers for names: data set unheard_of" in caplog.text


def test_categories_of_an_own_data_set_have_its_ids(demo, photos):
    truth = {
        "images": [{"id": 1, "file_name": "0.jpg", "height": 56, "width": 72}],
        "categories": [{"id": 30 - 10 * i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [],
    }
    (photos.parent / "truth.json").write_text(json.dumps(truth))

    def use(cfg):
        cfg.DATASETS.COCO_FORMAT = [["demo_test_set", str(photos.parent / "truth.json"), str(photos)]]
        cfg.DATASETS.TEST = ("demo_test_set",)

    _, detections, images = demo("--input", photos / "0.jpg", edit=use)
    named = {category["id"]: category["name"] for category in images["categories"]}
    assert list(named.items()) == [(10, "star"), (20, "square"), (30, "disc")]
    assert {d["category_id"] for d in detections} <= {10, 20, 30}


def test_predictor_agrees_with_that_of_detectron2(detector_weights):
    cfg = tiny_cfg()
    cfg.MODEL.WEIGHTS = str(detector_weights)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    image = np.asarray(picture())
    ours = Predictor(cfg)(image)
    theirs = DefaultPredictor(cfg)(image[:, :, ::-1])["instances"]
    assert len(ours) == 5
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(ours.get(field), theirs.get(field))
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_that_is_stopped_is_resumed(demo, tool, photos, tmp_path, monkeypatch, fails, capsys):
    whole = files_of(demo("--input", photos)[0])
    (tmp_path / "out").rename(tmp_path / "whole")
    read: list[str] = []

    def stop(path):
        read.append(path.name)
        return signal.raise_signal(signal.SIGTERM) if len(read) == 2 else read_picture(path)

    monkeypatch.setattr(tool, "read_picture", stop)
    with pytest.raises(SystemExit) as stopped:
        demo("--input", photos)
    assert stopped.value.code == 143 and "1 of 3 files are done and kept; --resume" in capsys.readouterr().err
    kept = files_of(tmp_path / "out")
    assert kept.keys() == {"0_masks.jpg", "detections.json", "images.json", "progress.jsonl"}
    assert kept["0_masks.jpg"] == whole["0_masks.jpg"] and len(json.loads(kept["detections.json"])) == 5
    with fails("has an unfinished run; --resume goes on"):
        demo("--input", photos)
    with fails("begun with other options (config)"):
        demo("--input", photos, "--resume", "TEST.DETECTIONS_PER_IMAGE", "4")
    picture(72, 60).save(photos / "new.jpg")
    (photos / "new.jpg").rename(photos / "0.jpg")
    with fails(f"{photos / '0.jpg'} has changed since"):
        demo("--input", photos, "--resume")
    picture(72).save(photos / "0.jpg")
    demo("--input", photos, "--resume")
    assert read == ["0.jpg", "1.jpg", "1.jpg", "2.jpg"] and files_of(tmp_path / "out") == whole


def test_an_image_that_resizing_leaves_nothing_of_is_named_and_the_others_done(demo, photos, tmp_path, fails):
    narrow = "an image of 5000 x 1 pixels would become 1333 x 0"
    Image.new("RGB", (5000, 1)).save(photos / "1.jpg")
    with fails("1 of 3 files could not be used", f"{photos / '1.jpg'}: {narrow}"):
        demo("--input", photos)
    assert (tmp_path / "out/2_masks.jpg").is_file()
    assert len(json.loads((tmp_path / "out/detections.json").read_text())) == 10


def test_names_and_sizes_that_cannot_be(demo, photos, tmp_path, fails):
    (photos / f"{'x' * 248}.jpg").write_bytes((photos / "0.jpg").read_bytes())
    with fails("1 of 4 files could not be used", "its name is too long"):
        demo("--input", photos)
    with fails(f"{'y' * 300}: File name too long"):
        demo("--input", photos, "--output", tmp_path / ("y" * 300))
    (tmp_path / "loop").symlink_to("loop")
    with fails(str(tmp_path / "loop")):
        demo("--input", photos, "--output", tmp_path / "loop")
    with fails("no device mps here"):
        demo("--input", photos, "--overwrite", "MODEL.DEVICE", "mps")
    for size in (-7, 1_000_000):
        with pytest.raises(SystemExit) as refused:
            demo("--input", photos, "--panel-size", size)
        assert refused.value.code == 2
