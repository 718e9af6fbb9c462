"""The shortcuts of inference against the plain procedure: every pixel queried, no tiles."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor
from torch.nn import functional as F

from airm.coarse_to_fine import CoarseToFine, Settings
from airm.meta_arch import AIRM
from airm.query import Axis, query_grid
from airm.tiling import grid_axis
from tests.support.models import disc, tiny_airm_cfg


def make_model(**airm) -> AIRM:
    torch.manual_seed(0)
    return build_model(tiny_airm_cfg(**airm)).eval()


def make_input(height: int, width: int) -> tuple[Tensor, Tensor]:
    image = torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return image, disc(height, width, (width / 2, height / 2), min(height, width) / 3).float()[None]


def plain_refinement(model: AIRM, image: Tensor, mask: Tensor) -> Tensor:
    """Sec. 4.3 written out: at each ratio resize, pad, encode, query each pixel of the full resolution."""
    image = ((image.float() - model.pixel_mean) / model.pixel_std)[None]
    mask = mask[None]
    height, width = image.shape[2:]
    for ratio in model.settings.ratios:
        grid = [grid_axis(n, ratio, model.settings.padding) for n in (height, width)]
        size = [axis.size for axis in grid]
        x = torch.cat(
            [
                F.interpolate(image, size, mode="bilinear", antialias=True),
                2 * F.interpolate(mask, size, mode="bilinear", antialias=ratio == model.settings.ratios[0]) - 1,
            ],
            dim=1,
        )
        border = [n for axis in grid[::-1] for n in (axis.before, axis.padded - axis.size - axis.before)]
        features = model.encoder(F.pad(x, border, mode="reflect"))
        axes = []
        for axis, n in zip(grid, (height, width), strict=True):
            centres = (torch.arange(n) + 0.5) / n * axis.size + axis.before  # in pixels of the padded grid
            axes.append(Axis(2 * centres / axis.padded - 1, 0.5))
        mask = query_grid(features, model.mapping(features), *axes, 10**9).sigmoid()
    return mask[0]


@pytest.mark.parametrize("size", [(160, 224), (131, 307)])
@torch.no_grad()
def test_querying_what_is_read_equals_querying_all(size):
    model = make_model(QUERY_CHUNK=1000, MIN_SIZE_TEST=0)
    image, mask = make_input(*size)
    torch.testing.assert_close(model.refine(image, mask), plain_refinement(model, image, mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (5, 2), (33, 47), (63, 64)])
def test_any_size(size):
    refined = make_model().refine(make_input(*size)[0], torch.ones(1, *size))
    assert refined.shape == (1, *size) and refined.isfinite().all() and refined.min() >= 0 and refined.max() <= 1


def test_an_empty_mask_stays_empty_and_no_mask_gives_none():
    image, mask = make_input(40, 50)
    model = make_model()
    refined = model.refine(image, torch.cat([mask, torch.zeros_like(mask)]))
    assert refined[0].max() > 0 and refined[1].max() == 0
    assert model.refine(image, mask[:0]).shape == (0, 40, 50)


def test_several_masks_are_as_each_alone():
    image, mask = make_input(70, 90)
    masks = torch.cat([mask, mask.flip(2).roll(9, 1), 1 - mask])
    model = make_model()
    together = model.refine(image, masks)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], model.refine(image, masks[i : i + 1]))


def smoother(calls: list[tuple[int, int]]):
    """An encoder whose answer is the mask it sees: what tiles and resizing do to it is all there is to see."""

    def encode(image: Tensor, mask: Tensor):
        calls.append(tuple(mask.shape[2:]))

        def answer(rows: Axis, cols: Axis) -> Tensor:
            y, x = torch.meshgrid(rows.positions, cols.positions, indexing="ij")
            return F.grid_sample(mask, torch.stack([x, y], -1)[None], align_corners=False, padding_mode="border")

        return answer

    return encode


def test_tiles_put_each_answer_in_its_place():
    ramp = torch.linspace(0.2, 0.8, 400)[None, :, None] * torch.linspace(0.5, 1, 520)[None, None]
    image, whole_calls, tile_calls = torch.zeros(3, 400, 520), [], []
    settings = Settings(ratios=(0.5, 1.0), min_size_test=0)
    whole = CoarseToFine(image, smoother(whole_calls), settings, 0.5).refine(ramp)
    tiled = CoarseToFine(image, smoother(tile_calls), settings._replace(tile_size=128), 0.5).refine(ramp)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, ramp, rtol=0, atol=4e-3)  # bilinear resizing levels the edges off
    assert len(whole_calls) == 2 and set(tile_calls) == {(128, 128)} and len(tile_calls) > 20


def test_above_the_first_ratio_only_the_boundary_is_refined():
    calls: list[tuple[int, int]] = []
    mask = torch.zeros(1, 512, 512)
    mask[:, 100:, 256:] = 1
    settings = Settings(ratios=(0.25, 1.0), min_size_test=0, tile_size=96, tile_halo=16)
    refined = CoarseToFine(torch.zeros(3, 512, 512), smoother(calls), settings, 0.5).refine(mask)
    tiles = len(calls)
    # At the first ratio 4 windows cover 144 pixels; at the second 9 x 9 of 96 pixels cover 560, and of these the
    # boundary, an L through two thirds of them, crosses at most 3 columns and 3 rows
    assert 4 + 9 < tiles <= 4 + 3 * 9 + 3 * 5
    assert (refined[:, 200:400, 400:] == 1).all() and (refined[:, :, :100] == 0).all()


@torch.no_grad()
def test_tiles_are_near_the_whole_image():
    model = make_model(TILE_HALO=48, MIN_SIZE_TEST=0)
    image, mask = make_input(300, 420)
    whole = model.refine(image, mask)
    model.settings = model.settings._replace(tile_size=192)
    # Untrained weights, whose predicted parameters differ from tile to tile: 0.016 was measured. Answers 40 pixels off
    # their place differ by 0.04
    assert (model.refine(image, mask) - whole).abs().mean() < 0.02


def test_ratios_below_the_smallest_size_are_left_out():
    calls: list[tuple[int, int]] = []
    mask = make_input(200, 300)[1]
    CoarseToFine(torch.zeros(3, 200, 300), smoother(calls), Settings(min_size_test=150), 0.5).refine(mask)
    assert len(calls) == 2  # 0.5 and 1 of 300 pixels
    calls.clear()
    CoarseToFine(torch.zeros(3, 200, 300), smoother(calls), Settings(min_size_test=1000), 0.5).refine(mask)
    assert len(calls) == 1


def test_chunks_bound_what_is_evaluated_at_once(monkeypatch):
    largest = []
    original = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda b, x, w: largest.append(x.shape[1]) or original(b, x, w))
    model = make_model(QUERY_CHUNK=2000, RATIOS=[1.0])
    image, mask = make_input(320, 240)
    refined = model.refine(image, mask)
    assert max(largest[1:]) <= 2000 and largest[0] == (320 + 64) // 4 * (240 + 64) // 4
    monkeypatch.undo()
    model.query_chunk = 10**9
    torch.testing.assert_close(model.refine(image, mask), refined, rtol=0, atol=1e-6)


def test_guard_keeps_the_coarse_mask_where_the_model_is_not_sure():
    image, mask = make_input(64, 64)
    model = make_model()
    soft = model.refine(image, mask)
    model.min_confidence = (2 * soft - 1).abs().median().item()
    guarded = model.refine(image, mask)
    sure = (2 * soft - 1).abs() >= model.min_confidence
    assert sure.any() and not sure.all()
    assert torch.equal(guarded[sure], soft[sure]) and torch.equal(guarded[~sure], mask[~sure])
