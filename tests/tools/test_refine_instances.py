"""The pipeline from the command line: JSON in, JSON out; PNG folders; a detector; evaluation; nothing lost."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from airm.data.perturbation import perturb_mask
from airm.instances.crops import InstanceRefiner
from airm.refiner import Refiner
from patchdct.predictor import Predictor
from pixelmask.cli import run
from pixelmask.images import read_picture
from pixelmask.rle import decode, encode, to_rle
from tests.support.models import disc, load_tool, tiny_cfg

H, W = 56, 72
NAMES = ["000000000007.jpg", "000000000003.jpg", "000000000012.jpg"]
IDS = [7, 3, 12]
UNGUARDED = ("--no-guard", "--min-side", 0, "--min-area", 0)


@pytest.fixture(scope="module")
def tool():
    return load_tool("refine_instances")


@pytest.fixture(autouse=True)
def no_data_sets(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, name in enumerate(NAMES):
        pixels = np.random.default_rng(k).integers(0, 255, (H, W, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def refine(tool, airm_weights, photos, tmp_path):
    """A function that runs the tool as its command line does, and returns its folder and what it evaluated."""

    def call(*args: object, output: str = "out"):
        command = ["--refiner", airm_weights, "--images", photos, "--output", tmp_path / output, *args]
        return tmp_path / output, run(
            tool.main, tool.argument_parser().parse_args(["--device", "cpu", *map(str, command)])
        )

    return call


@pytest.fixture
def refuses(refine, fails):
    """A function that runs the tool, which is to exit with status 1 and a message that has given parts."""

    def call(parts: str | list[str], *args: object, **kwargs: object) -> None:
        with fails(*([parts] if isinstance(parts, str) else parts)):
            refine(*args, **kwargs)

    return call


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def some_results() -> list[dict]:
    """Of three images in turns, as RLE of both kinds and polygons; of the third a mask only."""
    small, large = encode(disc(H, W, (20, 22), 9).numpy()), encode(disc(H, W, (45, 30), 20).numpy())
    runs = {"size": [4 * H // 4, W], "counts": [10 * H, 20 * H, H * W - 30 * H]}  # columns 10 to 29
    return [
        {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.25, "segmentation": small, "own": "x"},
        {"image_id": 3, "category_id": 1, "score": 0.9, "segmentation": large},
        {"image_id": 7, "category_id": 1, "score": 0.5, "segmentation": runs},
        {"image_id": 3, "category_id": 2, "score": 0.125, "segmentation": [[10, 10, 40, 10, 40, 40, 10, 40]]},
        {"image_id": 12, "category_id": 1, "score": 0.75, "segmentation": encode(np.zeros((H, W), bool))},
    ]


@pytest.fixture
def results(tmp_path):
    return write(tmp_path / "results.json", some_results())


@pytest.fixture
def truth(tmp_path):
    masks = [(7, 2, disc(H, W, (20, 22), 10)), (3, 1, disc(H, W, (45, 30), 21)), (12, 1, disc(H, W, (30, 30), 9))]
    annotations = []
    for number, (image_id, category_id, mask) in enumerate(masks, start=1):
        rle = encode(mask.numpy())
        fields = {"bbox": mask_util.toBbox(rle).tolist(), "area": float(mask.sum()), "iscrowd": 0}
        entry = {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": rle}
        annotations.append({**entry, **fields})
    images = [{"id": i, "file_name": name, "height": H, "width": W} for i, name in zip(IDS, NAMES, strict=True)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    return write(tmp_path / "truth.json", {"images": images, "annotations": annotations, "categories": categories})


def test_json_in_json_out(refine, results, airm_weights, photos, capsys):
    output, evaluation = refine("--results", results, *UNGUARDED)
    refined, before = json.loads((output / "refined.json").read_text()), some_results()
    assert evaluation is None and sorted(path.name for path in output.iterdir()) == ["refined.json"]
    refiner = InstanceRefiner(Refiner(airm_weights, guard=None), min_side=0, min_area=0)
    for old, new in zip(before, refined, strict=True):
        assert list(old) == list(new)
        assert {k: old[k] for k in old if k != "segmentation"} == {k: new[k] for k in new if k != "segmentation"}
        pixels = read_picture(photos / f"{old['image_id']:012d}.jpg")
        coarse = decode(to_rle(old["segmentation"], H, W))
        np.testing.assert_array_equal(decode(new["segmentation"]), refiner.refine(pixels, coarse[None])[0])
    assert refined[4] == before[4]
    assert "4 of 5 masks in 3 images were refined, " in capsys.readouterr().out


def test_a_guard_that_lets_nothing_change_gives_identical_masks(refine, results):
    """With the highest confidence asked for, the coarse mask is kept everywhere, also in enlarged crops."""
    output, _ = refine("--results", results, "--min-confidence", 1, "--min-area", 0, "--min-side", 100)
    refined = json.loads((output / "refined.json").read_text())
    assert refined == [{**old, "segmentation": to_rle(old["segmentation"], H, W)} for old in some_results()]
    again, _ = refine("--results", output / "refined.json", "--min-confidence", 1, output="again")
    assert (again / "refined.json").read_text() == (output / "refined.json").read_text()


def test_evaluation_before_and_after(refine, results, truth, capsys):
    output, evaluation = refine("--results", results, "--annotations", truth, "--min-confidence", 1, "--overlays")
    assert json.dumps(evaluation["before"]) == json.dumps(evaluation["after"])
    assert json.loads((output / "evaluation.json").read_text())["pairs"] == evaluation["pairs"] == 2
    pairs = zip(some_results()[:2], json.loads(truth.read_text())["annotations"][:2], strict=True)
    ious = [mask_util.iou([a["segmentation"]], [b["segmentation"]], [0])[0, 0] for a, b in pairs]
    assert evaluation["before"]["IoU"] == pytest.approx(100 * np.mean(ious))
    # Category 1: one of two objects is found, at a score above all others; category 2: one of one
    found = [(iou >= np.arange(0.5, 1, 0.05)).mean() for iou in ious]
    assert evaluation["before"]["segm"]["AP-b"] == pytest.approx(100 * found[0])
    assert evaluation["before"]["segm"]["AP-a"] == pytest.approx(100 * found[1] * 51 / 101)
    assert "Boundary AP" in capsys.readouterr().out
    drawn = Image.open(output / "overlays" / "000000000003.jpg")
    assert drawn.size == (2 * W, H) and not (output / "overlays" / "000000000003_change.jpg").exists()


def test_overlays_show_what_changed(refine, results):
    output, _ = refine("--results", results, "--overlays", "--batch-size", 1, "--margin", 0.5, *UNGUARDED)
    names = sorted(path.name for path in (output / "overlays").iterdir())
    assert {f"{name[:-4]}.jpg" for name in NAMES} <= set(names) and "000000000003_change.jpg" in names


def test_refused_masks_are_counted(refine, results, truth, capsys):
    """What the guard takes of an untrained network; small masks are left alone."""
    output, _ = refine(
        "--results", results, "--annotations", truth, "--resolution", 28, "--min-side", 0, "--min-area", 256
    )
    counts = json.loads((output / "evaluation.json").read_text())["masks"]
    assert counts["refined"] == 3 and counts["refused"] > 0 == counts["emptied"]  # one has 253 pixels
    said = f"{counts['changed']} changed; 0 would have become empty and {counts['refused']} were refused by the guard"
    assert said in capsys.readouterr().out
    changed = [a != b for a, b in zip(some_results(), json.loads((output / "refined.json").read_text()), strict=True)]
    assert changed[:2] == [False, False] and not changed[4]


def test_annotations_without_ground_truth(refine, results, truth, capsys):
    content = json.loads(truth.read_text())
    del content["annotations"]
    _, evaluation = refine("--results", results, "--annotations", write(truth, content))
    assert evaluation is None and "has no annotations: nothing is evaluated" in capsys.readouterr().out


def test_png_folders(refine, photos, tmp_path, truth, capsys):
    for name, centre in (("000000000007_1.png", 20), ("000000000007_2.png", 40), ("3/part.png", 30)):
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(disc(H, W, (centre, 22), 9).numpy()).save(tmp_path / "masks" / name)
    output, evaluation = refine("--results", tmp_path / "masks", "--annotations", truth)
    coarse, refined = (json.loads((output / f"{name}.json").read_text()) for name in ("coarse", "refined"))
    assert [r["mask_file"] for r in refined] == ["000000000007_1.png", "000000000007_2.png", "3/part.png"]
    assert [r["image_id"] for r in refined] == [7, 7, 3]
    np.testing.assert_array_equal(decode(coarse[1]["segmentation"]), disc(H, W, (40, 22), 9).numpy())
    assert evaluation is None and "masks of a folder have no classes" in capsys.readouterr().out
    # Without annotations ids are those of the names, or made; they are written down, and the result is input in turn
    output, _ = refine("--results", tmp_path / "masks", output="numbers")
    assert [r["image_id"] for r in json.loads((output / "refined.json").read_text())] == [3, 7, 7]
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(photos / "a.jpg")
    output, _ = refine("--results", tmp_path / "masks", output="numbered")
    images = json.loads((output / "images.json").read_text())
    named = {image["id"]: Path(image["file_name"]).name for image in images["images"]}
    assert named == dict(enumerate(sorted([*NAMES, "a.jpg"]), start=1)) and images["images"][0]["width"] == W
    refined = json.loads((output / "refined.json").read_text())
    assert [named[r["image_id"]] for r in refined] == [NAMES[0]] * 2  # "3" is now no image's id
    again = ("--results", output / "refined.json", "--annotations", output / "images.json")
    assert len(json.loads((refine(*again, output="again")[0] / "refined.json").read_text())) == 2


def test_one_category_is_that_of_png_masks(refine, tmp_path, truth):
    content = json.loads(truth.read_text())
    content["categories"] = [{"id": 5, "name": "thing"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 5
    (tmp_path / "masks").mkdir()
    for annotation in content["annotations"]:
        name = f"{annotation['image_id']:012d}.png"
        Image.fromarray(decode(annotation["segmentation"])).save(tmp_path / "masks" / name)
    options = ["--annotations", write(truth, content), "--min-confidence", 1]
    _, evaluation = refine("--results", tmp_path / "masks", *options)
    assert evaluation["after"]["segm"]["AP"] == pytest.approx(100) and evaluation["pairs"] == 3


def test_detector(refine, config_file, detector_weights, photos, tmp_path):
    options = ["--config-file", config_file("patchdct"), "--weights", detector_weights, "--overlays"]
    output, _ = refine(*options, *UNGUARDED, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    coarse, refined = (json.loads((output / f"{name}.json").read_text()) for name in ("coarse", "refined"))
    images = json.loads((output / "images.json").read_text())
    assert [c["id"] for c in images["categories"]] == [0, 1, 2] and len(images["images"]) == 3
    assert len(coarse) == len(refined) == 15 and coarse != refined
    for old, new in zip(coarse, refined, strict=True):
        assert {k: old[k] for k in old if k != "segmentation"} == {k: new[k] for k in new if k != "segmentation"}
    cfg = tiny_cfg()
    cfg.MODEL.WEIGHTS = str(detector_weights)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    found = Predictor(cfg)(read_picture(photos / sorted(NAMES)[0]))
    assert [r["score"] for r in coarse[:5]] == pytest.approx(found.scores.tolist())
    assert [r["segmentation"] for r in coarse[:5]] == [encode(mask.numpy()) for mask in found.pred_masks]
    assert (output / "overlays" / "000000000003.jpg").is_file()


def test_detector_with_ground_truth(refine, refuses, config_file, detector_weights, truth):
    options = ["--config-file", config_file("patchdct"), "--weights", detector_weights, "--annotations", truth]
    refuses("has 2 categories, but the model", *options, "MODEL.DEVICE", "cpu")
    content = json.loads(truth.read_text())
    content["categories"].append({"id": 9, "name": "c"})
    content["images"] = content["images"][:2] + [{**content["images"][2], "file_name": "not_given.jpg"}]
    write(truth, content)
    output, evaluation = refine(*options, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", output="second")
    coarse = json.loads((output / "coarse.json").read_text())
    assert {r["image_id"] for r in coarse} == {7, 3} and {r["category_id"] for r in coarse} <= {1, 2, 9}
    assert evaluation["before"]["segm"]["AP"] >= 0 and not (output / "images.json").exists()


def test_config_of_the_detector_is_found(tool, tmp_path):
    assert tool.find_detector_config(None) == tool.find_detector_config(str(tmp_path / "m.pth")) == tool.DEFAULT_CONFIG
    (tmp_path / "config.yaml").touch()
    assert tool.find_detector_config(str(tmp_path / "m.pth")) == str(tmp_path / "config.yaml")


def test_images_and_masks_that_cannot_be_used_are_named_and_the_others_done(refuses, photos, tmp_path):
    before = some_results()
    before[0]["segmentation"] = {"size": [W, H], "counts": "0"}
    before.append({**before[1], "image_id": 99})
    (photos / "000000000003.jpg").write_bytes(b"no image")
    parts = ["3 images or masks could not be used, and stay as they were:", "image 99: no such file among --images"]
    parts += ["cannot read image", "000000000007.jpg: mask 1 of 2 has the size [72, 56]"]
    refuses(parts, "--results", write(tmp_path / "r.json", before))
    refined = json.loads((tmp_path / "out" / "refined.json").read_text())
    assert [k for k, (a, b) in enumerate(zip(before, refined, strict=True)) if a != b] == [2]


def test_results_of_unknown_images(refuses, results, truth, tmp_path):
    content = json.loads(truth.read_text())
    content["images"], content["annotations"] = content["images"][:1], content["annotations"][:1]
    options = ["--results", results, "--annotations", write(truth, content)]
    refuses("result 1 has the image_id 3, which is none of the 1 images", *options)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_is_resumed(tool, refine, refuses, results, tmp_path, monkeypatch):
    options = ("--results", results, *UNGUARDED)
    expected = (refine(*options, output="whole")[0] / "refined.json").read_text()
    read = []

    def interrupted(path):
        if len(read) == 1:
            raise KeyboardInterrupt
        read.append(path.name)
        return read_picture(path)

    monkeypatch.setattr(tool, "read_picture", interrupted)
    with pytest.raises(SystemExit) as stopped:
        refine(*options)
    assert stopped.value.code == 130
    assert read == [NAMES[0]] and not (tmp_path / "out" / "refined.json").exists()
    monkeypatch.setattr(tool, "read_picture", lambda path: read.append(path.name) or read_picture(path))
    refuses("has an unfinished run; --resume goes on", *options)
    refuses("other options (margin)", *options, "--resume", "--margin", 1)
    refuses("other options (guard)", "--results", results, "--resume", *UNGUARDED[1:])
    output, _ = refine(*options, "--resume")
    assert read == NAMES and (output / "refined.json").read_text() == expected
    assert not (output / "progress.jsonl").exists()


@pytest.fixture
def stopped(tool, refine, monkeypatch):
    """A function that runs the tool until SIGTERM comes with the second image."""

    def call(*args: object) -> None:
        read: list[Path] = []

        def stop(path):
            read.append(path)
            return signal.raise_signal(signal.SIGTERM) if len(read) == 2 else read_picture(path)

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
            patch.setattr(tool, "read_picture", stop)
            refine(*args)
        assert left.value.code == 143

    return call


def test_masks_and_images_that_have_changed_are_named(stopped, refine, refuses, photos, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    mask, other = (Image.fromarray(disc(H, W, (30, 22), radius).numpy()) for radius in (9, 12))
    for name in NAMES:
        mask.save(tmp_path / "masks" / f"{name[:-4]}.png")
    options = ("--results", tmp_path / "masks", *UNGUARDED)
    expected = (refine(*options, output="whole")[0] / "refined.json").read_text()
    stopped(*options)
    assert "1 of 3 images are done and kept; --resume" in capsys.readouterr().err
    first = tmp_path / "masks/000000000003.png"
    other.save(first)
    refuses(f"{first} has changed since", *options, "--resume")
    mask.save(first)
    other.save(tmp_path / "masks/000000000003_2.png")
    refuses("masks/000000000003_2.png has been added since", *options, "--resume")
    (tmp_path / "masks/000000000003_2.png").unlink()
    content = (photos / "000000000003.jpg").read_bytes()
    (photos / "000000000003.jpg").write_bytes((photos / NAMES[0]).read_bytes())
    refuses(f"{photos / '000000000003.jpg'} has changed since", *options, "--resume")
    (photos / "000000000003.jpg").write_bytes(content)
    assert (refine(*options, "--resume")[0] / "refined.json").read_text() == expected


def test_files_that_have_changed_are_named(stopped, refuses, results, truth, config_file, detector_weights, photos):
    options = ("--results", results, "--annotations", truth)
    stopped(*options)
    write(truth, {**json.loads(truth.read_text()), "info": {}})
    refuses("other options (annotations (the file))", *options, "--resume")
    write(results, some_results()[:4])
    refuses("other options (results (the file), annotations (the file))", *options, "--resume")
    options = ("--config-file", config_file("patchdct"), "--weights", detector_weights, "--overwrite")
    stopped(*options)
    config_file("patchdct", lambda cfg: cfg.merge_from_list(["MODEL.RPN.NMS_THRESH", 0.4]))
    refuses("other options (config of the detector)", *options[:-1], "--resume")


def test_bad_images_and_masks_of_folders_are_named_and_the_others_done(
    refine, refuses, config_file, detector_weights, photos, tmp_path
):
    (tmp_path / "masks").mkdir()
    for name in NAMES:
        Image.fromarray(disc(H, W, (30, 22), 9).numpy()).save(tmp_path / "masks" / f"{name[:-4]}.png")
    bad = tmp_path / "masks/000000000003.png"
    bad.write_bytes(bad.read_bytes()[:60])
    refuses(["1 images or masks", f"cannot read mask {bad}"], "--results", tmp_path / "masks", *UNGUARDED)
    assert [r["image_id"] for r in json.loads((tmp_path / "out/refined.json").read_text())] == [7, 12]
    Image.fromarray(disc(H, W, (30, 22), 9).numpy()).save(bad)
    output, _ = refine("--results", tmp_path / "masks", *UNGUARDED, "--resume")
    assert [r["image_id"] for r in json.loads((output / "refined.json").read_text())] == [3, 7, 12]
    Image.new("RGB", (5000, 1)).save(photos / NAMES[1])
    options = ("--config-file", config_file("patchdct"), "--weights", detector_weights)
    narrow = f"{photos / NAMES[1]}: an image of 5000 x 1 pixels would become 1333 x 0"
    for resume in ([], ["--resume"]):
        refuses(narrow, *options, *resume, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", output="detected")
    found = json.loads((tmp_path / "detected/coarse.json").read_text())
    assert {result["image_id"] for result in found} == {7, 12}


def test_a_missing_image_can_be_added(refine, refuses, results, photos, tmp_path):
    (photos / NAMES[1]).rename(tmp_path / "elsewhere.jpg")
    options = ("--results", results, *UNGUARDED)
    refuses("image 3: no such file", *options)
    (tmp_path / "elsewhere.jpg").rename(photos / NAMES[1])
    resumed, _ = refine(*options, "--resume")
    whole, _ = refine(*options, output="whole")
    assert (resumed / "refined.json").read_text() == (whole / "refined.json").read_text()


def test_nothing_is_overwritten_unasked(refine, refuses, results):
    output, _ = refine("--results", results)
    (output / "refined.json").write_text("mine")
    refuses(f"{output / 'refined.json'} exists already", "--results", results)
    refuses("exists already", "--results", results, "--resume")
    assert (output / "refined.json").read_text() == "mine"
    refine("--results", results, "--overwrite")
    assert len(json.loads((output / "refined.json").read_text())) == 5
    (output / "evaluation.json").touch()  # of others
    refine("--results", results, "--overwrite")
    assert not (output / "evaluation.json").exists()
    (output / "file").touch()
    refuses("is no folder", "--results", results, output="out/file")


def test_without_a_refiner_the_projects_own(tool, refine, results, airm_weights, photos, tmp_path, monkeypatch):
    expected, _ = refine("--results", results)
    monkeypatch.setattr("airm.refiner.PRETRAINED", airm_weights)
    command = ["--results", str(results), "--images", str(photos), "--output", str(tmp_path / "own"), "--device", "cpu"]
    tool.main(tool.argument_parser().parse_args(command))
    assert (tmp_path / "own/refined.json").read_text() == (expected / "refined.json").read_text()


def test_low_scores_stay(refine, results):
    output, _ = refine("--results", results, "--min-score", 0.6, *UNGUARDED)
    refined = json.loads((output / "refined.json").read_text())
    changed = [k for k, (a, b) in enumerate(zip(some_results(), refined, strict=True)) if a != b]
    assert changed == [1, 2, 3]  # of these, two were no compressed RLE
    assert refined[2]["segmentation"] == to_rle(some_results()[2]["segmentation"], H, W)


@pytest.mark.slow
def test_real_coco(tool, airm_weights, tmp_path, real_data):
    """Truth of three real images, perturbed, as another model's results: AP of real annotations before and after."""
    root = real_data / "coco"
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    crowded = {annotation["image_id"] for annotation in content["annotations"] if len(annotation["segmentation"]) > 5}
    content["images"] = [image for image in content["images"] if image["id"] not in crowded][:3]
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in sizes]
    results = []
    for annotation in content["annotations"]:
        if annotation["iscrowd"]:
            continue
        mask = decode(to_rle(annotation["segmentation"], *sizes[annotation["image_id"]]))
        coarse = encode(perturb_mask(mask, 0.85, np.random.default_rng(0), "contour"))
        keys = {key: annotation[key] for key in ("image_id", "category_id")}
        results.append({**keys, "score": 0.5, "segmentation": coarse, "id": annotation["id"]})
    truth = write(tmp_path / "truth.json", content)
    options = ["--results", write(tmp_path / "results.json", results), "--annotations", truth, "--min-confidence", 1]
    options += ["--refiner", airm_weights, "--images", root / "val2017", "--output", tmp_path / "out"]
    evaluation = run(tool.main, tool.argument_parser().parse_args(["--device", "cpu", *map(str, options)]))
    assert json.loads((tmp_path / "out" / "refined.json").read_text()) == results
    assert evaluation["pairs"] == len(results)
    assert 84 < evaluation["before"]["IoU"] < 92 and evaluation["before"]["segm"]["AP50"] == pytest.approx(100)
    assert json.dumps(evaluation["before"]) == json.dumps(evaluation["after"])
