"""What the mapping sees at a query besides the features: computed by hand, and the same wherever it is computed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from airm.coarse_to_fine import Settings
from airm.cost import pass_cost
from airm.data.dataset_mapper import RefinementDatasetMapper
from airm.implicit_mapping import SIRMF, pixel_centres, query_grid, sample_grid
from airm.query_inputs import colour_table, computed_inputs, num_computed
from airm.query_inputs.colour import BINS
from airm.query_inputs.local_fit import local_fit
from airm.query_inputs.random_walk import LEAK, SHARPNESS, random_walk
from pixelmask.errors import UserError
from tests.support.models import refinement_batch, tiny_airm_cfg, untrained

ALL = ["mask", "image", "colour", "local", "walk"]
COMPUTED_CHANNELS = 13


def scene(height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    """(1, 3, H, W) in [0, 1]: a disc on a ground, with noise; (1, 1, H, W): the disc, moved by 4 pixels."""
    torch.manual_seed(0)
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    disc, moved = (((y - height / 2) ** 2 + (x - width / 2 - dx) ** 2 < 20**2).float() for dx in (0, 4))
    colours = torch.tensor([0.8, 0.3, 0.2])[:, None, None] * disc + torch.tensor([0.2, 0.5, 0.6])[:, None, None] * (
        1 - disc
    )
    return (colours + 0.02 * torch.randn(3, height, width)).clamp(0, 1)[None], moved[None, None]


def test_colour_ratio_by_hand():
    """Two colours, far apart: 30 of 40 pixels of one are under the mask, and none of the other's 60."""
    image = torch.zeros(1, 3, 10, 10)
    image[..., 4:, :] = 1
    mask = torch.zeros(1, 1, 10, 10)
    mask[..., :3, :] = 1
    ratio = computed_inputs(image, mask, ["colour"])
    # In the corner of the cube, half of a bin's count is lost to each of three channels' sides: (3 / 4)^3 stay nearby
    inside = 30 * 0.5**3
    outside = [10 * 0.5**3, 60 * 0.5**3]
    sums = 30 * 0.75**3, 70 * 0.75**3
    prior = 2 / BINS**3
    first = math.log((inside + prior) / (sums[0] + 2)) - math.log((outside[0] + prior) / (sums[1] + 2))
    assert ratio[..., :4, :].numpy() == pytest.approx(first / 4, abs=1e-5)
    assert ratio[..., 4:, :].numpy() == pytest.approx(-1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_of_one_value_say_nothing_extreme(value: float):
    image, mask = scene()
    found = computed_inputs(image, torch.full_like(mask, value), ALL)
    assert found.shape == (1, COMPUTED_CHANNELS, 64, 96) and found.isfinite().all() and found.abs().max() <= 1
    fits, means, left, walks = found[:, 1:10:3], found[:, 2:10:3], found[:, 3:10:3], found[:, 10:]
    for part in (fits, means, walks):
        assert part.numpy() == pytest.approx(2 * value - 1, abs=1e-4)
    assert left.numpy() == pytest.approx(-1, abs=1e-4)


def test_a_contour_that_is_off_moves_to_the_edge():
    image, mask = scene()
    disc = image[:, :1] > 0.5
    colour, fit, walk = computed_inputs(image, mask, ["colour"]), local_fit(image, mask, 2), random_walk(image, mask, 2)
    found = (mask > 0.5, colour > 0, fit[:, :1] > 0, walk > 0)
    mask_is, colour_is, fit_is, walk_is = ((x != disc).sum() for x in found)
    assert mask_is > 300 and colour_is < mask_is / 10 and fit_is < mask_is / 2 and walk_is < mask_is / 4


def test_local_fit_is_least_squares():
    """With windows that hold the whole of a small picture, all pixels share one function, of shrunken pixels."""
    torch.manual_seed(1)
    image, mask = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)
    small = torch.nn.functional.avg_pool2d(torch.cat([image, mask], 1), 2)[0].flatten(1).double().numpy()
    colours, values = small[:3].T, small[3]
    centred = colours - colours.mean(0)
    slopes = np.linalg.solve(centred.T @ centred / 16 + 1e-4 * np.eye(3), centred.T @ values / 16)
    expected = image[0].permute(1, 2, 0).double().numpy() @ slopes + values.mean() - colours.mean(0) @ slopes
    found, mean, left = local_fit(image, mask, 2)[0].numpy()
    assert found == pytest.approx(np.clip(2 * expected - 1, -1, 1), abs=1e-4)
    assert abs(found).max() > 0.2
    assert mean == pytest.approx(2 * values.mean() - 1, abs=1e-5)
    # Noise is taken for what the fit has not to explain: the loss of ridge regression
    ridge = ((values - values.mean() - centred @ slopes) ** 2).mean() + 1e-4 * slopes @ slopes
    assert left == pytest.approx(8 * ridge - 1, abs=1e-5) and left.max() < 8 * values.var() - 1


