"""What holds for every input: codec, patches, tiles, masks in files, damaged masks, and any JSON and bytes at all."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from airm.coarse_to_fine import CoarseToFine, Settings
from airm.data.perturbation import KINDS, perturb_mask
from airm.instances.work import read_truth
from airm.tiles import ALIGNMENT, BLOCK, Plan, grid_axis, place_windows, tile_side
from patchdct import DCTMaskCodec, PatchLabel, assemble_patches, classify_patches, split_into_patches
from pixelmask.checkpoint.files import UnreadableCheckpoint, read_pickle
from pixelmask.data.coco_file import find_faults
from pixelmask.rle import decode, encode, measure, read_runs, to_rle
from pixelmask.schema import find_fault
from tests.support.models import untrained_airm

settings.register_profile("quick", derandomize=True, deadline=None, database=None, max_examples=20)
settings.register_profile("thorough", deadline=None, database=None, max_examples=1000)
settings.load_profile(os.environ.get("PROPERTIES", "quick"))

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
SIDES = st.integers(1, 700)


@given(st.integers(1, 20), st.data())
def test_codec(size, data):
    dim = data.draw(st.integers(1, size**2))
    masks = torch.from_numpy(data.draw(arrays(bool, (2, size, size))))
    whole, cut = DCTMaskCodec(size, size**2), DCTMaskCodec(size, dim)
    torch.testing.assert_close(whole.decode(whole.encode(masks)), masks.float(), rtol=0, atol=1e-4)
    vectors = cut.encode(masks)
    torch.testing.assert_close(vectors, whole.encode(masks)[:, :dim], rtol=0, atol=1e-4)
    decoded = cut.decode(vectors)  # the nearest mask of so few elements: coding it again changes nothing
    torch.testing.assert_close(cut.encode(decoded), vectors, rtol=0, atol=1e-4)
    assert (decoded**2).sum() <= masks.sum() + 1e-2  # the basis is orthonormal
    positions = torch.tensor(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4)))
    torch.testing.assert_close(cut.decode(vectors, positions), decoded[:, positions][:, :, positions])


@given(st.integers(1, 8), st.integers(1, 6), st.data())
def test_patches(patch_size, patches_of_side, data):
    side = patch_size * patches_of_side
    masks = torch.from_numpy(data.draw(arrays(bool, (2, side, side))))
    patches = split_into_patches(masks, patch_size)
    assert torch.equal(assemble_patches(patches), masks)
    for label, patch in zip(classify_patches(patches).flatten().tolist(), patches.flatten(0, 1), strict=True):
        expected = {0: PatchLabel.BACKGROUND, patch.numel(): PatchLabel.FOREGROUND}
        assert label == expected.get(int(patch.sum()), PatchLabel.MIXED)


RATIOS = st.sampled_from((0.125, 0.25, 0.3, 0.5, 1.0))


@given(SIDES, st.integers(1, 60), RATIOS, st.integers(0, 64), st.integers(0, 400), st.integers(0, 200), st.data())
def test_every_block_is_answered_by_one_tile(full, wanted, ratio, padding, tile_size, halo, data):
    grid = grid_axis(full, ratio, padding)
    assert grid.padded % ALIGNMENT == 0 and 0 <= grid.before <= grid.padded - grid.size - grid.before
    needed = data.draw(arrays(bool, (2, -(-wanted // BLOCK), 1)))
    size, side = (wanted, 1), tile_side(grid.padded, tile_size)
    windows = place_windows(needed, [grid, grid_axis(1, 1.0, 0)], size, tile_size, halo)
    answered = np.zeros(needed.shape, int)
    for window in windows:
        np.add.at(answered[window.image], tuple(window.blocks.T), 1)
        rows = window.tile.rows
        assert 0 <= rows.start < rows.stop == rows.start + side <= grid.padded and rows.start % ALIGNMENT == 0
        edges = grid.block_edges(wanted)[np.unique(window.blocks[:, 0])[[0, -1]] + (0, 1)]
        assert (rows.low, rows.high) == pytest.approx(tuple(edges))
        reach = min(halo, side // 2 - ALIGNMENT)
        assert rows.start <= max(rows.low - reach, 0) and rows.low < rows.stop
        one_block = len(np.unique(window.blocks[:, 0])) == 1
        assert one_block or rows.stop >= min(rows.high + reach, grid.padded)
    assert (answered == needed).all()
    if windows:
        plan = Plan.of(windows, [grid, grid_axis(1, 1.0, 0)], size, torch.device("cpu"))
        pixels, _ = plan.of_windows(0, 0, int(needed.sum())).pixels
        assert set(pixels.flatten().tolist()) == {
            row
            for _, block, _ in np.argwhere(needed)
            for row in range(block * BLOCK, min(block * BLOCK + BLOCK, wanted))
        }


@given(*[st.integers(1, 90)] * 2, st.sampled_from((0, 32, 48, 96)), st.integers(0, 40), st.integers(0, 40))
def test_what_all_tiles_say_is_what_comes_out(height, width, tile_size, halo, padding):
    options = Settings(tile_size=tile_size, tile_halo=halo, padding=padding, undecided=0.0)

    def step(images, masks, rows, cols, chunk, *shared):
        return torch.ones(1, 1, len(rows), len(cols))

    refiner = CoarseToFine(step, torch.zeros(1, 3, height, width), options)
    masks = torch.zeros(1, 1, height, width)
    assert not refiner.refine(masks).any()
    masks[..., height // 2, width // 2] = 1
    refined, _ = refiner.refine_ratio(0, torch.zeros(1, 1, *(axis.size for axis in refiner.grids[0])))
    assert (refined == 1).all()
    torch.testing.assert_close(refiner.refine(masks), torch.ones_like(masks))  # resized, a 1 is rounded


@pytest.fixture(scope="module")
def airm():
    return untrained_airm()


@settings(max_examples=6)
@given(height=st.integers(1, 80), width=st.integers(1, 80), tile_size=st.sampled_from((0, 64)), data=st.data())
def test_refinement_of_any_size(airm, height, width, tile_size, data):
    mask = torch.from_numpy(data.draw(arrays(bool, (1, height, width), fill=st.just(True)))).float()
    refined = airm.refine(torch.zeros(3, height, width, dtype=torch.uint8), mask)
    assert refined.shape == mask.shape and refined.isfinite().all() and 0 <= refined.min() <= refined.max() <= 1
    assert mask.any() or not refined.any()


@given(MASKS)
def test_rle_there_and_back(mask):
    rle = encode(mask)
    assert np.array_equal(decode(rle), mask) and to_rle(rle, *mask.shape) == rle
    runs = read_runs(rle["counts"])
    assert sum(runs) == mask.size and sum(runs[1::2]) == mask.sum()
    assert to_rle({"size": list(mask.shape), "counts": runs}, *mask.shape) == rle


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12), st.integers(1, 9), st.integers(1, 9))
def test_any_counts_are_a_mask_or_refused(counts, height, width):
    try:
        rle = to_rle({"size": [height, width], "counts": counts}, height, width)
    except ValueError as e:
        assert str(e).startswith("has ")
    else:
        assert decode(rle).shape == (height, width)


@given(st.lists(MASKS.filter(np.any), min_size=1, max_size=4), st.data())
def test_coco_there_and_back(masks, data):
    images = [
        {"id": i, "file_name": f"{i}.png", "height": m.shape[0], "width": m.shape[1]} for i, m in enumerate(masks)
    ]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, **measure(encode(mask))}
        for i, mask in enumerate(masks)
    ]
    for annotation, mask in zip(annotations, masks, strict=True):
        if data.draw(st.booleans()):  # as run lengths
            runs = read_runs(annotation["segmentation"]["counts"])
            annotation["segmentation"] = {"size": list(mask.shape), "counts": runs}
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "coco.json")
        path.write_text(json.dumps(content))
        truth = read_truth(str(path))
    assert truth.content == content
    for annotation, mask in zip(truth.content["annotations"], masks, strict=True):
        assert np.array_equal(decode(to_rle(annotation["segmentation"], *mask.shape)), mask)
        ys, xs = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        assert (left, top, left + width, top + height) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@given(MASKS, st.floats(0.5, 1), st.sampled_from(sorted(KINDS)), st.integers(0, 2**32))
def test_damaged_masks_keep_their_iou(mask, target, kind, seed):
    before = mask.copy()
    coarse = perturb_mask(mask, target, np.random.default_rng(seed), kind)
    assert np.array_equal(mask, before) and coarse.shape == mask.shape and coarse.dtype == bool
    union = (mask | coarse).sum()
    assert union == 0 or (mask & coarse).sum() / union >= target - 1e-9
    if mask.all() or not mask.any() or target == 1:
        assert np.array_equal(coarse, mask)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    SCALARS,
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ("id", "image_id", "category_id", "bbox", "segmentation", "size", "counts", "name", "height")
            ),
            inside,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(("images", "annotations", "categories", "info")), ANYTHING), st.booleans())
def test_any_json_has_a_fault_that_is_said(content, of_results):
    """No image of it has all that an image needs."""
    for wanted in ({}, {"required": ["images"], "integer_ids": False, "boxes": False, "masks": True}):
        fault = next(find_faults(content, **wanted))
        assert isinstance(fault, str) and "\n" not in fault and len(fault) < 500
    assert find_fault(content, dict[str, int]) is None or content


@given(st.binary(max_size=40))
def test_any_bytes_are_data_or_refused(content):
    with tempfile.NamedTemporaryFile(suffix=".pkl") as file:
        file.write(content)
        file.flush()
        try:
            read_pickle(file.name)
        except UnreadableCheckpoint as e:
            assert file.name in str(e)
