import csv
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict

from airm.evaluation import RefinementEvaluator
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
    evaluator.reset()
    for sample, output in pairs:
        evaluator.process([sample], [output])
    return evaluator.evaluate()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "per_image.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_golden_totals(tmp_path, caplog):
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


def test_a_line_per_image_in_the_order_of_ids(tmp_path):
    evaluate(golden_pairs(), tmp_path)
    first, second = rows_of(tmp_path)
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


def test_reset_forgets():
    evaluator = RefinementEvaluator("drawn")
    evaluator.process(*zip(golden_pairs()[0], strict=True))
    evaluator.reset()
    evaluator.process(*zip(golden_pairs()[1], strict=True))
    assert evaluator.evaluate()["refinement"]["images"] == 1


def test_an_image_without_boundary_is_left_out_of_the_mean(tmp_path):
    empty = torch.zeros(1, 60, 60)
    results = evaluate([pair("b", SMALL, BY_2, BY_1), pair("c", empty, empty, empty)], tmp_path)["refinement"]
    assert results["images"] == 2
    assert results["refined_mBA"] == pytest.approx(100 * MBA_BY_1)
    assert results["refined_IoU"] == pytest.approx(38000 / 420)
    row = rows_of(tmp_path)[1]
    assert [row[k] for k in ("coarse_IoU", "refined_IoU", "coarse_mBA", "refined_mBA", "gain_mBA")] == [""] * 5
    assert json.loads((tmp_path / "results.json").read_text())["images_without_boundary"] == 1


def test_pixels_in_an_image_with_empty_truth_lower_the_total():
    empty = torch.zeros(1, 60, 60)
    results = evaluate([pair("b", SMALL, BY_2, BY_1), pair("c", empty, empty, SMALL)])["refinement"]
    assert results["coarse_IoU"] == pytest.approx(36000 / 440)
    assert results["refined_IoU"] == pytest.approx(38000 / (420 + 400))


def test_a_set_without_any_boundary_has_no_mba(tmp_path):
    full = torch.ones(1, 20, 20)
    results = evaluate([pair("f", full, full, full)], tmp_path)
    assert results == {"refinement": {"coarse_IoU": 100, "refined_IoU": 100, "gain_IoU": 0, "images": 1}}
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text and json.loads(text)["refinement"]["coarse_mBA"] is None


def test_no_image_no_result(tmp_path, caplog):
    assert evaluate([], tmp_path) == {}
    assert "no image" in caplog.text


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
