"""Exported refinement steps, run by onnxruntime and by PyTorch, against AIRM's own refinement."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from detectron2.modeling import build_model

from airm import Refiner
from airm.coarse_to_fine import Settings
from airm.exported import ExportedRefiner, RefinementStep, check_refiner, export_refiner
from airm.query_inputs import colour_table
from airm.query_inputs.colour import BINS
from patchdct.mask_network import MaskNetwork, export_mask_branch
from pixelmask.errors import UserError
from pixelmask.export import TOLERANCE, ExportedFile
from tests.support.checkpoints import save_model
from tests.support.models import disc, tiny_airm_cfg, tiny_cfg, untrained_airm


def shallow_cfg(ratios=(0.25, 0.5, 1.0)):
    """A small AIRM whose encoder has a block in each stage, with several ratios, that sees further inputs."""
    cfg = tiny_airm_cfg(RATIOS=list(ratios), MIN_SIZE_TEST=32, PADDING=16, TILE_HALO=0, QUERY_INPUTS=["mask", "colour"])
    cfg.MODEL.MIT.DEPTHS = [1, 1, 1, 1]
    return cfg


def export(model, path, size=None, queries=False) -> ExportedFile:
    export_refiner(RefinementStep(model, queries), size).save(path)
    return ExportedFile(path)


def eager_step(model, image, mask):
    """AIRM's own refinement at ratio 1, without a border, of a (1, 3, H, W) image and a (1, 1, H, W) mask."""
    return model.refine(image[0], mask[0], Settings(ratios=[1.0], padding=0))[None]


def draw(height, width):
    """An image of two colours, and a disc as its coarse mask."""
    torch.manual_seed(1)
    image = (40 * torch.rand(1, 3, height, width) + torch.linspace(0, 200, width)).round()
    mask = disc(height, width, (0.5 * width, 0.5 * height), 0.3 * height)
    return image, mask.float()[None, None]


def picture(height, width):
    """The same as (H, W, 3) and (H, W) arrays."""
    image, mask = draw(height, width)
    return image[0].permute(1, 2, 0).byte().numpy(), mask[0, 0].numpy()


def assert_same(file, model, height, width):
    image, mask = draw(height, width)
    expected = eager_step(model, image, mask)
    torch.testing.assert_close(file(image, mask), expected, atol=TOLERANCE, rtol=0)
    assert expected.std() > 0.002  # an answer that does not depend on its input is no test


