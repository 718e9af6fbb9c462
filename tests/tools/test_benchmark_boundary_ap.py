"""Boundary AP timed: what is drawn is what the annotations are, moved; a checkout that is none is named."""

import re

import benchmark_boundary_ap
import numpy as np
import pytest
from benchmark_boundary_ap import argument_parser, draw_detections, main

from pixelmask.errors import UserError
from pixelmask.files import write_json
from pixelmask.rle import decode, encode


@pytest.fixture
def truth():
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 20:40, 20:50] = masks[1, 10:50, 30:60] = True
    annotations = [
        {
            "id": i + 1,
            "image_id": i,
            "category_id": 7,
            "iscrowd": 0,
            "area": int(mask.sum()),
            "segmentation": encode(mask),
        }
        for i, mask in enumerate(masks)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in range(2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "thing"}]}


def test_detections_are_the_annotations_moved(truth):
    results = draw_detections(truth, 5, np.random.default_rng(0))
    assert [result["image_id"] for result in results] == [0, 1, 0, 1, 0]
    assert {result["category_id"] for result in results} == {7} and all(0 <= r["score"] < 1 for r in results)
    for result in results:
        mask, moved = (decode(x["segmentation"]) for x in (truth["annotations"][result["image_id"]], result))
        first = [np.argwhere(x)[0] for x in (mask, moved)]
        assert mask.sum() == moved.sum() and abs(first[0] - first[1]).max() <= 8


def test_the_table(truth, tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "truth.json", truth)
    monkeypatch.setattr(benchmark_boundary_ap, "draw_detections", lambda truth, number, rng: [
        {"image_id": a["image_id"], "category_id": 7, "score": 0.5, "segmentation": a["segmentation"]}
        for a in truth["annotations"]
    ])  # fmt: skip
    main(argument_parser().parse_args([str(tmp_path / "truth.json"), "--detections", "2"]))
    assert re.search(r"pixelmask\s+100\.0000", capsys.readouterr().out)
    with pytest.raises(UserError, match="has no folder boundary_iou"):
        main(argument_parser().parse_args([str(tmp_path / "truth.json"), "--peer", str(tmp_path)]))