def test_random_walk_solves_its_equations():
    """In a line of pixels whose ends are certain, the shares are those of resistors: with an edge, nearly all its."""
    image, mask = torch.full((1, 3, 1, 19), 0.5), torch.zeros(1, 1, 1, 19)
    mask[..., :9] = 1
    image[..., 7:] += 0.1
    found = random_walk(image, mask, 1)[0, 0, 0]
    assert found[:5].tolist() == [1] * 5 and found[13:].tolist() == [-1] * 6
    ease = np.full(9, 1 + LEAK)
    ease[2] = math.exp(-SHARPNESS * 3 * 0.1**2) + LEAK  # between pixels 6 and 7; certain are 4 and 13
    potential = 1 - 2 * np.cumsum(1 / ease) / (1 / ease).sum()
    assert found[5:13].numpy() == pytest.approx(potential[:8], abs=0.05)
    assert found[6] > 0.9 and found[7] < -0.9


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 47)])
def test_any_size(size: tuple[int, int]):
    image, mask = torch.rand(2, 3, *size), torch.rand(2, 1, *size)
    found = computed_inputs(image, mask, ALL)
    assert found.shape == (2, COMPUTED_CHANNELS, *size) and found.isfinite().all()
    each = torch.cat([computed_inputs(image[i : i + 1], mask[i : i + 1], ALL) for i in range(2)])
    assert torch.allclose(found, each, atol=1e-5)


def test_maps_are_further_inputs_of_the_first_layer():
    torch.manual_seed(0)
    features, maps = torch.randn(2, 5, 3, 4), torch.randn(2, 2, 6, 8)
    rows, cols = pixel_centres(7, features), pixel_centres(9, features)
    mapping = SIRMF(5, [6], map_channels=2)
    (weight, bias), last = mapping(features)
    without = [(weight[..., :-2], bias), last]
    zeros = query_grid(features, [(weight, bias), last], rows, cols, 0.5, maps=torch.zeros_like(maps))
    assert torch.allclose(zeros, query_grid(features, without, rows, cols, 0.5))
    # Constant maps are a change of the bias
    constant = torch.tensor([0.3, -0.7])
    moved = [(weight[..., :-2], bias + weight[..., -2:] @ constant), last]
    found = query_grid(
        features, [(weight, bias), last], rows, cols, 0.5, 20, constant.view(1, 2, 1, 1).expand(2, -1, 6, 8)
    )
    assert torch.allclose(found, query_grid(features, moved, rows, cols, 0.5), atol=1e-5)
    at_centres = sample_grid(maps, pixel_centres(6, maps), pixel_centres(8, maps))
    assert torch.allclose(at_centres, maps, atol=1e-5)
    finer = sample_grid(maps, pixel_centres(12, maps), pixel_centres(16, maps))
    assert torch.allclose(finer, torch.nn.functional.interpolate(maps, scale_factor=2, mode="bilinear"), atol=1e-5)


@pytest.fixture(scope="module")
def model():
    """Of all inputs, untrained; the first layer is made to look at them, as it does at the features."""
    return untrained(tiny_airm_cfg(QUERY_INPUTS=ALL)).eval()


def test_inputs_reach_encoder_and_mapping_and_cost_their_columns(model):
    plain = untrained(tiny_airm_cfg()).eval()
    assert model.encoder.backbone.patch_embed1.proj.in_channels == 4 + num_computed(ALL) == 4 + COMPUTED_CHANNELS
    assert model.mapping.shapes[0][1] - plain.mapping.shapes[0][1] == 4 + COMPUTED_CHANNELS
    costs = [pass_cost(m, (64, 96), settings=replace(m.settings, ratios=(1.0,), padding=0)) for m in (model, plain)]
    assert costs[0].query - costs[1].query == 64 * 96 * (4 + COMPUTED_CHANNELS) * model.mapping.shapes[0][0]
    assert costs[0].encoder > costs[1].encoder


