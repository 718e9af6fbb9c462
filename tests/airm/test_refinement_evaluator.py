"""IoU and boundary accuracy of masks, and their totals of a data set."""

import csv
import json
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict

from airm.evaluation import RefinementEvaluator
from airm.evaluation.metrics import (
    binarize,
    boundary_radii,
    intersection_and_union,
    mean_boundary_accuracies,
    mean_boundary_accuracy,
)
from pixelmask.errors import UserError


def square(size: int, left: int, side: int, top: int = 10) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[:, top : top + side, left : left + side] = 1
    return mask


def pair(name: str, truth: torch.Tensor, coarse: torch.Tensor, refined: torch.Tensor) -> tuple[dict, dict]:
    """A sample and the model's output for it."""
    sample = {
        "image": torch.zeros(3, *truth.shape[1:], dtype=torch.uint8),
        "mask": truth,
        "coarse_mask": coarse,
        "height": truth.shape[1],
        "width": truth.shape[2],
        "file_name": f"images/{name}.jpg",
        "image_id": name,
    }
    return sample, {"refined_mask": refined}


# A square of side 20 in images so small that all radii are 1: near its boundary are 4 * 20 pixels outside and
# 20**2 - 18**2 = 76 inside. Each column of shift adds 20 wrong pixels inside and outside; those of the first are all
# that near, of the second only its first and last pixel inside.
SMALL = square(60, 10, 20)
BY_1 = square(60, 11, 20) * 0.5  # half is inside
BY_2 = square(60, 12, 20)
MBA_BY_1, MBA_BY_2 = 1 - 40 / 156, 1 - (40 + 2) / 156
LARGE = square(100, 10, 40)


def golden_pairs() -> list[tuple[dict, dict]]:
    """IoU of the first: 360/440 -> 380/420; of the second, whose refined mask lacks 10 of 40 rows: 1 -> 1200/1600."""
    cropped = LARGE.clone()
    cropped[:, 40:] = 0
    return [pair("b", SMALL, BY_2, BY_1), pair("a", LARGE, LARGE, cropped)]


def evaluate(pairs: list[tuple[dict, dict]], output_dir: Path | None = None) -> OrderedDict:
    evaluator = RefinementEvaluator("drawn", output_dir=str(output_dir) if output_dir else None)
    evaluator.process(*zip(golden_pairs()[0], strict=True))
    evaluator.reset()  # forgets it
    for sample, output in pairs:
        evaluator.process([sample], [output])
    return evaluator.evaluate()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "per_image.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_golden_totals_and_lines(tmp_path, caplog):
    # The second image's outermost ring is 4 * 40 + 40**2 - 38**2 = 316 pixels. Without its last 10 rows, wrong are
    # 40 at the bottom and 9 on each side.
    mba_cropped = 1 - (40 + 2 * 9) / 316
    with caplog.at_level("INFO", logger="airm"):
        results = evaluate(golden_pairs(), tmp_path / "out")
    metrics = results["refinement"]
    names = ["coarse_IoU", "refined_IoU", "gain_IoU", "coarse_mBA", "refined_mBA", "gain_mBA", "images"]
    assert list(results) == ["refinement"] and list(metrics) == names
    coarse_iou, refined_iou = 100 * (360 + 1600) / (440 + 1600), 100 * (380 + 1200) / (420 + 1600)
    coarse_mba, refined_mba = 100 * (MBA_BY_2 + 1) / 2, 100 * (MBA_BY_1 + mba_cropped) / 2
    expected = [coarse_iou, refined_iou, refined_iou - coarse_iou, coarse_mba, refined_mba, refined_mba - coarse_mba, 2]
    assert list(metrics.values()) == pytest.approx(expected)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["refinement"] == metrics
    assert written["dataset"] == "drawn" and written["images_without_boundary"] == 0
    assert "drawn" in caplog.text and f"{refined_mba:.3f}" in caplog.text

    # A line for each image, in the order of ids
    first, second = rows_of(tmp_path / "out")
    assert first["image_id"] == "a" and first["refined_IoU"] == "75.0000" and first["gain_IoU"] == "-25.0000"
    assert second == {
        "image_id": "b",
        "file": "images/b.jpg",
        "height": "60",
        "width": "60",
        "coarse_IoU": f"{36000 / 440:.4f}",
        "refined_IoU": f"{38000 / 420:.4f}",
        "gain_IoU": f"{38000 / 420 - 36000 / 440:.4f}",
        "coarse_mBA": f"{100 * MBA_BY_2:.4f}",
        "refined_mBA": f"{100 * MBA_BY_1:.4f}",
        "gain_mBA": f"{100 * (MBA_BY_1 - MBA_BY_2):.4f}",
    }


