"""Exported mask branches, run by onnxruntime and by PyTorch, against the mask heads they were made of."""

import copy
import json

import onnx
import pytest
import torch
from detectron2.modeling import build_model

from patchdct.mask_network import MaskNetwork, check_mask_branch, export_mask_branch
from pixelmask.errors import UserError
from pixelmask.export import TOLERANCE, ExportedFile, check_output, need
from tests.support.models import detections, feature_maps, tiny_cfg

AGNOSTIC = {"PATCH_CLASSES": 2, "CLS_AGNOSTIC_MASK": True}
TWO_MODULES = {
    "NUM_STAGE": 3,
    "MASK_LOSS_PARA_EACH_STAGE": [1.0] * 3,
    "PATCH_CLASSES": 1,
    "PATCH_SIZE": 16,
    "FINE_PROJECTION": 4,
    "NUM_FUSION": 0,
}


def make_branch(head: str, **options) -> MaskNetwork:
    """A branch whose random predictions differ between classes, instances and pixels."""
    torch.manual_seed(0)
    branch = MaskNetwork(build_model(tiny_cfg(head, **options)).eval())
    with torch.no_grad():
        for name, parameter in branch.head.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                torch.nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5)
            elif "bfg" in name:
                torch.nn.init.normal_(parameter)
    return branch


def export(branch, folder, suffix, num_instances=None) -> ExportedFile:
    path = folder / f"branch{suffix}"
    export_mask_branch(branch, num_instances).save(path)
    return ExportedFile(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function that exports a branch once: the branch, and its files by suffix, each in a folder of its own."""
    done = {}

    def make(head, **options):
        key = head, str(options)
        if key not in done:
            branch = make_branch(head, **options)
            program, files = export_mask_branch(branch), {}
            for suffix in (".pt2", ".onnx"):
                path = tmp_path_factory.mktemp("exported") / f"branch{suffix}"
                program.save(path)
                files[suffix] = ExportedFile(path)
            done[key] = branch, files
        return done[key]

    return make


def assert_same(file, branch, num_instances):
    inputs = branch.example_inputs(num_instances)
    with torch.no_grad():
        expected = branch(*inputs)
    answer = file(*inputs)
    torch.testing.assert_close(answer, expected, atol=TOLERANCE, rtol=0)
    if num_instances > 2:  # an answer that does not depend on its input is no test
        assert (answer - answer[:1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("head", "options", "side"),
    [
        ("mask_rcnn", {}, 28),
        ("dct_mask", {}, 128),
        ("dct_mask", {"CLS_AGNOSTIC_MASK": False}, 128),
        pytest.param("patchdct", {}, 112, marks=pytest.mark.slow),
        pytest.param("patchdct", AGNOSTIC, 112, marks=pytest.mark.slow),
        pytest.param("patchdct", TWO_MODULES, 112, marks=pytest.mark.slow),
        pytest.param("patchdct", {"PATCH_REGRESSOR": False}, 112, marks=pytest.mark.slow),
        ("two_stage_dct", {}, 112),
        ("binary_grid", {}, 112),
    ],
)
def test_files_answer_as_the_head(exported, head, options, side):
    branch, files = exported(head, **options)
    for suffix, numbers in ((".pt2", (0, 1, 2, 5)), (".onnx", (1, 2, 5))):
        file = files[suffix]
        for num_instances in numbers:
            assert_same(file, branch, num_instances)
        assert file(*branch.example_inputs(3)).shape == (3, side, side)
        assert file.metadata == {
            "part": "mask-branch",
            "head": type(branch.head).__name__,
            "num_classes": 1 if tiny_cfg(head, **options).MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else 3,
        }


@pytest.mark.slow
def test_file_takes_the_place_of_the_head_in_a_model(exported):
    branch, files = exported("patchdct")
    head = branch.head
    features, instances = feature_maps(1), detections(4)
    with torch.no_grad():
        coarse, fine = (
            pooler([features[name] for name in names], [instances.pred_boxes])
            for pooler, names in ((head.coarse_pooler, head.in_features), (head.fine_pooler, head.fine_features))
        )
        (expected,) = head(features, [instances])
    masks = files[".pt2"](instances.pred_classes, coarse, fine)
    torch.testing.assert_close(masks[:, None], expected.pred_masks, atol=TOLERANCE, rtol=0)
    # Background, foreground and regressed patches are all there
    assert (masks == 0).any() and (masks == 1).any() and ((masks > 0.1) & (masks < 0.9)).any()


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_fixed_number_of_instances(tmp_path, suffix):
    branch = make_branch("mask_rcnn")
    file = export(branch, tmp_path, suffix, num_instances=3)
    assert_same(file, branch, 3)
    with pytest.raises(UserError, match=r"branch.* cannot be run on inputs of \(2,\), \(2, 16, 14, 14\)"):
        file(*branch.example_inputs(2))


@pytest.mark.slow
def test_class_agnostic_branch_takes_any_class(exported):
    branch, files = exported("patchdct", **AGNOSTIC)
    _, *features = branch.example_inputs(2)
    for file in files.values():
        torch.testing.assert_close(file(torch.tensor([7, 2]), *features), file(torch.tensor([0, 0]), *features))


def test_onnx_file_stands_alone_and_names_what_it_takes(exported):
    path = exported("two_stage_dct")[1][".onnx"].path
    assert [other.name for other in path.parent.iterdir()] == ["branch.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [x.name for x in model.graph.input] == ["classes", "coarse", "fine"]
    assert [x.name for x in model.graph.output] == ["masks"]
    batch = {x.type.tensor_type.shape.dim[0].dim_param for x in [*model.graph.input, *model.graph.output]}
    assert batch == {"instances"}
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["patchdct"]["head"] == "MaskRCNNTwoStageDCTHead"


def test_check_sees_another_network(exported):
    branch, files = exported("dct_mask")
    assert check_mask_branch(files[".pt2"], branch) <= TOLERANCE
    other = copy.deepcopy(branch)
    with torch.no_grad():
        other.head.predictor_fc3.bias[0] += 1
    assert check_mask_branch(files[".pt2"], other) > TOLERANCE


def test_files_and_libraries_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="no file .*absent.onnx"):
        ExportedFile(tmp_path / "absent.onnx")
    for name in ("text.onnx", "text.pt2"):
        (tmp_path / name).write_text("no network")
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            ExportedFile(tmp_path / name)
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(1),)), tmp_path / "other.pt2")
    with pytest.raises(UserError, match="other.pt2 was not written by tools/export.py"):
        ExportedFile(tmp_path / "other.pt2")
    with pytest.raises(UserError, match="ONNX needs no_such_library: pip install onnx onnxscript onnxruntime"):
        need("json", "no_such_library")
    with pytest.raises(UserError, match=r"model.pth has no known format; its name ends in .pt2"):
        check_output(tmp_path / "model.pth")
    (tmp_path / "model.pt2").touch()
    with pytest.raises(UserError, match=r"model.pt2 exists; give another name, or --overwrite"):
        check_output(tmp_path / "model.pt2")
    check_output(tmp_path / "model.pt2", overwrite=True)


def test_model_without_mask_branch():
    cfg = tiny_cfg("mask_rcnn")
    cfg.MODEL.MASK_ON = False
    with pytest.raises(UserError, match="no mask branch"):
        MaskNetwork(build_model(cfg))