@pytest.mark.parametrize("name", ALL)
def test_each_input_changes_the_answer(name: str):
    """What differs at one pixel changes the answer there by way of the query, whatever the features are."""
    torch.manual_seed(0)
    found = untrained(tiny_airm_cfg(QUERY_INPUTS=[name])).eval()
    image, mask = scene()
    inputs = found.encoder_input(image, mask)
    features, centres = found.encoder(inputs), [pixel_centres(n, image) for n in image.shape[2:]]
    other = inputs.clone()
    other[:, :, 10, 20] += 1
    answers = [found.query(features, *centres, maps=found.query_maps(x)) for x in (inputs, other)]
    changed = ((answers[0] - answers[1]).abs() > 1e-4)[0, 0].nonzero().tolist()
    assert changed == [[10, 20]]


def test_tiles_see_the_colours_of_the_whole_image(model):
    image, mask = scene(80, 144)
    settings = Settings(ratios=(0.5, 1.0), padding=16, tile_size=64, tile_halo=16)
    tables, windows = [], []
    passes = model.coarse_to_fine(model.normalise(255 * image), settings)

    def step_at(images, masks, window, rows, cols, chunk, parameters, table):
        windows.extend(table)
        return model.step_at(images, masks, window, rows, cols, chunk, parameters, table)

    def colours(images, masks):
        tables.append(model.colours(images, masks))
        return tables[-1]

    passes.step_at, passes.colours = step_at, colours
    passes.refine(mask)
    assert len(tables) == 2 and len(windows) > 4 and all(any(torch.equal(w, t[0]) for t in tables) for w in windows)
    small = torch.nn.functional.interpolate(torch.cat([image, mask], 1), (40, 72), mode="bilinear", antialias=True)
    assert torch.allclose(tables[0], colour_table(small[:, :3], small[:, 3:]), atol=1e-3)


def test_batches_are_single_ones(model):
    image, mask = scene(80, 144)
    settings = Settings(ratios=(0.5, 1.0), padding=16)
    images = (torch.cat([image, image.flip(3)]) * 255).round()
    masks = torch.cat([mask, mask.flip(3)])[:, 0]
    together = model.refine_batch(images, masks, settings)
    for i in range(2):
        alone = model.refine(images[i], masks[i : i + 1], settings)
        assert torch.allclose(together[i], alone[0], atol=1e-4)


def test_training_sees_the_colours_of_the_whole_picture():
    mapper = RefinementDatasetMapper(
        True, crop_size=32, color_jitter=(0, 0, 0, 0), grayscale_prob=0, coarse_masks=["truth"], query_inputs=ALL
    )
    image, _ = scene()
    pixels, mask = (255 * image[0]).byte().permute(1, 2, 0).numpy(), (image[0, 0] > 0.5).numpy()
    crop, truth, coarse, table = mapper.augment(pixels, mask, np.random.default_rng(0))
    colours, soft = torch.from_numpy(pixels).permute(2, 0, 1) / 255, torch.from_numpy(mask)[None].float()
    assert torch.equal(table, colour_table(colours[None], soft[None])[0]) and np.array_equal(coarse, truth)
    sample = {
        "image": torch.from_numpy(crop.transpose(2, 0, 1).copy()),
        "coarse_mask": torch.from_numpy(coarse.astype(np.float32))[None],
        "mask": torch.from_numpy(truth.astype(np.float32))[None],
    }
    model = untrained(tiny_airm_cfg(QUERY_INPUTS=ALL, AFFINITY=False)).train()
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for colours in (table, 0 * table):
        model([{**sample, "colours": colours}] * 2)
    assert seen[0][:, 4].abs().max() > 0.5 and not seen[1][:, 4].any()
    assert torch.equal(seen[0][:, 5:], seen[1][:, 5:])


def test_training_goes_on_from_its_own_result():
    model = untrained(tiny_airm_cfg(QUERY_INPUTS=ALL, SECOND_PASS_PROB=1.0, AFFINITY=False)).train()
    samples = refinement_batch(2, 64)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    sum(model(samples).values()).backward()
    first, second = seen
    coarse = torch.stack([2 * x["coarse_mask"] - 1 for x in samples])
    assert torch.equal(first[:, 3:4], coarse)
    assert torch.equal(second[:, :3], model.normalise(torch.stack([x["image"] for x in samples])))
    assert not torch.allclose(second[:, 3:4], coarse) and second[:, 3:4].abs().max() < 1  # soft
    assert model.mapping.linear.weight.grad.abs().sum() > 0


def test_an_unknown_input_is_named():
    with pytest.raises(UserError, match="MODEL.AIRM.QUERY_INPUTS has 'color'; known are mask, image, colour, local"):
        untrained(tiny_airm_cfg(QUERY_INPUTS=["mask", "color"]))