def test_an_image_that_a_sampler_repeats_counts_once(tmp_path):
    once = evaluate(golden_pairs())
    assert evaluate([*golden_pairs(), golden_pairs()[0]], tmp_path) == once
    assert len(rows_of(tmp_path)) == 2


def test_an_image_without_boundary_is_left_out_of_the_mean(tmp_path):
    empty = torch.zeros(1, 60, 60)
    results = evaluate([pair("b", SMALL, BY_2, BY_1), pair("c", empty, empty, empty)], tmp_path)["refinement"]
    assert results["images"] == 2
    assert results["refined_mBA"] == pytest.approx(100 * MBA_BY_1)
    assert results["refined_IoU"] == pytest.approx(38000 / 420)
    row = rows_of(tmp_path)[1]
    assert [row[k] for k in ("coarse_IoU", "refined_IoU", "coarse_mBA", "refined_mBA", "gain_mBA")] == [""] * 5
    assert json.loads((tmp_path / "results.json").read_text())["images_without_boundary"] == 1
    # But pixels in it lower the total
    results = evaluate([pair("b", SMALL, BY_2, BY_1), pair("c", empty, empty, SMALL)])["refinement"]
    assert results["coarse_IoU"] == pytest.approx(36000 / 440)
    assert results["refined_IoU"] == pytest.approx(38000 / (420 + 400))


def test_a_set_without_any_boundary_has_no_mba_and_one_without_images_no_result(tmp_path, caplog):
    full = torch.ones(1, 20, 20)
    results = evaluate([pair("f", full, full, full)], tmp_path)
    assert results == {"refinement": {"coarse_IoU": 100, "refined_IoU": 100, "gain_IoU": 0, "images": 1}}
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text and json.loads(text)["refinement"]["coarse_mBA"] is None
    assert evaluate([], tmp_path) == {} and "no image" in caplog.text


def test_in_detectron2s_loop():
    pairs = golden_pairs()
    outputs = {sample["image_id"]: output for sample, output in pairs}
    results = inference_on_dataset(
        lambda batch: [outputs[sample["image_id"]] for sample in batch],
        [[sample] for sample, _ in pairs],
        RefinementEvaluator("drawn"),
    )
    assert results == evaluate(pairs)
    print_csv_format(results)
    assert all(isinstance(v, (int, float)) for v in flatten_results_dict(results).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_in_half_precision(dtype):
    halved = [pair(s["image_id"], s["mask"], s["coarse_mask"], o["refined_mask"].to(dtype)) for s, o in golden_pairs()]
    assert evaluate(halved) == evaluate(golden_pairs())


def broken(key: str, value: torch.Tensor | None) -> tuple[dict, dict]:
    sample, output = golden_pairs()[0]
    (output if key == "refined_mask" else sample)[key] = value
    if value is None:
        del sample[key]
    return sample, output


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mask", None, "no truth"),
        ("refined_mask", torch.zeros(1, 60, 59), r"refined mask has the shape \(1, 60, 59\), the truth \(1, 60, 60\)"),
        ("coarse_mask", torch.zeros(1, 30, 30), r"coarse mask has the shape \(1, 30, 30\)"),
        ("refined_mask", torch.full((1, 60, 60), torch.nan), "refined mask .* NaN"),
        ("refined_mask", torch.full((1, 60, 60), 7.5), "refined mask .* 7.5"),
    ],
    ids=["no truth", "refined size", "coarse size", "NaN", "logits"],
)
def test_what_cannot_be_evaluated_is_named(key, value, message):
    with pytest.raises(UserError, match=rf"images/b\.jpg.*{message}"):
        evaluate([broken(key, value)])


def many_pairs() -> list[tuple[dict, dict]]:
    return [pair(f"{i:02}", SMALL, BY_2, square(60, 10 + i, 20)) for i in range(5)] + golden_pairs()


