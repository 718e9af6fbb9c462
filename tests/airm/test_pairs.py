"""Pairs of image and mask in every layout, what has no partner, and files that cannot be used."""

import os
from pathlib import Path

import pytest
from PIL import Image

from airm.data import pairs
from airm.data.pairs import Pair, check_pair, find_pairs, pair_big, pair_folders
from pixelmask.errors import UserError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(pairing: pairs.Pairing, folder: Path) -> list[tuple[str | None, ...]]:
    """The pairs, and their files below the folder."""
    return [
        (pair.image_id, *(str(path.relative_to(folder)) if path else None for path in pair[1:]))
        for pair in pairing.pairs
    ]


def faults(pairing: pairs.Pairing, folder: Path) -> list[str]:
    return [str(stray).removeprefix(f"{folder}/") for stray in pairing.unmatched]


def test_side_by_side_at_any_depth_sorted_by_name(tmp_path):
    names = ("cat/10.jpg", "cat/10.png", "cat/2.JPG", "cat/2.PNG", "ant/1.jpeg", "ant/1.png", "b.x.jpg", "b.x.png")
    pairing = find_pairs(put(tmp_path, *names, "ant/notes.txt", ".DS_Store", "cat/._10.jpg", "__MACOSX/cat/10.jpg"))
    assert found(pairing, tmp_path) == [
        ("ant/1", "ant/1.jpeg", "ant/1.png", None),
        ("b.x", "b.x.jpg", "b.x.png", None),
        ("cat/10", "cat/10.jpg", "cat/10.png", None),
        ("cat/2", "cat/2.JPG", "cat/2.PNG", None),
    ]
    assert pairing.unmatched == []


def test_what_has_no_partner_beside_it_is_named(tmp_path):
    pairing = find_pairs(put(tmp_path, "a/1.jpg", "a/2.png", "a/3.jpg", "a/3.jpeg", "a/3.png"))
    assert found(pairing, tmp_path) == [("a/3", "a/3.jpg", "a/3.png", None)]
    assert faults(pairing, tmp_path) == [
        "a/1.jpg has no mask",
        "a/2.png has no image",
        "a/3.jpeg has the name of 3.jpg, another image",
    ]


@pytest.mark.parametrize(("images", "masks"), pairs.KNOWN_FOLDERS)
def test_two_folders_of_known_names(images, masks, tmp_path):
    put(tmp_path, f"{images}/1.jpg", f"{masks}/1.png", f"{images}/2.png", f"{masks}/2.png", f"{images}/3.jpg")
    pairing = find_pairs(put(tmp_path, f"{masks}/0.png", "eye-fixations/1.png"))
    assert found(pairing, tmp_path) == [
        ("1", f"{images}/1.jpg", f"{masks}/1.png", None),
        ("2", f"{images}/2.png", f"{masks}/2.png", None),
    ]
    assert faults(pairing, tmp_path) == [f"{masks}/0.png has no image", f"{images}/3.jpg has no mask"]


def test_two_folders_of_other_names_and_one_within_the_other(tmp_path):
    put(tmp_path, "x/1.png", "x/deep/2.tif", "x/truth/1.png", "x/truth/deep/2.png")
    expected = [("1", "x/1.png", "x/truth/1.png", None), ("deep/2", "x/deep/2.tif", "x/truth/deep/2.png", None)]
    pairing = pair_folders(tmp_path / "x", tmp_path / "x/truth")
    assert found(pairing, tmp_path) == expected
    assert pairing.unmatched == []


def test_big_layout(tmp_path):
    put(tmp_path, "b_1_im.jpg", "b_1_gt.png", "b_1_seg.png", "a_im.png", "a_gt.png", "a_seg.png")
    pairing = find_pairs(tmp_path)
    assert found(pairing, tmp_path) == [
        ("a", "a_im.png", "a_gt.png", "a_seg.png"),
        ("b_1", "b_1_im.jpg", "b_1_gt.png", "b_1_seg.png"),
    ]
    assert pairing.unmatched == []
    put(tmp_path, "c_im.jpg", "d_im.jpg", "d_gt.png", "e_seg.png", "f.png", "b_1_im.png")
    pairing = find_pairs(tmp_path)
    assert [pair.image_id for pair in pairing.pairs] == ["a", "b_1"]
    assert faults(pairing, tmp_path) == [
        "b_1_im.png has the name of b_1_im.jpg, another image (_im)",
        "c_im.jpg has no mask (_gt) and no coarse mask (_seg)",
        "d_im.jpg has no coarse mask (_seg)",
        "e_seg.png has no image (_im) and no mask (_gt)",
        "f.png ends in none of _im, _gt, _seg",
    ]


def test_big_layout_without_any_coarse_mask(tmp_path):
    put(tmp_path, "a_im.jpg", "a_gt.png")
    assert found(find_pairs(tmp_path), tmp_path) == [("a", "a_im.jpg", "a_gt.png", None)]
    assert faults(pair_big(tmp_path, coarse_required=True), tmp_path) == ["a_im.jpg has no coarse mask (_seg)"]


def test_symbolic_links_are_followed(tmp_path):
    put(tmp_path / "disk", "1.jpg", "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/class").symlink_to(tmp_path / "disk")
    assert [pair.image_id for pair in find_pairs(tmp_path / "data").pairs] == ["class/1"]


def test_damaged_files_and_sizes_that_differ(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "x.jpg")
    Image.new("L", (8, 6)).save(tmp_path / "x.png")
    Image.new("L", (6, 8)).save(tmp_path / "turned.png")
    Image.new("L", (8, 5)).save(tmp_path / "low.png")
    (tmp_path / "empty.png").touch()
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-400])
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")

    def check(image: str, mask: str, coarse: str | None = None) -> list[str]:
        pair = Pair("x", tmp_path / image, tmp_path / mask, tmp_path / coarse if coarse else None)
        return [fault.replace(f"{tmp_path}/", "") for fault in check_pair(pair)]

    assert check("x.jpg", "x.png") == []
    assert check("x.jpg", "x.png", "x.png") == []
    assert check("x.jpg", "turned.png", "low.png") == [
        "turned.png has 6 x 8 pixels, its image x.jpg has 8 x 6",
        "low.png has 8 x 5 pixels, its image x.jpg has 8 x 6",
    ]
    assert check("x.jpg", "empty.png") == ["empty.png is empty (0 bytes)"]
    assert check("broken.jpg", "x.png") == ["cannot read broken.jpg: No such file or directory"]
    (fault,) = check("cut.jpg", "x.png")
    assert fault.startswith("cannot read image cut.jpg: image file is truncated")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no folder {tmp_path}/nowhere"):
        find_pairs(tmp_path / "nowhere")


@pytest.mark.skipif("REAL_DATA_ROOT" not in os.environ, reason="REAL_DATA_ROOT, the folder of real data, is not set")
def test_real_data():
    real = Path(os.environ["REAL_DATA_ROOT"]) / "refine"
    ecssd, composites, photos = (find_pairs(real / name) for name in ("ecssd", "composites", "photos"))
    assert [len(pairing.pairs) for pairing in (ecssd, composites, photos)] == [800, 6, 0]
    assert ecssd.unmatched == composites.unmatched == []
    assert faults(photos, real / "photos") == [
        "aeroplane_im.jpg has no mask (_gt)",
        "motorbike_im.jpg has no mask (_gt)",
    ]
    assert all(check_pair(pair) == [] for pair in composites.pairs)
