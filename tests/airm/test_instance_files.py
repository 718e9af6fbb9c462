"""Masks and images as users have them: RLE, polygons, PNG folders, image ids; every mistake is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from airm.instances.work import (
    InstanceImage,
    find_instance_images,
    images_of_annotations,
    images_of_results,
    in_order,
    read_png_folder,
    read_truth,
)
from pixelmask.data.coco_file import read_results
from pixelmask.errors import UserError
from pixelmask.rle import decode, encode, read_runs, to_rle
from tests.support.catalogs import put
from tests.support.models import disc

H, W = 40, 52
DISC = disc(H, W, (25, 18), 11).numpy()


def test_compressed_rle_keeps_its_counts_and_polygons_are_filled():
    rle = mask_util.encode(np.asfortranarray(DISC, np.uint8))
    assert to_rle(rle, H, W) == encode(DISC) == {"size": [H, W], "counts": rle["counts"].decode()}
    np.testing.assert_array_equal(decode(to_rle(rle, H, W)), DISC)
    # Runs of no pixels are no fault, and are not tidied up: 3 + 0 + 2 background, 7 foreground
    odd = {"size": [3, 4], "counts": "3027"}
    assert to_rle(odd, 3, 4) == odd and decode(to_rle(odd, 3, 4)).sum() == 7
    mask = decode(to_rle([[10, 10, 30, 10, 30, 20, 10, 20], [0, 0, 5, 0, 5, 5, 0, 5]], H, W))
    assert mask[10:20, 10:30].all() and mask[:5, :5].all() and mask.sum() == 200 + 25
    assert not decode(to_rle([], H, W)).any()


@pytest.mark.parametrize("seed", range(5))
def test_runs_are_those_of_pycocotools(seed):
    """Uncompressed RLE, as a script of numpy's makes it, and the library's compressed one say the same."""
    mask = np.random.default_rng(seed).random((37, 91)) < (0.5, 0.02, 0.98, 0, 1)[seed]
    flat = mask.T.ravel()
    cuts = [0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]
    runs = ([0] if flat[0] else []) + [int(b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert read_runs(encode(mask)["counts"]) == runs
    assert to_rle({"size": [37, 91], "counts": runs}, 37, 91) == encode(mask)


@pytest.mark.parametrize(
    "segmentation, words",
    [
        (None, "neither an RLE"),
        ("P137", "neither an RLE"),
        ({"size": [H, W]}, "neither an RLE"),
        ({"size": [W, H], "counts": [H * W]}, "has the size [52, 40] (height, width), but its image is [40, 52]"),
        ({"size": 3, "counts": [H * W]}, "has the size 3"),
        ({"size": [H, W], "counts": [5, 6]}, "has runs of 11 pixels; its image has 2080"),
        ({"size": [H, W], "counts": [2081, -1]}, "counts that are neither"),
        ({"size": [H, W], "counts": [1.5, 2078.5]}, "counts that are neither"),
        ({"size": [H, W], "counts": 7}, "counts that are neither"),
        ({"size": [H, W], "counts": "P137"}, "has runs of"),
        ({"size": [H, W], "counts": "zz"}, "counts that are neither"),
        ({"size": [H, W], "counts": "é"}, "counts that are neither"),
        ({"size": [H, W], "counts": "P"}, "counts that are neither"),
        ([[1, 2, 3, 4]], "at least 3 points"),
        ([1, 2, 3, 4, 5, 6], "at least 3 points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least 3 points"),
        ([[1, 2, 3, 4, 5, "x"]], "not all numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not all numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], "not all numbers of at most 520 pixels"),
    ],
)
def test_masks_that_cannot_be_used(segmentation, words):
    with pytest.raises(ValueError) as e:
        to_rle(segmentation, H, W)
    assert words in str(e.value)


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "not valid JSON"),
        ('{"annotations": []}', "seems to be an annotation file"),
        ("[3]", "result 0 is 3, not an object"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, 1]}]', 'result 0 has no "segmentation"'),
        ('[{"image_id": 1, "segmentation": [], "score": "high"}]', "score 'high'"),
        ('[{"image_id": 1, "segmentation": [], "score": NaN}]', "score nan"),
        ('[{"image_id": 1, "segmentation": [], "score": 1e400}]', "result 0 has the score inf, not a number"),
        ('[{"image_id": [1], "segmentation": []}]', "result 0 has the image_id [1], not a whole number"),
        ('[{"image_id": 1, "segmentation": [], "category_id": {}}]', "result 0 has the category_id {}, not"),
    ],
)
def test_results_that_cannot_be_used(tmp_path, content, words):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError) as e:
        read_results(tmp_path / "results.json")
    assert words in str(e.value) and str(tmp_path / "results.json") in str(e.value)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path / "absent.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="is not a COCO annotation file: it holds a list"):
        read_truth(tmp_path / "list.json")
    image = {"id": 7, "file_name": "7.jpg", "height": H, "width": W}
    (tmp_path / "twice.json").write_text(json.dumps({"images": [image, image]}))
    with pytest.raises(UserError, match="the id 7 comes twice in its 'images'"):
        read_truth(tmp_path / "twice.json")
    for text, words in ((str(tmp_path), "a folder without images"), (f"{tmp_path}/*.jpg", "no such image")):
        with pytest.raises(UserError, match=words):
            find_instance_images([text])


def test_images_are_found(tmp_path):
    put(tmp_path / "a", "1.jpg", "sub/2.png", "notes.txt")
    found = find_instance_images([str(tmp_path / "a"), f"{tmp_path}/a/*.jpg"])
    assert [path.name for path in found] == ["1.jpg", "2.png"]
    put(tmp_path / "big", "x_im.jpg", "x_seg.png", "x_gt.png")
    assert [path.name for path in find_instance_images([str(tmp_path / "big")])] == ["x_im.jpg"]


def test_image_ids_of_annotations(tmp_path, monkeypatch):
    put(tmp_path, "elsewhere.jpg")
    files = [put(tmp_path, f"images/{name}") / "images" / name for name in ("a/1.jpg", "b/1.jpg", "c.jpg")]
    monkeypatch.chdir(tmp_path)
    names = ["b/1.jpg", "1.jpg", "old/folder/c.jpg", "d.jpg", "elsewhere.jpg"]
    images = images_of_annotations(
        {"images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)]}, files
    )
    assert [image.path for image in images] == [files[1], None, files[2], None, Path("elsewhere.jpg")]
    assert [image.id for image in images] == [10, 11, 12, 13, 14]


def test_image_ids_without_annotations(tmp_path):
    names = ("000000000042.jpg", "COCO_val2014_000000000007.jpg", "x.png", "9.jpg", "09.jpg", "b_9.jpg")
    files = [put(tmp_path, name) / name for name in names]
    ids = [42, "42", 7, "x", 9, 8]
    found = images_of_results([{"image_id": i} for i in ids], files)
    assert [image.id for image in found] == ["42", 7, "x", 9, 8]  # 42 and "42" are one image
    assert [image.path and image.path.name for image in found] == [*names[:4], None]
    both = images_of_results([{"image_id": 9}], [path for path in files if path.stem != "9"])
    assert both[0].path is None  # 09.jpg or b_9.jpg


def test_png_folder(tmp_path):
    names = ["x/10.png", "x/9.png", "7/a.png", "y_2.png", "y_10.png", "y.png", "z_1.png", "z_1_3.png", "big_seg.png"]
    for k, name in enumerate(names):
        Image.fromarray(np.full((4, 5), 255 * (k % 2), np.uint8)).save(put(tmp_path, name) / name)
    numbers = {"x.jpg": 1, "seven.jpg": 7, "y.jpg": 3, "z_1.jpg": 4, "big_im.jpg": 5, "w.jpg": 6}
    images = [InstanceImage(number, name, Path("images", name)) for name, number in numbers.items()]
    results = read_png_folder(tmp_path, images, category_id=2)
    files: dict[int, list[str]] = {}
    for result in results:
        files.setdefault(result["image_id"], []).append(result["mask_file"])
    ofy, ofz = ["y.png", "y_2.png", "y_10.png"], ["z_1.png", "z_1_3.png"]
    assert files == {1: ["x/9.png", "x/10.png"], 7: ["7/a.png"], 3: ofy, 4: ofz, 5: ["big_seg.png"]}
    assert decode(results[0]["segmentation"]).all() and not decode(results[1]["segmentation"]).any()
    assert {(result["category_id"], result["score"]) for result in results} == {(2, 1.0)}
    with pytest.raises(UserError, match="no PNG masks of the 1 images"):
        read_png_folder(tmp_path, images[-1:], 1)
    other = InstanceImage(8, "others/y.jpg", Path("others/y.jpg"))
    with pytest.raises(UserError, match=r"y.png may be of several images \(y.jpg, others/y.jpg\)"):
        read_png_folder(tmp_path, [*images, other], 1)


def test_results_keep_their_order():
    results = [{"image_id": i, "k": k} for k, i in enumerate((2, 1, 2, 3, 1))]
    done = {str(i): {"refined": [{**r, "new": True} for r in results if r["image_id"] == i]} for i in (1, 2)}
    assert in_order(results, done) == [{**r, "new": True} if r["image_id"] != 3 else r for r in results]
