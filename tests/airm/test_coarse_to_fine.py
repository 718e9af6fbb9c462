"""The shortcuts of inference against the plain procedure: every pixel queried, no tiles; and what tiles cover."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from airm.coarse_to_fine import CoarseToFine, Settings
from airm.implicit_mapping import query_grid
from airm.meta_arch import AIRM
from airm.tiles import ALIGNMENT, BLOCK, grid_axis, place_windows, resize_reads
from tests.support.models import disc, untrained_airm


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
            axes.append(2 * centres / axis.padded - 1)
        mask = query_grid(features, model.mapping(features), *axes, cell=0.5).sigmoid()
    return mask[0]


@pytest.mark.parametrize("size", [(160, 224), (131, 307)])
@torch.no_grad()
def test_querying_what_is_read_equals_querying_all(size):
    model = untrained_airm(QUERY_CHUNK=1000, MIN_SIZE_TEST=0)
    image, mask = make_input(*size)
    torch.testing.assert_close(model.refine(image, mask), plain_refinement(model, image, mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (5, 2), (33, 47), (63, 64)])
def test_any_size(model, size):
    refined = model.refine(make_input(*size)[0], torch.ones(1, *size))
    assert refined.shape == (1, *size) and refined.isfinite().all() and refined.min() >= 0 and refined.max() <= 1


def test_several_masks_are_as_each_alone(model):
    image, mask = make_input(70, 90)
    masks = torch.cat([mask, mask.flip(2).roll(9, 1), 1 - mask, torch.zeros_like(mask)])
    together = model.refine(image, masks)
    assert together[0].max() > 0 and together[3].max() == 0  # an empty mask stays empty
    assert model.refine(image, mask[:0]).shape == (0, 70, 90)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], model.refine(image, masks[i : i + 1]))


@pytest.mark.parametrize("tile_size", [0, 96])
@pytest.mark.parametrize("width", [120, 450])  # one ratio, and two of them
def test_batches_are_single_ones(width, tile_size):
    model, size = untrained_airm(TILE_SIZE=tile_size, UNDECIDED=0.0), (60, width)
    images = torch.randint(255, (4, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    masks = torch.stack([disc(*size, (60, 30), radius) for radius in (10, 15, 20, 20)])
    masks[3] = False
    expected = torch.cat([model.refine(i, m[None]) for i, m in zip(images, masks, strict=True)])
    refined = model.refine_batch(images, masks)
    assert (expected[:3] - expected[:1]).abs().max() > 1e-3  # of different answers
    assert not refined[3].any()  # an empty mask stays empty among others
    torch.testing.assert_close(refined, expected, atol=1e-5, rtol=0)
    assert torch.equal(model.refine_batch(images, masks, replace(model.settings, min_confidence=1.0)), masks.float())


def refine_smoothly(mask: Tensor, calls: list[tuple[int, int]], settings: Settings) -> Tensor:
    """Refine (1, H, W) by a network whose answer is the mask it sees: what tiles and resizing do is all to see."""

    def step(images: Tensor, masks: Tensor, rows: Tensor, cols: Tensor, chunk: int) -> Tensor:
        calls.append(tuple(masks.shape[2:]))
        y, x = torch.meshgrid(rows, cols, indexing="ij")
        return F.grid_sample(masks, torch.stack([x, y], -1)[None], align_corners=False, padding_mode="border")

    return CoarseToFine(step, torch.zeros(1, 3, *mask.shape[1:]), settings).refine(mask[None])[0]


def test_tiles_put_each_answer_in_its_place():
    ramp = torch.linspace(0.2, 0.8, 400)[None, :, None] * torch.linspace(0.5, 1, 520)[None, None]
    whole_calls, tile_calls = [], []
    settings = Settings(ratios=(0.5, 1.0), min_size_test=0)
    whole = refine_smoothly(ramp, whole_calls, settings)
    tiled = refine_smoothly(ramp, tile_calls, replace(settings, tile_size=128))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, ramp, rtol=0, atol=4e-3)  # bilinear resizing levels the edges off
    assert len(whole_calls) == 2 and set(tile_calls) == {(128, 128)} and len(tile_calls) > 20


def test_above_the_first_ratio_only_the_boundary_is_refined():
    calls: list[tuple[int, int]] = []
    mask = torch.zeros(1, 512, 512)
    mask[:, 100:, 256:] = 1
    settings = Settings(ratios=(0.25, 1.0), min_size_test=0, tile_size=96, tile_halo=16)
    refined = refine_smoothly(mask, calls, settings)
    tiles = len(calls)
    # At the first ratio 4 windows cover 144 pixels; at the second 9 x 9 of 96 pixels cover 560, and of these the
    # boundary, an L through two thirds of them, crosses at most 3 columns and 3 rows
    assert 4 + 9 < tiles <= 4 + 3 * 9 + 3 * 5
    assert (refined[:, 200:400, 400:] == 1).all() and (refined[:, :, :100] == 0).all()


@pytest.mark.parametrize("mapping", ["AIRMF", "SIRMF"])
@torch.no_grad()
def test_only_undecided_pixels_are_asked_for_and_their_answers_are_those_of_all(mapping):
    """In the windows a grid is asked for instead, and in place of tiles the whole image, undecided everywhere."""
    settings = Settings(ratios=(0.25, 0.5, 1.0), tile_size=96, undecided=0.4, batch_pixels=20000)
    model = untrained_airm(MAPPING=mapping, QUERY_INPUTS=["mask", "image", "colour", "local"])
    asked = []
    step_at = model.step_at
    model.step_at = lambda *inputs: asked.append(inputs) or step_at(*inputs)
    image, mask = make_input(203, 310)
    refined = model.refine(image, mask, settings)
    assert 0 < sum(len(inputs[2]) * BLOCK**2 for inputs in asked[-9:]) < 203 * 310 / 2 and len(asked[0][0]) > 1
    grids = model.coarse_to_fine(model.normalise(image)[None], settings)
    grids.step_at = grids._step_at
    torch.testing.assert_close(refined, grids.refine(mask[None])[0], rtol=0, atol=1e-4)
    everywhere = model.refine(image, mask, replace(settings, tile_size=1024, undecided=0.0))
    whole = model.refine(image, mask, replace(settings, tile_size=0))
    torch.testing.assert_close(everywhere, whole, rtol=0, atol=1e-4)


class CountWaits(TorchFunctionMode):
    """Counts the calls with which a host waits for a device: what brings values to the one or to the other."""

    CALLS = ("to", "cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.CALLS:
            self.waits.append(func.__name__)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_ratio_in_tiles_waits_twice_for_the_device():
    model = untrained_airm(TILE_SIZE=64, TILE_HALO=0, PADDING=0, RATIOS=[0.5, 1.0], MIN_SIZE_TEST=0)
    image, mask = make_input(150, 200)
    passes = model.coarse_to_fine(model.normalise(image)[None])
    with CountWaits() as counter:
        _, encoded = passes.refine_ratio(1, mask[None])
    assert len(encoded) > 3 and counter.waits == [
        "cpu",
        "numpy",
        "to",
    ]  # where the mask is undecided, as an array; what is asked


@torch.no_grad()
def test_tiles_share_the_mapping_of_the_whole_image():
    model = untrained_airm(TILE_SIZE=64, TILE_HALO=0, PADDING=0, RATIOS=[0.5, 1.0], MIN_SIZE_TEST=0)
    image, mask = make_input(96, 128)
    mappings = []
    model.mapping.register_forward_hook(lambda module, inputs, parameters: mappings.append((inputs[0], parameters)))
    passes = model.coarse_to_fine(model.normalise(image)[None])
    model.refine(image, mask)
    assert len(mappings) == 2  # one for each ratio, of which the first needs no tiles
    # The second is that of image and mask, shrunk to a tile
    assert [tuple(features.shape[2:]) for features, _ in mappings] == [(12, 16), (12, 16)]
    seen = [F.interpolate(x, (48, 64), mode="bilinear", antialias=True) for x in (passes.images[1], mask[None])]
    step = passes.refine_ratio(0, F.interpolate(mask[None], (48, 64), mode="bilinear", antialias=True))[0]
    seen[1] = F.interpolate(step, (48, 64), mode="bilinear", antialias=True)
    for (weight, bias), expected in zip(mappings[1][1], model.predict(*seen), strict=True):
        torch.testing.assert_close((weight, bias), expected)


@torch.no_grad()
def test_tiles_are_near_the_whole_image():
    model = untrained_airm(TILE_HALO=48, MIN_SIZE_TEST=0)
    image, mask = make_input(300, 420)
    whole = model.refine(image, mask)
    tiled = model.refine(image, mask, replace(model.settings, tile_size=192))
    # Of untrained weights. Answers 40 pixels off their place differ by 0.04
    assert 0 < (tiled - whole).abs().mean() < 0.02


def test_ratios_below_the_smallest_size_are_left_out():
    for least, passes in ((150, 2), (1000, 1)):  # 0.5 and 1 of 300 pixels; 1 alone
        calls: list[tuple[int, int]] = []
        refine_smoothly(make_input(200, 300)[1], calls, Settings(min_size_test=least))
        assert len(calls) == passes


def test_chunks_bound_what_is_evaluated_at_once(monkeypatch):
    largest = []
    original = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda b, x, w: largest.append(x.shape[1]) or original(b, x, w))
    model = untrained_airm(QUERY_CHUNK=2000, RATIOS=[1.0])
    image, mask = make_input(320, 240)
    refined = model.refine(image, mask)
    assert max(largest[1:]) <= 2000 and largest[0] == (320 + 64) // 4 * (240 + 64) // 4
    monkeypatch.undo()
    at_once = model.refine(image, mask, replace(model.settings, query_chunk=10**9))
    torch.testing.assert_close(at_once, refined, rtol=0, atol=1e-6)


def test_guard_keeps_the_coarse_mask_where_the_model_is_not_sure(model):
    image, mask = make_input(64, 64)
    soft = model.refine(image, mask)
    limit = (2 * soft - 1).abs().median().item()
    guarded = model.refine(image, mask, replace(model.settings, min_confidence=limit))
    sure = (2 * soft - 1).abs() >= limit
    assert sure.any() and not sure.all()
    assert torch.equal(guarded[sure], soft[sure]) and torch.equal(guarded[~sure], mask[~sure])


@pytest.mark.parametrize(("n_in", "n_out"), [(40, 10), (41, 10), (9, 4), (7, 7), (5, 13), (1, 6), (6, 1)])
def test_reads_are_those_of_interpolate(n_in, n_out):
    x = torch.rand(n_in)
    (first, second), share = map(torch.from_numpy, resize_reads(n_in, n_out))
    ours = ((1 - share) * x[first] + share * x[second]).float()
    theirs = F.interpolate(x[None, None, None], (1, n_out), mode="bilinear", align_corners=False)[0, 0, 0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("n", [1, 2, 31, 33, 224, 1706, 2560, 4001])
@pytest.mark.parametrize("ratio", [0.125, 0.25, 0.5, 1.0])
def test_grids_are_aligned_and_reflect_the_image(n, ratio):
    axis = grid_axis(n, ratio, 32)
    assert axis.padded % ALIGNMENT == 0 and axis.padded >= 32 and axis.size == max(1, round(n * ratio))
    # 32 pixels of the full resolution, but for the alignment
    assert axis.padded - axis.size <= 64 * ratio or axis.padded <= max(32, axis.size + 15)
    index = axis.reflect(torch.device("cpu"))
    assert index[axis.before : axis.before + axis.size].tolist() == list(range(axis.size))
    if axis.size > 1 and axis.before:
        assert index[axis.before - 1] == 1  # the border repeats no pixel of the edge
    # The centre of the image is the centre of its pixels
    middle = axis.position(np.array((n - 1) / 2))
    assert middle.item() == pytest.approx(axis.before + axis.size / 2, abs=1e-3)


@pytest.mark.parametrize(
    ("n", "tile", "halo"), [(512, 512, 32), (528, 512, 32), (2624, 512, 32), (96, 64, 16), (4064, 384, 48)]
)
def test_windows_cover_the_grid_with_their_halo(n, tile, halo):
    grid = [grid_axis(n, 1.0, 0), grid_axis(64, 1.0, 0)]
    everything = np.ones((1, n // BLOCK, 64 // BLOCK), bool)
    assert len(place_windows(everything, grid, (n, 64), 0, halo)) == 1  # no tiles unless asked for
    windows = place_windows(everything, grid, (n, 64), tile, halo)
    assert all(window.tile.cols == (0, 64, 0, 64) for window in windows)
    spans = [window.tile.rows for window in windows]
    covered = np.concatenate([np.arange(s.low, s.high) for s in spans])
    assert covered.tolist() == list(range(n))
    for span in spans:
        assert span.stop - span.start == min(tile, n) and span.start % ALIGNMENT == 0
        assert 0 <= span.start <= span.low and span.high <= span.stop <= n
    for left, right in itertools.pairwise(spans):
        assert left.stop - left.high >= halo - 1 and right.low - right.start >= halo - ALIGNMENT // 2


def test_windows_are_as_few_as_can_be_and_in_the_middle_of_what_is_needed():
    """A square ring of 300 pixels in 1024: four windows of 256 pixels with 192 that count, where a grid has 16."""
    grid, needed = [grid_axis(1024, 1.0, 0)] * 2, np.zeros((2, 256, 256), bool)
    needed[1, 80:155, 80:155] = True
    needed[1, 82:153, 82:153] = False
    windows = place_windows(needed, grid, (1024, 1024), 256, 32)
    assert len(windows) == 4 and {window.image for window in windows} == {1}
    answered = np.concatenate([window.blocks for window in windows])
    assert sorted(answered.tolist()) == np.argwhere(needed[1]).tolist()
    for _, tile, blocks in windows:
        for span, of_axis in zip(tile, blocks.T, strict=True):
            assert (span.low, span.high) == (BLOCK * of_axis.min(), BLOCK * of_axis.max() + BLOCK)
            assert abs((span.low - span.start) - (span.stop - span.high)) <= ALIGNMENT
            assert span.start <= span.low - 32 and span.high + 32 <= span.stop


@pytest.mark.parametrize(("limit", "passes"), [(0.0, 1), (0.5, 1), (0.8, 2), (1.0, 2)])
def test_a_mask_that_moved_far_is_refined_once_more(limit, passes):
    """Each pass takes away the last 16 columns that there are: of 48, the first leaves an IoU of 2 / 3."""
    asked = []

    def step(images, masks, rows, cols, chunk):
        asked.append(len(masks))
        width = masks[:, :, :1].gt(0.5).sum(3, keepdim=True)  # (B, 1, 1, 1)
        left = (cols[None, None, None] + 1) / 2 * 64 < width - 16
        return left.float().expand(-1, -1, len(rows), -1)

    settings = Settings(ratios=[1.0], padding=0, repeat_below=limit)
    masks = torch.zeros(2, 1, 32, 64)
    masks[0, ..., :48] = 1
    masks[1, ..., :17] = 1  # which leaves one column: an IoU of 1 / 17
    refined = CoarseToFine(step, torch.zeros(2, 3, 32, 64), settings).refine(masks)
    assert refined[0, 0, 0].sum() == 48 - 16 * passes and len(asked) == (2 if limit else 1)
    assert refined[1, 0, 0].sum() == (0 if limit else 1)
