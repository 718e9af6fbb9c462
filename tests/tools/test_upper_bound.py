"""The upper bound of mask representations: answers known beforehand on synthetic sets, and the paper's on real ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from patchdct.dct import DCTMaskCodec
from patchdct.evaluation import upper_bound
from patchdct.evaluation.upper_bound import ImageMasks, cut_out, reconstruct
from patchdct.figures.patch_histograms import PatchHistograms
from patchdct.patches import PatchLabel
from pixelmask.cli import run
from pixelmask.evaluation.coco import ResultsEvaluator
from tests.support.models import disc, load_tool

SIZE = 160
IMAGE = {"id": 1, "file_name": "1.jpg", "height": SIZE, "width": SIZE}
CATEGORIES = [{"id": 4, "name": "disc"}, {"id": 9, "name": "square"}]


@pytest.fixture(scope="module")
def tool():
    return load_tool("upper_bound")


def square(x: float, y: float, side: float, **fields) -> dict:
    polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {"bbox": [x, y, side, side], "segmentation": [polygon], "area": side**2, "category_id": 9, **fields}


def round_annotation(center: tuple[float, float], radius: float, **fields) -> dict:
    mask = disc(SIZE, SIZE, center, radius).numpy()
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    x, y, w, h = mask_util.toBbox(rle).tolist()
    rle["counts"] = rle["counts"].decode()
    return {"bbox": [x, y, w, h], "segmentation": rle, "area": int(mask.sum()), "category_id": 4, **fields}


def star(center: tuple[float, float], radius: float, spikes: int, **fields) -> dict:
    angles = np.arange(2 * spikes) * np.pi / spikes
    lengths = np.where(np.arange(2 * spikes) % 2, 0.4 * radius, radius)
    points = np.stack([center[0] + lengths * np.cos(angles), center[1] + lengths * np.sin(angles)], 1)
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    box = [float(v) for v in (x0, y0, x1 - x0, y1 - y0)]
    area = float(np.pi * radius**2 / 3)
    return {"bbox": box, "segmentation": [points.flatten().tolist()], "area": area, "category_id": 4, **fields}


@pytest.fixture
def write(tmp_path):
    """A function that writes a COCO JSON of images, each a list of annotations."""

    def write(*images: list[dict]) -> str:
        path = tmp_path / "truth.json"
        annotations = [{"image_id": i, **a} for i, objects in enumerate(images, start=1) for a in objects]
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "height": SIZE, "width": SIZE} for i in range(1, len(images) + 1)
            ],
            "categories": CATEGORIES,
            "annotations": [{"id": i, "iscrowd": 0, **a} for i, a in enumerate(annotations, start=1)],
        }
        path.write_text(json.dumps(content))
        return str(path)

    return write


def bound(tool, annotations: str, detections: list[dict] | None = None, *options: str) -> dict[tuple, dict]:
    """Run the tool; its rows by patch size and dimension."""
    args = ["--annotations", annotations, *options]
    if detections is not None:
        path = Path(annotations).with_name("detections.json")
        path.write_text(json.dumps(detections))
        args += ["--detections", str(path)]
    rows = run(tool.main, tool.argument_parser().parse_args(args))
    return {(row["patch_size"], row["dim"]): row for row in rows}


def test_representations_order_as_in_the_paper(tool, write, tmp_path, capsys):
    crowd = round_annotation((80, 80), 75, iscrowd=1)
    path = write(
        [star((60, 60), 55, 9), star((110, 120), 38, 7), crowd],
        [star((80, 80), 78, 16), round_annotation((40, 120), 30)],
        [star((90, 70), 60, 12)],
        [],
    )
    rows = bound(tool, path, None, "--json", str(tmp_path / "rows.json"))
    assert list(rows) == [(1, 1), (8, 3), (8, 6), (8, 9), (8, 12), (112, 200), (112, 300)]
    for metric in ("AP", "AP_B"):
        values = {key: row[metric] for key, row in rows.items()}
        assert values[1, 1] >= values[8, 12] - 1 and values[8, 12] >= values[8, 6] >= values[8, 3]
        assert values[112, 300] >= values[112, 200]
    assert rows[1, 1]["AP"] > 95
    assert rows[1, 1]["AP_B"] > rows[8, 3]["AP_B"] > rows[112, 200]["AP_B"]
    assert json.loads((tmp_path / "rows.json").read_text()) == list(rows.values())
    out = capsys.readouterr().out
    for column in ("Resolution", "Patch size", "Dim.", "AP", "AP_B", "112 x 112", "8 x 8"):
        assert column in out


def test_squares_on_the_pixel_grid_survive_everything(tool, write):
    rows = bound(tool, write([square(10, 20, 56), square(90, 90, 28)]))
    # A square fills its box: no patch is mixed
    assert {row["AP"] for row in rows.values()} == {100.0}
    assert {row["AP_B"] for row in rows.values()} == {100.0}


def test_full_length_vectors_binary_grid_and_uniform_patches_change_nothing():
    masks = torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(0)) > 0.5
    masks[1] = False
    for patch_size, vector_dim in ((1, 1), (8, 64), (112, 112**2)):
        assert torch.allclose(reconstruct(masks, DCTMaskCodec(patch_size, vector_dim)), masks.float(), atol=1e-4)
    assert not torch.allclose(reconstruct(masks, DCTMaskCodec(8, 6)), masks.float(), atol=0.2)
    masks = disc(112, 112, (56, 56), 40)[None]
    soft = reconstruct(masks, DCTMaskCodec(8, 3))
    assert (soft[0, :8, :8] == 0).all() and (soft[0, 48:64, 48:64] == 1).all()


def test_polygons_and_rle_are_cut_out_alike():
    annotation = round_annotation((80, 80), 40)
    box = torch.tensor([[30.0, 30.0, 140.0, 140.0]])
    angles = np.linspace(0, 2 * np.pi, 200)
    points = 80.5 + 40.5 * np.stack([np.cos(angles), np.sin(angles)], 1)
    polygon = {"segmentation": [points.flatten()]}
    a, b = cut_out([annotation, polygon], box.repeat(2, 1))
    assert a.any() and (a & b).sum() / (a | b).sum() > 0.97


def detection(image_id: int, box: list[float], score: float, category_id: int = 9) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def test_matched_detection_has_the_mask_of_its_object(tool, write):
    # The box is 4 pixels too wide on each side; the mask inside is still that of the square
    rows = bound(tool, write([square(20, 20, 56)]), [detection(1, [16, 20, 64, 56], 0.4)])
    assert rows[1, 1]["AP"] == 100.0
    rows = bound(tool, write([square(20, 20, 56)], []), [{**detection(1, [20, 20, 56, 56], 0.5), "image_id": "1"}])
    assert rows[1, 1]["AP"] == 100.0


@pytest.mark.parametrize("pairing", [(), ("--one-to-one",)])
@pytest.mark.parametrize(
    ("extra", "ap"),
    [
        # A false positive that ranks first halves the precision at every recall
        (detection(1, [100, 100, 40, 40], 0.9), 50.0),
        (detection(1, [100, 100, 40, 40], 0.1), 100.0),
        # The better score has the object, cut to 50 of its 56 columns: IoU 0.89. Where that is too little, at 0.9 and
        # 0.95, the exact box of the other comes second
        (detection(1, [20, 20, 50, 56], 0.9), 90.0),
        # No object of this class there
        (detection(1, [20, 20, 56, 56], 0.9, category_id=4), 100.0),
    ],
)
def test_false_positives_stay(tool, write, extra, ap, pairing):
    rows = bound(tool, write([square(20, 20, 56)]), [detection(1, [20, 20, 56, 56], 0.5), extra], *pairing)
    assert rows[1, 1]["AP"] == pytest.approx(ap, abs=0.01)


def test_every_detection_has_the_object_that_it_overlaps_most(tool, write):
    """Of whatever class, be it ever so little, and however many have it."""
    path = write([square(20, 20, 40), square(100, 100, 40)], [])
    _, records = tool.load_truth(path)
    boxes = [[20, 20, 40, 40], [25, 20, 40, 40], [130, 100, 40, 40], [70, 70, 10, 10]]
    results = [{**detection(1, box, 1 - 0.1 * i), "category_id": i % 2} for i, box in enumerate(boxes)]
    image = ImageMasks.of_detections(records[0], results)
    assert image.instances.pred_classes.tolist() == [0, 1, 0, 1] and image.others == []
    # The object's share of each box; the last touches none, and gets the first object, of which nothing is in it
    assert image.masks.float().mean((1, 2)).tolist() == pytest.approx([1, 35 / 40, 10 / 40, 0], abs=0.01)
    alone = ImageMasks.of_detections(records[1], results)
    assert len(alone.instances) == 0 and len(alone.others) == 4


def test_match_is_greedy_by_score_within_image_and_class(tool, write):
    path = write([square(20, 20, 40), square(30, 20, 40)], [])
    name, records = tool.load_truth(path)
    results = [
        detection(1, [30, 20, 40, 40], 0.9),
        detection(1, [29, 20, 40, 40], 0.8),  # the nearest object is taken; it gets the other
        detection(1, [30, 20, 40, 40], 0.7),  # both are taken
        detection(1, [90, 90, 40, 40], 0.6),
    ]
    loaded = [{**r, "category_id": 1} for r in reversed(results)]
    image = ImageMasks.of_detections(records[0], loaded, one_to_one=True)
    assert image.instances.scores.tolist() == pytest.approx([0.9, 0.8])
    widths = image.masks.any(1).sum(1).tolist()
    assert widths[0] == 112 and 80 < widths[1] < 90
    assert [other["score"] for other in image.others] == [0.7, 0.6]
    assert [mask_util.toBbox(other["segmentation"]).tolist() for other in image.others] == [
        other["bbox"] for other in image.others
    ]
    empty = ImageMasks.of_detections(records[1], [], one_to_one=True)
    assert empty.masks.shape == (0, 112, 112) and empty.results(DCTMaskCodec(8, 6)) == []
    lonely = ImageMasks.of_detections(records[1], loaded[:1], one_to_one=True)
    assert len(lonely.instances) == 0 and len(lonely.results(DCTMaskCodec(8, 6))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not valid JSON"),
        ("[]", "is not a COCO annotation file"),
        ('{"images": [], "annotations": []}', "is not a COCO annotation file"),
        (json.dumps({"images": [IMAGE], "annotations": [], "categories": CATEGORIES}), "has no masks"),
    ],
)
def test_bad_annotations_end_in_one_message(tool, tmp_path, write, fails, content, message):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    with fails(message, str(path)):
        bound(tool, str(path))
    annotation = square(20, 20, 56)
    del annotation["segmentation"]
    with fails("1 of its 1 objects are without"):
        bound(tool, write([annotation]))


class MaskAP(ResultsEvaluator):
    """Leaves out the half of the time that Boundary AP takes."""

    def __init__(self, dataset_name, **kwargs):
        super().__init__(dataset_name, tasks=("segm",), distributed=False)

    def evaluate(self):
        return {**super().evaluate(), "boundary": {"AP": float("nan")}}


@pytest.mark.slow
def test_distances_between_rows_are_those_of_table_1(tool, monkeypatch, real_data):
    folder = real_data / "coco_eval"
    # 100 images, and detections that COCO's API comes with, which have masks and no boxes
    names = ("instances_val2014_100.json", "instances_val2014_fakesegm100_results.json")
    annotations, detections = (folder / name for name in names)
    if not (annotations.is_file() and detections.is_file()):
        pytest.skip(f"{folder} has not the example results of COCO's API")
    monkeypatch.setattr(upper_bound, "ResultsEvaluator", MaskAP)
    rows = bound(tool, str(annotations), None, "--detections", str(detections))
    losses = {key: rows[1, 1]["AP"] - row["AP"] for key, row in rows.items()}
    paper = {(1, 1): 57.6, (8, 3): 55.8, (8, 6): 57.1, (8, 9): 57.5, (8, 12): 57.5, (112, 200): 55.8, (112, 300): 56.4}
    assert losses == pytest.approx({key: paper[1, 1] - ap for key, ap in paper.items()}, abs=0.3)


@pytest.mark.parametrize("form", ["RLE", "uncompressed RLE", "polygons"])
def test_results_without_boxes_have_those_of_their_masks(tool, write, form):
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[30:70, 20:76] = True
    runs = [20 * SIZE + 30, *[40, SIZE - 40] * 55, 40, SIZE**2 - 75 * SIZE - 70]  # along the columns, zeros first
    segmentation = {
        "RLE": {"size": [SIZE, SIZE], "counts": mask_util.encode(mask)["counts"].decode()},
        "uncompressed RLE": {"size": [SIZE, SIZE], "counts": runs},
        "polygons": [[20, 30, 40, 30, 40, 70, 20, 70], [50, 30, 76, 30, 76, 70, 50, 70]],
    }[form]
    result = {"segmentation": segmentation, "category_id": 9, "score": 0.5}
    path = write([square(20, 30, 40)])
    name, records = tool.load_truth(path)
    Path(path).with_name("results.json").write_text(json.dumps([{**result, "image_id": 1}]))
    loaded = tool.load_results(str(Path(path).with_name("results.json")), name, records)
    assert loaded == {1: [{"bbox": [20, 30, 56, 40], "score": 0.5, "category_id": 1}]}


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        (detection(77, [0, 0, 9, 9], 0.5), "image_id 77"),
        (detection(1, [0, 0, 9, 9], 0.5, 5), "category_id 5; "),
        (detection(1, [0, 0, 9, 9], 0.5, 5), "has the categories 4, 9."),
        (detection(1, [0, 0, 9, 9], None), "has the score None"),
        ({"image_id": 1, "category_id": 9, "bbox": [0, 0, 9, 9]}, "has no score"),
        ({"image_id": 1, "category_id": 9, "score": 0.5}, 'has no "segmentation"'),
        (detection(1, [0, 0, 9], 0.5), "[0, 0, 9], not four numbers"),
        (detection(1, [0, 0, "a", 1], 0.5), "not four numbers"),
        ({"image_id": 1, "category_id": 9, "score": 0.5, "segmentation": 3}, "has a segmentation that is neither"),
        ("text", "result 1 is 'text', not an object"),
    ],
)
def test_bad_detections_end_in_one_message(tool, write, fails, bad, part):
    with fails("detections.json", part, "result 1"):
        bound(tool, write([square(20, 20, 56)]), [detection(1, [20, 20, 56, 56], 0.5), bad])


@pytest.mark.parametrize(("content", "part"), [("{", "Expecting"), ('{"images": []}', "a list of objects, but a dict")])
def test_detections_that_are_no_results_end_in_one_message(tool, write, fails, content, part):
    path = write([square(20, 20, 56)])
    other = Path(path).with_name("other.json")
    other.write_text(content)
    with fails(part):
        bound(tool, path, None, "--detections", str(other))


def nonzero(histograms: PatchHistograms, label: PatchLabel) -> list[dict[float, int]]:
    """The bins of each element that are not empty, by the value in their middle."""
    return [
        {value: count for value, count in zip(centers.tolist(), counts.tolist(), strict=True) if count}
        for centers, counts in zip(histograms.centers, histograms.counts[label], strict=True)
    ]


def test_histograms_of_patches_with_known_vectors():
    masks = torch.zeros(2, 24, 24, dtype=torch.bool)
    masks[0, :, :4] = True  # the left halves of three patches
    masks[1, 8:16] = True  # three whole patches
    histograms = PatchHistograms()
    for mask in masks:
        histograms.add(mask[None])
    assert histograms.num_masks == 2
    assert histograms.patches() == {"background": 12, "mixed": 3, "foreground": 3}
    nothing = {0.0: 12}
    assert nonzero(histograms, PatchLabel.BACKGROUND) == [nothing] * 6
    # By Eq. 1 a foreground patch has the patch's side as first element, and nothing else
    assert nonzero(histograms, PatchLabel.FOREGROUND) == [{8.0: 3}] + [{0.0: 3}] * 5
    # A left half: 32 pixels / 8; then, along the rows, sqrt(8) / 2 times the sum of cos((2x + 1) pi / 16) over 4 pixels
    along = np.sqrt(8) / 2 * np.cos((2 * np.arange(4) + 1) * np.pi / 16).sum()
    assert along == pytest.approx(3.6245, abs=1e-4)  # in the bin around 3.625
    assert nonzero(histograms, PatchLabel.MIXED) == [{4.0: 3}, {3.625: 3}] + [{0.0: 3}] * 4


def test_no_patch_falls_out_of_the_histograms():
    codec = DCTMaskCodec(8, 64)
    basis = codec.decode(torch.eye(64))
    extremes = torch.cat([basis > 0, basis < 0])[..., None, :, :].flatten(0, 1)
    vectors = codec.encode(extremes)
    histograms = PatchHistograms(8, 64)
    assert (vectors >= histograms.centers[:, 0] - 1e-4).all() and (vectors <= histograms.centers[:, -1] + 1e-4).all()
    histograms.add(extremes)
    assert (histograms.counts.sum((0, 2)) == 128).all()


def test_histograms_of_a_data_set(tool, write, tmp_path, capsys):
    path = write([square(10, 20, 56), square(90, 90, 28), round_annotation((80, 80), 60, iscrowd=1)], [])
    picture = tmp_path / "new" / "figure.png"
    bound(tool, path, None, "--histograms", str(picture))
    content = json.loads(picture.with_suffix(".json").read_text())
    # 14 x 14 patches of each square, none of the crowd region
    assert content["masks"] == 2 and content["patches"] == {"background": 0, "mixed": 0, "foreground": 392}
    assert content["bin_centers"][0][-1] == 8.0 and content["counts"]["foreground"][0][-1] == 392
    assert [len(content["counts"]["mixed"]), len(content["counts"]["mixed"][5])] == [6, 65]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "392 foreground" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--histograms", "figure.json"], "is no picture"),
        (["--histograms", "a/figure.png", "--json", "a/figure.json"], "choose another name"),
    ],
)
def test_file_names_that_cannot_be_used_are_told_at_once(tool, fails, options, message):
    with fails(message):
        bound(tool, "never_read.json", None, *options)
