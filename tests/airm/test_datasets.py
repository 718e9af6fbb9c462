"""Registration of refinement sets, built in and a user's own, and what is said of those that cannot be used."""

import os
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from airm.data import datasets
from airm.data.prepare import prepare_refinement_datasets
from pixelmask.errors import UserError

COUNTS = {"msra10k": 10_000, "duts_tr": 10_553, "duts_te": 5_019, "ecssd": 1_000, "fss1000": 10_000}


pytestmark = pytest.mark.usefixtures("root")


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


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


def test_a_missing_folder_is_named_with_the_page_that_says_what_belongs_there(root, monkeypatch):
    with pytest.raises(UserError, match=rf"{root}/ECSSD, which does not exist.*is {root}\. .*datasets/README\.md"):
        DatasetCatalog.get("ecssd")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=rf"{root}/datasets/BIG/fcn8s.*DETECTRON2_DATASETS is not set"):
        DatasetCatalog.get("big_fcn8s")


def test_an_empty_folder_is_no_data_set(root):
    (root / "ECSSD").mkdir()
    with pytest.raises(UserError, match="data set ecssd has no images in .*ECSSD"):
        DatasetCatalog.get("ecssd")


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


def test_a_users_missing_folder_is_named(root):
    datasets.register_refinement([["mine", str(root / "im"), str(root / "gt")]])
    put(root, "im/1.jpg")
    with pytest.raises(UserError, match=f"mine needs the folder {root}/gt.*DATASETS.REFINEMENT"):
        DatasetCatalog.get("mine")


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


@pytest.mark.skipif("REAL_DATA_ROOT" not in os.environ, reason="REAL_DATA_ROOT, the folder of real data, is not set")
def test_real_data(root):
    real = Path(os.environ["REAL_DATA_ROOT"]) / "refine"
    (root / "ECSSD").symlink_to(real / "ecssd")
    (root / "BIG").mkdir()
    (root / "BIG/fcn8s").symlink_to(real / "composites")
    ecssd, big = DatasetCatalog.get("ecssd"), DatasetCatalog.get("big_fcn8s")
    assert (len(ecssd), len(big)) == (800, 6)
    assert ecssd[0]["image_id"] == "0001"
    assert all(Path(d["file_name"]).stem == Path(d["mask_file_name"]).stem == d["image_id"] for d in ecssd)
    assert [d["image_id"] for d in big] == ["sample1", "sample11", "sample13", "sample2", "sample4", "sample6"]
