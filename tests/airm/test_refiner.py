"""The refiner: images and masks of every type, weights of every kind, memory limits; each mistake one message."""

import io
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import airm.refiner
from airm import InstanceRefiner, Refiner
from airm.coarse_to_fine import Settings
from airm.refine.memory import limit_memory
from airm.tiles import grid_axis
from pixelmask.errors import UserError
from tests.support.models import disc, tiny_airm_cfg, tiny_cfg

HEIGHT, WIDTH = 40, 52


@pytest.fixture(scope="module")
def refiner(weights):
    """Its network is replaced: the refined probability of a pixel is 0.9 coarse + 0.1 red / 255."""
    refiner = Refiner(weights, guard=None)
    refiner.model.refine = lambda image, masks, settings, progress: torch.where(
        masks.flatten(1).any(1)[:, None, None], 0.9 * masks + 0.1 * image[0] / 255, 0.0
    )
    return refiner


@pytest.fixture(scope="module")
def rgb():
    """Red is 255 in the left half and 0 in the right one."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2, 0] = 255
    pixels[..., 1] = 60
    return pixels


@pytest.fixture(scope="module")
def mask():
    return disc(HEIGHT, WIDTH, (24, 18), 12).numpy()


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as e:
        call(*args, **kwargs)
    return str(e.value)


def test_runs_the_model_that_was_saved_on_one_mask_or_several(weights, model, rgb, mask):
    refiner = Refiner(weights, guard=None)
    refined, change = refiner.refine(rgb, mask, soft=True, return_change=True)
    sample = {"image": torch.tensor(rgb).permute(2, 0, 1), "coarse_mask": torch.tensor(mask).float()[None]}
    expected = model([sample])[0]["refined_mask"][0].numpy()
    assert refined.dtype == np.float32 and refined.shape == (HEIGHT, WIDTH)
    np.testing.assert_allclose(refined, expected, atol=1e-6)
    np.testing.assert_allclose(change, expected - mask, atol=1e-6)
    masks = np.stack([mask, mask[::-1], np.zeros_like(mask)])
    together = refiner.refine(rgb, masks, soft=True)
    assert not together[2].any()
    for one, expected in zip(masks, together, strict=True):
        np.testing.assert_allclose(refiner.refine(rgb, one, soft=True), expected, atol=1e-6)


def soft_mask() -> np.ndarray:
    """0.2, 0.55 and 0.8 from left to right; the refined mask is 0.28, 0.595 or 0.495, and 0.72."""
    return np.repeat(np.float32([0.2, 0.55, 0.8]), [10, 30, WIDTH - 40])[None].repeat(HEIGHT, axis=0)


EXPECTED = np.zeros((HEIGHT, WIDTH), bool)
EXPECTED[:, 10 : WIDTH // 2] = EXPECTED[:, 40:] = True


@pytest.mark.parametrize(
    ("dtype", "full"),
    [(np.uint8, 255), (np.uint16, 65535), (np.int64, 255), (np.float32, 1), (np.float64, 1), (np.float16, 1)],
)
def test_arrays_come_back_in_their_type_and_range(refiner, rgb, dtype, full):
    given = (soft_mask() * full).astype(dtype)
    kept = given.copy()
    refined = refiner.refine(rgb, given)
    assert refined.dtype == dtype
    np.testing.assert_array_equal(refined, EXPECTED.astype(dtype) * dtype(full))
    soft, change = refiner.refine(rgb, given, soft=True, return_change=True)
    assert soft.dtype == change.dtype == np.float32
    np.testing.assert_allclose(soft[0, [0, 15, 30, 45]], [0.28, 0.595, 0.495, 0.72], atol=0.005)
    np.testing.assert_allclose(change[0, [0, 15, 30, 45]], [0.08, 0.045, -0.055, -0.08], atol=0.005)
    np.testing.assert_array_equal(given, kept)


def test_masks_of_0_and_1_come_back_so_and_labels_are_warned_of(refiner, rgb, mask, caplog):
    for dtype in (bool, np.uint8, np.int32):
        refined = refiner.refine(rgb, mask.astype(dtype))
        assert refined.dtype == dtype
        np.testing.assert_array_equal(refined, mask.astype(dtype))
    with caplog.at_level(logging.WARNING, "airm"):
        refiner.refine(rgb, mask.astype(np.uint8) * 255)
        assert not caplog.records
        refiner.refine(rgb, mask.astype(np.uint8) * 2)
    assert "labels == k" in caplog.text


def test_pillow_masks_of_any_mode_come_back_as_pillow_masks(refiner, rgb, mask):
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    palette = Image.fromarray(mask.astype(np.uint8) * 3)  # label 3 of PASCAL VOC's palette
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    transparent = Image.merge("RGBA", [Image.new("L", (WIDTH, HEIGHT), 255)] * 3 + [grey])
    wide = Image.fromarray(mask.astype(np.uint16) * 65535)
    assert (palette.mode, wide.mode) == ("P", "I;16")
    for given in (grey, grey.convert("1"), palette, wide, transparent, grey.convert("RGB"), grey.convert("LA")):
        refined = refiner.refine(rgb, given)
        assert isinstance(refined, Image.Image) and refined.mode == "L", given.mode
        np.testing.assert_array_equal(np.asarray(refined), mask * 255, err_msg=given.mode)


def test_paths_and_lists(refiner, rgb, mask, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    refined = refiner.refine(tmp_path / "image.png", str(tmp_path / "mask.png"))
    assert refined.dtype == bool
    np.testing.assert_array_equal(refined, mask)
    masks = [tmp_path / "mask.png", mask.astype(np.uint8), Image.fromarray(mask), np.stack([mask, ~mask])]
    refined, changes = refiner.refine(rgb, masks, return_change=True)
    assert [type(x) for x in refined] == [np.ndarray, np.ndarray, Image.Image, np.ndarray]
    np.testing.assert_array_equal(refined[1], mask)
    np.testing.assert_array_equal(refined[3], [mask, ~mask])
    assert [x.shape for x in changes] == [mask.shape] * 3 + [(2, *mask.shape)]
    assert refiner.refine(rgb, []) == [] and refiner.refine(rgb, mask[None][:0]).shape == (0, *mask.shape)


def test_images_of_any_kind(refiner, rgb, mask, tmp_path):
    image = Image.fromarray(rgb)
    grey = np.full((HEIGHT, WIDTH), 128, np.uint8)
    for given in (image, image.convert("RGBA"), image.convert("P"), image.convert("CMYK"), image.convert("LA")):
        path = tmp_path / ("image.tif" if given.mode == "CMYK" else "image.png")
        given.save(path)
        for source in (given, path):
            refined = refiner.refine(source, mask * np.float32(0.9), soft=True)
            red = np.asarray(given.convert("RGB"))[..., 0] / 255
            np.testing.assert_allclose(refined, 0.81 * mask + 0.1 * red, atol=1e-5, err_msg=given.mode)
    for given in (grey, Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)):
        refined = refiner.refine(given, mask, soft=True)
        np.testing.assert_allclose(refined, 0.9 * mask + 0.1 * 128 / 255, atol=1e-5)


def test_masks_that_cannot_be_used(refiner, rgb, mask, tmp_path):
    other = message(refiner.refine, rgb, mask[:-1])
    assert f"{WIDTH} x {HEIGHT - 1} pixels" in other and f"is {WIDTH} x {HEIGHT};" in other
    nan = mask.astype(np.float32)
    nan[3, 3] = np.nan
    assert all("NaN" in message(refiner.refine, rgb, x) for x in (nan, Image.fromarray(nan)))
    assert "from 0 to 255" in message(refiner.refine, rgb, mask * np.float32(255))
    assert all("0..255" in message(refiner.refine, rgb, mask * np.int32(x)) for x in (-1, 70000))
    assert all("no mask to refine" in message(refiner.refine, rgb, x) for x in (None, [mask, None]))
    assert "not Tensor" in message(refiner.refine, rgb, torch.tensor(mask))
    assert "(N, H, W)" in message(refiner.refine, rgb, mask[0])
    assert "complex64" in message(refiner.refine, rgb, mask.astype(np.complex64))
    (tmp_path / "empty.png").touch()
    assert f"cannot read mask {tmp_path / 'empty.png'}" in message(refiner.refine, rgb, tmp_path / "empty.png")
    Image.fromarray(mask[:, :-2]).save(tmp_path / "small.png")
    assert f"mask {tmp_path / 'small.png'} is 50 x 40" in message(refiner.refine, rgb, [mask, tmp_path / "small.png"])


def test_images_that_cannot_be_used(refiner, rgb, mask, tmp_path):
    assert "uint8" in message(refiner.refine, rgb / 255, mask)
    assert "(40, 52, 4)" in message(refiner.refine, np.dstack([rgb, rgb[..., 0]]), mask)
    assert "no pixels" in message(refiner.refine, rgb[:0], mask[:0])
    assert "not NoneType" in message(refiner.refine, None, mask)
    assert "absent.jpg" in message(refiner.refine, tmp_path / "absent.jpg", mask)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(buffer, "PNG")
    truncated = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    assert "cannot read the image" in message(refiner.refine, truncated, mask)


def test_unsure_pixels_keep_the_coarse_mask(weights, rgb, mask):
    free = Refiner(weights, guard=None).refine(rgb, mask, soft=True)
    limit = float(np.median(np.abs(2 * free - 1)))
    guarded = Refiner(weights, min_confidence=limit, guard=None).refine(rgb, mask, soft=True)
    unsure = np.abs(2 * free - 1) < limit
    assert 0.2 < unsure.mean() < 0.8
    np.testing.assert_array_equal(guarded[unsure], mask[unsure])
    np.testing.assert_allclose(guarded[~unsure], free[~unsure], atol=1e-6)


def test_guard_refuses_harm_and_leaves_filled_holes(weights, rgb, caplog):
    size = 200
    pixels, whole = np.zeros((size, size, 3), np.uint8), disc(size, size, (100, 100), 80).numpy()
    holed = whole & ~disc(size, size, (100, 100), 15).numpy()

    def refined(network, mask, **options):
        refiner = Refiner(weights, **options)
        refiner.model.refine = lambda image, masks, settings, progress: torch.stack([network(m) for m in masks])
        return refiner.refine(pixels, mask, soft=True)

    def fill(mask):
        return torch.from_numpy(whole).float()

    # Of native masks 1/8 of the object may change from a contour inwards and outwards, 20 pixels; of 28 cells 11
    np.testing.assert_array_equal(refined(fill, holed), whole)
    np.testing.assert_array_equal(refined(fill, holed, resolution=28)[100, 60:141:10], [1, 1, 1, 1, 0, 1, 1, 1, 1])
    small = disc(size, size, (60, 60), 40).numpy()
    elsewhere = disc(size, size, (160, 160), 30).numpy()
    both = torch.from_numpy(small | elsewhere).float()
    np.testing.assert_array_equal(refined(lambda mask: both, small), small)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with caplog.at_level(logging.WARNING, "airm"):
        unsure = refined(lambda mask: 0.4 + 0.2 * mask, np.stack([whole, np.zeros_like(whole)]))
    assert "would be uncertain" in caplog.text
    np.testing.assert_array_equal(unsure[0], whole)
    taken = refined(lambda mask: 0.4 + 0.2 * mask, whole, guard=None)
    np.testing.assert_allclose(taken, 0.4 + 0.2 * whole, atol=1e-6)


def test_config_is_given_or_in_the_checkpoint_or_beside_it(weights, tmp_path, rgb, mask):
    expected = Refiner(weights).refine(rgb, mask, soft=True)
    bare = tmp_path / "bare.pth"
    torch.save({"model": torch.load(weights)["model"]}, bare)
    error = message(Refiner, bare)
    assert str(bare) in error and "config.yaml" in error and "--config" in error
    text = tiny_airm_cfg().dump()
    (tmp_path / "other.yaml").write_text(text)
    np.testing.assert_array_equal(Refiner(bare, config=tmp_path / "other.yaml").refine(rgb, mask, soft=True), expected)
    (tmp_path / "config.yaml").write_text(text)
    np.testing.assert_array_equal(Refiner(bare).refine(rgb, mask, soft=True), expected)
    # The checkpoint's own goes before the one beside it, the one given before both
    own = tmp_path / "own.pth"
    torch.save({**torch.load(weights), "config": tiny_airm_cfg(TILE_SIZE=160).dump()}, own)
    assert Refiner(own).settings.tile_size == 160
    # Without tiles as in the paper's configs, the refiner has some
    other = Refiner(own, config=tmp_path / "config.yaml")
    assert other.settings.tile_size == 512 and other.model.settings.tile_size == 0
    assert Refiner(own, tile_size=0).settings.tile_size == 0


def test_without_weights_the_projects_own_and_of_a_folder_the_last_ones(weights, rgb, mask, tmp_path, monkeypatch):
    expected = Refiner(weights, guard=None).refine(rgb, mask, soft=True)
    monkeypatch.setattr(airm.refiner, "PRETRAINED", weights)
    np.testing.assert_array_equal(Refiner(guard=None).refine(rgb, mask, soft=True), expected)
    assert InstanceRefiner().refiner.settings == Refiner(weights).settings
    content = torch.load(weights)
    half = {n: value.half() if value.is_floating_point() else value for n, value in content["model"].items()}
    torch.save({**content, "model": half}, tmp_path / "model_0000099.pth")
    assert "model_final.pth" in message(Refiner.from_pretrained, tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000099.pth")
    refiner = Refiner.from_pretrained(tmp_path, tile_size=128)
    assert refiner.settings.tile_size == 128 and {p.dtype for p in refiner.model.parameters()} == {torch.float32}
    rounded = Refiner(str(tmp_path), guard=None).refine(rgb, mask, soft=True)
    np.testing.assert_allclose(rounded, expected, atol=0.01)
    assert (rounded != expected).any()
    torch.save(content, tmp_path / "model_final.pth")
    np.testing.assert_array_equal(Refiner(tmp_path, guard=None).refine(rgb, mask, soft=True), expected)


def test_weights_that_cannot_be_used(weights, tmp_path):
    assert "no weights" in message(Refiner, tmp_path / "absent.pth")
    (tmp_path / "empty.pth").touch()
    assert "is empty" in message(Refiner, tmp_path / "empty.pth")
    path = tmp_path / "other.pth"
    state, config = torch.load(weights)["model"], tiny_airm_cfg().dump()
    torch.save({"model": state, "config": tiny_cfg("mask_rcnn").dump()}, path)
    assert "GeneralizedRCNN" in message(Refiner, path)
    torch.save({"model": state, "config": tiny_airm_cfg(STAGE_CHANNELS=16).dump()}, path)
    assert "would stay random" in message(Refiner, path)
    torch.save({"model": build_model(tiny_cfg("mask_rcnn")).state_dict(), "config": config}, path)
    assert str(path) in message(Refiner, path)
    torch.save({"model": state, "config": config.replace("STAGE_CHANNELS", "STAGE_CHANELS")}, path)
    assert "STAGE_CHANELS" in message(Refiner, path) and str(path) in message(Refiner, path)
    for text in ("!!python/object/apply:os.system ['touch pwned']", "[1, 2]"):
        torch.save({"model": state, "config": text}, path)
        error = message(Refiner, path)
        assert str(path) in error and "config=" in error
    name = next(name for name, value in state.items() if value.dim() > 1)
    state[name].view(-1)[0] = float("nan")
    torch.save({"model": state, "config": config}, path)
    error = message(Refiner, path)
    assert str(path) in error and name in error


def test_arguments_that_cannot_be_used(weights, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "give 'cpu'" in message(Refiner, weights, device="cuda")
    assert "unknown device" in message(Refiner, weights, device="gpu")
    for device in ("mps", "meta"):
        assert f"no device {device} here" in message(Refiner, weights, device=device)
    assert "tile_size is 50" in message(Refiner, weights, tile_size=50)
    assert "tile_size is -1" in message(Refiner, weights, tile_size=-1)
    assert "max_memory is 0" in message(Refiner, weights, max_memory=0)
    assert "min_confidence is 2" in message(Refiner, weights, min_confidence=2)
    assert "resolution is -1" in message(Refiner, weights, resolution=-1)


def test_memory_limit_makes_tiles(weights, rgb, mask):
    whole = Refiner(weights, max_memory=16).refine(rgb, mask, soft=True)
    np.testing.assert_array_equal(whole, Refiner(weights).refine(rgb, mask, soft=True))
    size, settings = (1706, 2560), Settings(query_chunk=65536)
    sides = [limit_memory(gib, size, 1, settings).tile_size for gib in (0.5, 0.8, 1.2, 8)]
    assert 128 <= sides[0] < sides[1] < sides[2] and sides[3] == 0
    assert all(side % 16 == 0 for side in sides)
    assert limit_memory(8, size, 1, replace(settings, tile_size=512)).tile_size == 512
    assert limit_memory(0.8, size, 5, settings).tile_size < sides[1]
    error = message(limit_memory, 0.01, size, 1, settings)
    least = float(error.split("at least ")[1].split(" GiB")[0])
    assert 128 <= limit_memory(least, size, 1, settings).tile_size <= 192
    assert "at least" in message(limit_memory, least - 0.02, size, 1, settings)
    assert "2560 x 1706" in error and "2 masks" in message(limit_memory, 0.01, size, 2, settings)


def test_tiles_are_encoded_within_the_limit(weights, monkeypatch):
    """What the encoder is given is no larger than the tile that the limit allows."""
    refiner = Refiner(weights, max_memory=0.06)
    areas = []
    encoder = refiner.model.encoder
    monkeypatch.setattr(encoder, "forward", lambda x, f=encoder.forward: areas.append(x.shape[2:].numel()) or f(x))
    pixels = np.zeros((500, 400, 3), np.uint8)
    refiner.refine(pixels, disc(500, 400, (200, 200), 90).numpy())
    side = limit_memory(0.06, (500, 400), 1, refiner.settings).tile_size
    whole = grid_axis(500, 1, 32).padded * grid_axis(400, 1, 32).padded
    assert side > 0 and max(areas) <= side**2 < whole and len(areas) > 4


def test_threads_share_a_refiner(weights, rgb, mask):
    """Each call has its own settings: the limit asks for tiles of the large image, and for none of the small one."""
    refiner = Refiner(weights, max_memory=0.06)
    large = np.tile(rgb, (10, 8, 1)), np.tile(mask, (10, 8))
    before = refiner.settings, refiner.model.settings
    expected = [refiner.refine(*pair, soft=True) for pair in ((rgb, mask), large)]
    assert limit_memory(0.06, large[1].shape, 1, refiner.settings).tile_size > 0
    with ThreadPoolExecutor(2) as pool:
        jobs = [[pool.submit(refiner.refine, *pair, soft=True) for pair in ((rgb, mask), large)] for _ in range(3)]
        for pair in jobs:
            for job, one in zip(pair, expected, strict=True):
                np.testing.assert_allclose(job.result(), one, atol=1e-6)
    assert (refiner.settings, refiner.model.settings) == before


def test_running_out_of_memory_is_one_message(refiner, rgb, mask, monkeypatch):
    def refine(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(refiner.model, "refine", refine)
    assert f"{WIDTH} x {HEIGHT}" in message(refiner.refine, rgb, mask)
    monkeypatch.setattr(refiner.model, "refine", lambda *args: 1 + torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor"):
        refiner.refine(rgb, mask)


def test_progress_is_for_large_images(refiner, monkeypatch):
    seen = []
    monkeypatch.setattr(airm.refiner, "LARGE", 5000)
    monkeypatch.setattr(refiner.model, "refine", lambda image, masks, _, progress: seen.append(progress) or masks)
    for side in (70, 71):
        refiner.refine(np.zeros((side, side, 3), np.uint8), np.ones((side, side), bool), progress=True)
    assert seen == [False, True]


def test_precision_reaches_the_network_and_hardly_changes_masks(weights):
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    coarse = disc(150, 200, (100, 70), 50).numpy()
    answers = {}
    for precision in ("fp32", "bf16"):
        refiner, dtypes = Refiner(weights, guard=None, precision=precision), []
        refiner.model.encoder.register_forward_hook(lambda _, args, features, to=dtypes: to.append(features.dtype))
        answers[precision] = refiner.refine(image, coarse, soft=True), dtypes
    assert {torch.bfloat16} == set(answers["bf16"][1]) and {torch.float32} == set(answers["fp32"][1])
    soft, reduced = (answers[precision][0] for precision in answers)
    assert reduced.dtype == np.float32 and 0 < np.abs(soft - reduced).max() < 0.02
    assert "known are fp32, bf16, fp16" in message(Refiner, weights, precision="int8")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_compiled_masks_are_the_same(weights):
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    coarse = disc(150, 200, (100, 70), 50).numpy()
    options = {"guard": None, "tile_size": 128}
    soft, compiled = (Refiner(weights, compile=x, **options).refine(image, coarse, soft=True) for x in (False, True))
    np.testing.assert_allclose(compiled, soft, atol=1e-4)