def evaluate_share(rank: int, folder: str) -> None:
    """What one of two processes does; both have the image that a sampler would repeat."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    shares = [many_pairs()[:4], many_pairs()[3:]]
    results = evaluate(shares[rank], Path(folder) / "two")
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_processes_give_the_result_of_one(tmp_path):
    # Forked processes import nothing anew, and skip the interpreter's exit, at which gloo now and then aborts
    mp.start_processes(evaluate_share, (str(tmp_path),), nprocs=2, start_method="fork")
    expected = evaluate(many_pairs(), tmp_path / "one")
    assert json.loads((tmp_path / "rank0.json").read_text()) == expected
    assert json.loads((tmp_path / "rank1.json").read_text()) == {}
    for name in ("per_image.csv", "results.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def rectangle(height: int, width: int, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def plain_mba(prediction: np.ndarray, truth: np.ndarray) -> float:
    """The definition word for word, on the whole image."""
    height, width = truth.shape
    largest = (height + width) / 300
    accuracies = []
    for k in range(5):
        radius = 1 + int((largest - 1) / 5 * k)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        gradient = cv2.morphologyEx(truth.astype(np.uint8), cv2.MORPH_GRADIENT, kernel) > 0
        accuracies.append((prediction == truth)[gradient].mean())
    return float(np.mean(accuracies))


@pytest.mark.parametrize(
    ("mask", "inside"),
    [
        (np.array([0, 1], bool), [False, True]),
        (np.array([0, 127, 128, 255], np.uint8), [False, False, True, True]),
        (np.array([0, np.nextafter(np.float32(0.5), 0), 0.5, 1], np.float32), [False, False, True, True]),
        (np.array([0.0, 0.5, 1.004], np.float16), [False, True, True]),
    ],
    ids=["bool", "uint8", "float32", "rounding in half precision"],
)
def test_half_of_the_range_is_inside(mask, inside):
    assert binarize(mask).tolist() == inside
    levels = np.arange(256, dtype=np.uint8)
    assert (binarize(levels) == binarize(levels.astype(np.float32) / 255)).all()


@pytest.mark.parametrize(
    ("bad", "dtype", "error", "message"),
    [
        (np.nan, np.float32, ValueError, "NaN"),
        (255, np.float32, ValueError, "outside"),
        (-3, np.float32, ValueError, "outside"),
        (1, np.int64, TypeError, "int64"),
    ],
)
def test_masks_outside_their_range_and_of_other_types_are_refused(bad, dtype, error, message):
    with pytest.raises(error, match=message):
        binarize(np.array([[0, bad]], dtype))


def test_intersection_and_union_of_shifted_squares():
    for measure in (intersection_and_union, mean_boundary_accuracy):
        with pytest.raises(ValueError, match=r"\(4, 5\) and \(5, 4\)"):
            measure(np.ones((4, 5), bool), np.eye(5, 4, dtype=bool))
    a, b = rectangle(20, 30, 2, 3, 10, 10), rectangle(20, 30, 4, 6, 10, 10)
    assert intersection_and_union(a, b) == (8 * 7, 100 + 100 - 56)
    assert intersection_and_union(a, ~a) == (0, 600)
    assert intersection_and_union(a & ~a, a & ~a) == (0, 0)
    assert intersection_and_union(a.astype(np.uint8) * 200, b.astype(np.float32)) == (56, 144)


@pytest.mark.parametrize(
    ("size", "radii"),
    [
        ((1, 1), [1, 1, 1, 1, 1]),  # max_r = 1/150
        ((300, 300), [1, 1, 1, 1, 1]),  # max_r = 2: steps of 0.2
        ((600, 600), [1, 1, 2, 2, 3]),  # max_r = 4: steps of 0.6
        ((1706, 2560), [1, 3, 6, 8, 11]),  # max_r = 14.22: steps of 2.644
        ((4000, 6000), [1, 7, 13, 20, 26]),  # max_r = 33.33: steps of 6.467
    ],
)
def test_radii(size, radii):
    assert boundary_radii(*size) == radii


def test_square_shifted_by_one_pixel():
    """600 x 600, radii 1, 1, 2, 2, 3; a square of side 100, predicted one column too far right.

    OpenCV's ellipses have these half-widths in their rows, from the middle one outwards:
    radius 1: 1, 0; radius 2: 2, 2, 0; radius 3: 3, 3, 2, 0.
    """
    truth, prediction = rectangle(600, 600, 200, 200, 100, 100), rectangle(600, 600, 200, 201, 100, 100)
    # Inside, all pixels less than r from the sides; outside, strips r wide along the sides, and of a pixel i rows and
    # j columns (i, j >= 1) away from a corner those with j <= the widest half-width of row i or further.
    inside = [100**2 - (100 - 2 * r) ** 2 for r in (1, 2, 3)]
    outside = [4 * 100 * 1 + 4 * 0, 4 * 100 * 2 + 4 * 2, 4 * 100 * 3 + 4 * (3 + 2)]
    assert [i + o for i, o in zip(inside, outside, strict=True)] == [796, 1592, 2384]
    # Wrong are the square's first column, and the column behind its last: 200 pixels, in every region
    expected = (2 * (1 - 200 / 796) + 2 * (1 - 200 / 1592) + (1 - 200 / 2384)) / 5
    assert mean_boundary_accuracy(prediction, truth) == pytest.approx(expected, abs=1e-12)
    # An error far from the boundary does not count
    prediction[250, 250] = False
    prediction[0, :] = True
    assert mean_boundary_accuracy(prediction, truth) == pytest.approx(expected, abs=1e-12)


def test_smallest_disc():
    """A disc of 5 pixels: near its boundary are its four arms and the eight pixels two steps from the middle."""
    y, x = np.mgrid[-6:7, -6:7]
    truth = x**2 + y**2 <= 1
    assert mean_boundary_accuracy((x == 0) & (y == 0), truth) == pytest.approx(8 / 12)
    assert mean_boundary_accuracy(x**2 + y**2 <= 2, truth) == pytest.approx(8 / 12)  # 4 of the 8 are wrong
    assert mean_boundary_accuracy(x**2 + y**2 <= 4, truth) == pytest.approx(4 / 12)  # all 8 are


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (64, 48), (900, 900)])
@pytest.mark.parametrize("value", [False, True])
def test_truth_without_boundary_has_no_accuracy(size, value):
    truth = np.full(size, value)
    assert mean_boundary_accuracy(truth, truth) is None
    assert mean_boundary_accuracies([truth, ~truth], truth) is None


def test_right_and_wrong_everywhere_and_tiny_images():
    truth = rectangle(400, 900, 0, 100, 200, 300)
    assert mean_boundary_accuracy(truth, truth) == 1 and mean_boundary_accuracy(~truth, truth) == 0
    assert mean_boundary_accuracy(np.array([[True, True]]), np.array([[True, False]])) == 0.5
    # The fourth pixel is diagonal to the only one inside, and adjacent to no other value
    assert mean_boundary_accuracy(np.zeros((2, 2), bool), np.array([[1, 0], [0, 0]], bool)) == pytest.approx(2 / 3)
    assert mean_boundary_accuracy(np.ones((3, 1), bool), np.array([[1], [1], [0]], bool)) == 0.5


def blobs(height: int, width: int, blur: float, share: float, rng: np.random.Generator) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.random((height, width)).astype(np.float32), (0, 0), blur)
    return noise > np.quantile(noise, 1 - share)


@pytest.mark.parametrize("share", [0.001, 0.03, 0.5, 0.97])
@pytest.mark.parametrize(("height", "width"), [(40, 31), (333, 1200), (1000, 800), (3, 2000)])
def test_box_gives_the_same_as_the_whole_image(height, width, share):
    rng = np.random.default_rng(7)
    truth = blobs(height, width, 6, share, rng)
    truth[0, -2:] = False, True  # some boundary in any case
    window = np.zeros_like(truth)  # keeps the blobs in a part, at the image's corner
    window[: height * 2 // 3, width // 3 :] = True
    for masked in (truth & window, truth | ~window):
        prediction = masked ^ blobs(height, width, 2, 0.1, rng)
        assert mean_boundary_accuracy(prediction, masked) == pytest.approx(plain_mba(prediction, masked), abs=1e-12)


def test_several_predictions_and_strided_views():
    rng = np.random.default_rng(8)
    truth = blobs(500, 700, 8, 0.2, rng)[:, ::-1]
    predictions = [truth ^ blobs(500, 700, 2, share, rng) for share in (0.02, 0.2)]
    together = mean_boundary_accuracies(predictions, truth)
    assert together == [mean_boundary_accuracy(p, truth) for p in predictions]
    assert together == pytest.approx([plain_mba(p, truth.copy()) for p in predictions], abs=1e-12)


def test_real_masks_give_the_same_as_the_whole_image(real_data):
    folder = real_data / "refine" / "composites"
    pairs = [(path, path.with_name(path.name.replace("_gt", "_seg"))) for path in sorted(folder.glob("*_gt.png"))]
    assert pairs
    for truth_path, coarse_path in pairs[:3]:
        truth, coarse = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (truth_path, coarse_path))
        value = mean_boundary_accuracy(coarse, truth)
        assert value == pytest.approx(plain_mba(coarse >= 128, truth >= 128), abs=1e-12)
        assert 0.3 < value < 0.95
