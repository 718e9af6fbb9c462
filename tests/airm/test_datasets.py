"""Pairs of image and mask in every layout, refinement sets, and what is said of those that cannot be used."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from airm.data import datasets, pairs
from airm.data.pairs import Pair, check_pair, find_pairs, pair_big, pair_folders
from airm.data.prepare import prepare_refinement_datasets
from pixelmask.errors import UserError
from tests.support.catalogs import put

COUNTS = {"msra10k": 10_000, "duts_tr": 10_553, "duts_te": 5_019, "ecssd": 1_000, "fss1000": 10_000}


pytestmark = pytest.mark.usefixtures("root")


def cfg_of(entries=(), train=(), test=()) -> CfgNode:
    return CfgNode({"DATASETS": {"REFINEMENT": list(entries), "TRAIN": tuple(train), "TEST": tuple(test)}})


def test_built_in_sets_add_up_to_the_papers_number():
    assert {name: datasets.BUILT_IN[name].count for name in COUNTS} == COUNTS
    assert sum(COUNTS.values()) == 36_572
    assert len(datasets.BUILT_IN) == 6 + 2 * 4
    for name in datasets.BUILT_IN:
        assert MetadataCatalog.get(name).evaluator_type == "refinement"


@pytest.mark.parametrize(
    ("name", "image", "mask", "image_id"),
    [
        ("msra10k", "MSRA10K/Imgs/7.jpg", "MSRA10K/Imgs/7.png", "Imgs/7"),
        ("msra10k", "MSRA10K/7.jpg", "MSRA10K/7.png", "7"),
        ("duts_tr", "DUTS-TR/DUTS-TR-Image/7.jpg", "DUTS-TR/DUTS-TR-Mask/7.png", "7"),
        ("duts_te", "DUTS-TE/7.jpg", "DUTS-TE/7.png", "7"),
        ("dut_omron", "DUT-OMRON/DUT-OMRON-image/7.jpg", "DUT-OMRON/pixelwiseGT-new-PNG/7.png", "7"),
        ("ecssd", "ECSSD/images/7.jpg", "ECSSD/ground_truth_mask/7.png", "7"),
        ("ecssd", "ECSSD/7.jpg", "ECSSD/7.png", "7"),
        ("fss1000", "FSS-1000/ab_wheel/7.jpg", "FSS-1000/ab_wheel/7.png", "ab_wheel/7"),
    ],
)
def test_built_in_training_sets_in_both_layouts(name, image, mask, image_id, root):
    put(root, image, mask)
    expected = {"file_name": str(root / image), "mask_file_name": str(root / mask), "image_id": image_id}
    assert DatasetCatalog.get(name) == [expected]


def test_test_sets_have_coarse_masks_and_may_share_their_images(root):
    shared = put(root / "BIG/test", "a_im.jpg", "a_gt.png", "a_seg.png")
    put(root / "BIG/pspnet", "a_seg.png")
    own = put(root / "VOC2012_relabelled/fcn8s", "2007_1_cat_im.png", "2007_1_cat_gt.png", "2007_1_cat_seg.png")
    assert DatasetCatalog.get("big_pspnet") == [
        {
            "file_name": str(shared / "a_im.jpg"),
            "mask_file_name": str(shared / "a_gt.png"),
            "coarse_file_name": str(root / "BIG/pspnet/a_seg.png"),
            "image_id": "a",
        }
    ]
    (voc,) = DatasetCatalog.get("voc_relabelled_fcn8s")
    assert voc["coarse_file_name"] == str(own / "2007_1_cat_seg.png")
    assert voc["image_id"] == "2007_1_cat"
    put(root / "BIG/test", "b_im.jpg", "b_gt.png")
    with pytest.raises(UserError, match=r"b_im.jpg has no coarse mask \(_seg\)"):
        DatasetCatalog.get("big_pspnet")


def test_a_missing_or_empty_folder_is_named(root, monkeypatch):
    with pytest.raises(UserError, match=rf"{root}/ECSSD, which does not exist.*is {root}\. .*datasets/README\.md"):
        DatasetCatalog.get("ecssd")
    (root / "ECSSD").mkdir()
    with pytest.raises(UserError, match="data set ecssd has no images in .*ECSSD"):
        DatasetCatalog.get("ecssd")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(root)
    datasets.register_refinement([["mine", str(root / "im"), str(root / "gt")]])
    put(root, "im/1.jpg")
    with pytest.raises(UserError, match=f"mine needs the folder {root}/gt.*DATASETS.REFINEMENT"):
        DatasetCatalog.get("mine")
    with pytest.raises(UserError, match=rf"{root}/datasets/BIG/fcn8s.*DETECTRON2_DATASETS is not set"):
        DatasetCatalog.get("big_fcn8s")


def test_unmatched_files_are_counted_named_and_never_dropped(root):
    put(root / "ECSSD", "1.jpg", "1.png", *(f"{i}.jpg" for i in range(2, 7)))
    with pytest.raises(UserError) as error:
        DatasetCatalog.get("ecssd")
    message = str(error.value)
    assert "has 1 pairs in" in message and "5 files without a partner" in message
    assert f"{root}/ECSSD/4.jpg has no mask, ..." in message and "5.jpg" not in message
    assert message.endswith("python datasets/prepare_refinement.py --check ecssd")


def test_a_users_sets_of_every_form(root, monkeypatch):
    put(root, "x/1.jpg", "x/1.png", "y/a_im.jpg", "y/a_gt.png", "y/a_seg.png")
    put(root, "im/1.jpg", "gt/1.png", "im/2.jpg", "gt/2.png", "im/c/3.jpg")
    (root / "list.txt").write_text("2\r\n\n1\n")
    monkeypatch.chdir(root)
    monkeypatch.setenv("MINE", str(root))
    entries = [
        ["flat", "x"],
        ("like_big", "$MINE/y"),
        ["listed", "im", "gt", "list.txt"],
        ["listed_of_one", "x", "x", "one.txt"],
        ["incomplete", "im", "gt"],
    ]
    datasets.register_refinement(entries)
    datasets.register_refinement(entries)  # again, as when a config is set up twice
    (root / "one.txt").write_text("1")  # read when it is needed
    monkeypatch.chdir("/")
    assert [d["file_name"] for d in DatasetCatalog.get("flat")] == [f"{root}/x/1.jpg"]
    assert [d["coarse_file_name"] for d in DatasetCatalog.get("like_big")] == [f"{root}/y/a_seg.png"]
    assert [d["image_id"] for d in DatasetCatalog.get("listed")] == ["1", "2"]
    assert [d["mask_file_name"] for d in DatasetCatalog.get("listed_of_one")] == [f"{root}/x/1.png"]
    for argument, ids in ((f"{root}/im:{root}/gt:{root}/list.txt", ["1", "2"]), (f"{root}/x:{root}/one.txt", ["1"])):
        assert [d["image_id"] for d in datasets.parse_folders(argument)()] == ids
    with pytest.raises(UserError, match=rf"c/3.jpg has no mask.*--check {root}/im:{root}/gt"):
        DatasetCatalog.get("incomplete")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n3\n4\n", r"2 of 3 lines of .*list.txt name no image of .*im and .*gt: 3, 4\. .* such as 1"),
        ("1\n1\n", "list.txt names 1 twice"),
        ("\n", "list.txt is empty"),
        ("1\n2\n", "2.jpg has no mask"),
        (b"\xff\xfe1", "cannot read list file .*list.txt"),
        (None, "cannot read list file .*list.txt.*No such file"),
    ],
)
def test_lists_with_mistakes(text, message, root):
    put(root, "im/1.jpg", "gt/1.png", "im/2.jpg")
    if text is not None:
        (root / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    datasets.register_refinement([["mine", str(root / "im"), str(root / "gt"), str(root / "list.txt")]])
    with pytest.raises(UserError, match=message):
        DatasetCatalog.get("mine")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("mine", "DATASETS.REFINEMENT wants .*not 'mine'"),
        (["mine"], "wants"),
        (["mine", 3], "wants"),
        (["mine", ""], "wants"),
        (["mine", "a", "b", "c", "d"], "wants"),
        (["ecssd", "a"], "the name ecssd .*choose another name"),
        (["coco_2017_val", "a"], "choose another name"),
    ],
)
def test_entries_with_mistakes(entry, message):
    with pytest.raises(UserError, match=message):
        datasets.register_refinement([entry])


def test_a_config_registers_and_checks_its_sets(root):
    put(root, "x/1.jpg", "x/1.png", "ECSSD/1.jpg", "ECSSD/1.png")
    synthetic = ["synthetic_refinement_train_3", "synthetic_refinement_val_2_96x64"]
    cfg = cfg_of([["mine", str(root / "x")]], ["ecssd", synthetic[0]], ["mine", synthetic[1]])
    prepare_refinement_datasets(cfg, train=True)
    prepare_refinement_datasets(cfg, train=True)
    assert set(synthetic) < set(DatasetCatalog.list())
    assert not (root / "synthetic_refinement").exists()  # not drawn before they are loaded
    assert len(DatasetCatalog.get("mine")) == 1
    # Training sets do not matter for evaluation
    prepare_refinement_datasets(cfg_of([], ["nothing"], ["mine"]), train=False)


@pytest.mark.parametrize(
    ("cfg", "train", "message"),
    [
        (cfg_of(test=["ecssd"]), True, "DATASETS.TRAIN is empty"),
        (cfg_of(train=["ecssd"]), False, "DATASETS.TEST is empty"),
        (
            cfg_of(train=["ecsd"]),
            True,
            r"ecsd of DATASETS.TRAIN is not registered; did you mean ecssd\? Known are big_",
        ),
        (cfg_of(test=["coco_2017_val"]), False, "coco_2017_val of DATASETS.TEST is no data set for refinement"),
        (cfg_of(test=["synthetic_refinment_val"]), False, r"did you mean synthetic_refinement_val or"),
        (cfg_of(test=["synthetic_refinement_test"]), False, "synthetic_refinement_test"),
        (cfg_of(train=["duts_tr"]), True, "DUTS-TR, which does not exist"),
        (cfg_of(test=["big_fcn8s"], train=["duts_tr"]), True, "BIG/fcn8s, which does not exist"),
    ],
)
def test_configs_with_mistakes(cfg, train, message):
    with pytest.raises(UserError, match=message):
        prepare_refinement_datasets(cfg, train)


def test_real_data(root, real_data):
    real = real_data / "refine"
    (root / "ECSSD").symlink_to(real / "ecssd")
    (root / "BIG").mkdir()
    (root / "BIG/fcn8s").symlink_to(real / "composites")
    ecssd, big = DatasetCatalog.get("ecssd"), DatasetCatalog.get("big_fcn8s")
    assert (len(ecssd), len(big)) == (800, 6)
    assert ecssd[0]["image_id"] == "0001"
    assert all(Path(d["file_name"]).stem == Path(d["mask_file_name"]).stem == d["image_id"] for d in ecssd)
    assert [d["image_id"] for d in big] == ["sample1", "sample11", "sample13", "sample2", "sample4", "sample6"]


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
    pairing = find_pairs(
        put(tmp_path, *["b_1_im.jpg", "b_1_gt.png", "b_1_seg.png", "a_im.png", "a_gt.png", "a_seg.png"])
    )
    assert found(pairing, tmp_path) == [
        ("a", "a_im.png", "a_gt.png", "a_seg.png"),
        ("b_1", "b_1_im.jpg", "b_1_gt.png", "b_1_seg.png"),
    ]
    assert pairing.unmatched == []
    pairing = find_pairs(put(tmp_path, "c_im.jpg", "d_im.jpg", "d_gt.png", "e_seg.png", "f.png", "b_1_im.png"))
    assert [pair.image_id for pair in pairing.pairs] == ["a", "b_1"]
    assert faults(pairing, tmp_path) == [
        "b_1_im.png has the name of b_1_im.jpg, another image (_im)",
        "c_im.jpg has no mask (_gt) and no coarse mask (_seg)",
        "d_im.jpg has no coarse mask (_seg)",
        "e_seg.png has no image (_im) and no mask (_gt)",
        "f.png ends in none of _im, _gt, _seg",
    ]
    without = put(tmp_path / "without", "a_im.jpg", "a_gt.png")
    assert found(find_pairs(without), without) == [("a", "a_im.jpg", "a_gt.png", None)]
    assert faults(pair_big(without, coarse_required=True), without) == ["a_im.jpg has no coarse mask (_seg)"]


def test_symbolic_links_are_followed_and_a_missing_folder_is_named(tmp_path):
    put(tmp_path / "disk", "1.jpg", "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/class").symlink_to(tmp_path / "disk")
    assert [pair.image_id for pair in find_pairs(tmp_path / "data").pairs] == ["class/1"]
    with pytest.raises(UserError, match=f"no folder {tmp_path}/nowhere"):
        find_pairs(tmp_path / "nowhere")


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


def test_real_pairs(real_data):
    real = real_data / "refine"
    ecssd, composites, photos = (find_pairs(real / name) for name in ("ecssd", "composites", "photos"))
    assert [len(pairing.pairs) for pairing in (ecssd, composites, photos)] == [800, 6, 0]
    assert ecssd.unmatched == composites.unmatched == []
    assert faults(photos, real / "photos") == [
        "aeroplane_im.jpg has no mask (_gt)",
        "motorbike_im.jpg has no mask (_gt)",
    ]
    assert all(check_pair(pair) == [] for pair in composites.pairs)