def test_a_step_is_a_copy():
    model = untrained_airm().train()
    step = RefinementStep(model)
    assert model.training and not step.model.training and step.model.mapping is not model.mapping


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The weights of that AIRM."""
    return save_model(shallow_cfg(), tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def queries(checkpoint):
    """The same model as an ONNX file for images of any size and any queries; beside it is the .pt2."""
    path = checkpoint.with_name("refiner.onnx")
    exported = export_refiner(RefinementStep(Refiner(checkpoint).model, queries=True), None)
    exported.save(path)
    exported.save(path.with_suffix(".pt2"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "smallest"), [(".onnx", 32), (".pt2", 64)])
def test_any_size(checkpoint, queries, suffix, smallest):
    model, file = Refiner(checkpoint).model, ExportedFile(queries.with_suffix(suffix))

    def ask(height, width):
        centres = [(torch.arange(n) * 2 + 1) / n - 1 for n in (height, width)]
        image, mask = draw(height, width)
        return file(image, mask, *centres, colour_table(image / 255, mask))

    for size in ((smallest, smallest), (64, 80), (96, 160), (176, 112)):
        expected = eager_step(model, *draw(*size))
        torch.testing.assert_close(ask(*size), expected, atol=TOLERANCE, rtol=0)
        assert expected.std() > 0.005
    if suffix == ".pt2":
        with pytest.raises(UserError, match=r"refiner.pt2 cannot be run on inputs of \(1, 3, 32, 64\).*64"):
            ask(32, 64)


def test_onnx_names_what_it_takes(queries):
    model = onnx.load(queries)
    onnx.checker.check_model(model, full_check=True)

    def shapes(values):
        return {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in values}

    assert shapes(model.graph.input) == {
        "image": [1, 3, "height", "width"],
        "mask": [1, 1, "height", "width"],
        "rows": ["rows"],
        "cols": ["cols"],
        "colours": [1, BINS**3],
    }
    assert shapes(model.graph.output) == {"refined_mask": [1, 1, "rows", "cols"]}


@pytest.mark.parametrize(("encoder", "suffix"), [("plain", ".pt2"), ("resnet", ".onnx")])
def test_fixed_size(tmp_path, encoder, suffix):
    model = untrained_airm(encoder, QUERY_INPUTS=["image", "colour", "local"] if encoder == "resnet" else [])
    file = export(model, tmp_path / f"step{suffix}", (64, 96))
    assert_same(file, model, 64, 96)
    with pytest.raises(UserError, match="cannot be run"):
        file(*draw(96, 64))
    with pytest.raises(UserError, match=f"step{suffix} is no refiner with queries; .* --queries"):
        ExportedRefiner(tmp_path / f"step{suffix}")


@pytest.mark.slow
def test_plain_cnn_of_any_size(tmp_path):
    model = untrained_airm("plain", RANK=4)
    file = export(model, tmp_path / "step.onnx")
    for size in ((64, 64), (80, 48)):
        assert_same(file, model, *size)


@pytest.mark.parametrize("size", [(150, 201), (97, 64), (33, 250)])
def test_whole_images_as_the_refiner(checkpoint, queries, size):
    pixels, coarse = picture(*size)
    expected = Refiner(checkpoint, guard=None).refine(pixels, coarse, soft=True)
    np.testing.assert_allclose(ExportedRefiner(queries).refine(pixels, coarse), expected, atol=TOLERANCE)


def test_tiles_and_several_masks_as_the_refiner(checkpoint, queries):
    pixels, coarse = picture(230, 300)
    masks = np.stack([coarse, coarse[::-1, ::-1], np.zeros_like(coarse)])
    refiner = Refiner(checkpoint, tile_size=128, guard=None)
    refiner.model.predict = None  # a file is one step, and predicts in each tile
    expected = refiner.refine(pixels, masks, soft=True)
    refined = ExportedRefiner(queries, tile_size=128).refine(pixels, masks)
    np.testing.assert_allclose(refined, expected, atol=TOLERANCE)
    assert refined.shape == (3, 230, 300) and not refined[2].any()
    assert not np.allclose(refined[0], ExportedRefiner(queries).refine(pixels, coarse), atol=TOLERANCE)


def test_unsure_pixels_keep_the_coarse_mask(checkpoint, queries):
    pixels, coarse = picture(70, 90)
    exported = ExportedRefiner(queries)
    limit = float(np.median(np.abs(2 * exported.refine(pixels, coarse) - 1)))
    exported.settings = replace(exported.settings, min_confidence=limit)
    expected = Refiner(checkpoint, min_confidence=limit, guard=None).refine(pixels, coarse, soft=True)
    different = np.abs(exported.refine(pixels, coarse) - expected) > TOLERANCE
    assert different.mean() < 0.001  # a pixel may lie on the limit
    assert 0.4 < (expected == coarse).mean() < 0.6


@pytest.mark.slow
def test_file_of_fixed_size_refines_in_its_tiles(checkpoint, tmp_path):
    (tmp_path / "config.yaml").write_text(shallow_cfg((0.5, 1.0)).dump())
    refiner = Refiner(checkpoint, config=tmp_path / "config.yaml", tile_size=128, guard=None)
    path = tmp_path / "tile.pt2"
    export(refiner.model, path, (128, 128), queries=True)
    pixels, coarse = picture(230, 300)
    exported = ExportedRefiner(path)
    refiner.model.predict = None
    expected = refiner.refine(pixels, coarse, soft=True)
    np.testing.assert_allclose(exported.refine(pixels, coarse), expected, atol=TOLERANCE)
    with pytest.raises(UserError, match="takes images of 128 x 128 pixels alone, .* 32 x 128; export with --dynamic"):
        exported.refine(pixels[:20], coarse[100:120])


def test_check_sees_another_network_and_sizes_that_the_encoder_does_not_take(tmp_path):
    model = untrained_airm("plain", MAPPING="SIRMF")
    file = export(model, tmp_path / "step.pt2", (64, 64), queries=True)
    assert check_refiner(file, model, (64, 64)) <= TOLERANCE
    with torch.no_grad():
        model.mapping.layers[-1].bias += 1
    assert check_refiner(file, model, (64, 64)) > TOLERANCE
    for size in ((100, 64), (64, 16)):
        with pytest.raises(UserError, match=f"multiples of 16 and at least 32 pixels, not {size[0]} x {size[1]}"):
            export_refiner(RefinementStep(model), size)


def test_a_mask_branch_is_no_refiner_with_queries(tmp_path):
    path = tmp_path / "branch.pt2"
    export_mask_branch(MaskNetwork(build_model(tiny_cfg("mask_rcnn")).eval())).save(path)
    with pytest.raises(UserError, match="branch.pt2 is no refiner with queries; .* --queries"):
        ExportedRefiner(path)
