"""Shared bitmasks against Detectron2's, and how many of them a training step copies at a time."""

import pytest
import torch
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from pixelmask.data import bitmasks
from pixelmask.data.bitmasks import SharedBitMasks
from tests.support.models import tiny_cfg, training_input, untrained


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    masks = torch.nn.functional.interpolate(torch.rand(5, 1, 6, 8, generator=generator), (48, 64))[:, 0] > 0.5
    masks[3] = False
    return SharedBitMasks(masks), BitMasks(masks)


def test_selections_are_those_of_bitmasks(pair):
    for item in (slice(1, 4), torch.tensor([4, 0, 0, 2]), torch.arange(5) % 2 == 0, []):
        chosen, expected = (masks[item] for masks in pair)
        assert torch.equal(chosen.tensor, expected.tensor) and len(chosen) == len(expected)
        assert chosen.masks is pair[0].masks
        again = chosen[torch.arange(len(chosen)).flip(0)].to("cpu")
        assert torch.equal(again.tensor, expected.tensor.flip(0)) and again.device == expected.device
        assert torch.equal(chosen.nonempty(), expected.nonempty())
        assert torch.equal(chosen.get_bounding_boxes().tensor, expected.get_bounding_boxes().tensor)
    shared = pair[0]
    assert torch.equal(shared[3].tensor, shared.masks[3:4]) and shared.image_size == (48, 64)
    assert torch.equal(torch.stack(list(shared)), shared.masks)
    assert torch.equal(BitMasks.cat([shared[:2], shared[2:]]).tensor, shared.masks)


@pytest.mark.parametrize("at_once", [1, 2 * 48 * 64, 2**23])
def test_crops_are_those_of_bitmasks(pair, at_once, monkeypatch):
    monkeypatch.setattr(bitmasks, "_PIXELS_AT_ONCE", at_once)
    boxes = torch.tensor([[3.0, 4, 60, 40], [-2, 1.5, 30, 50], [10, 10, 11, 11]])
    for rows in (torch.tensor([0, 4, 0]), torch.tensor([], dtype=torch.int64)):
        chosen, expected = (masks[rows].crop_and_resize(boxes[: len(rows)], 28) for masks in pair)
        assert torch.equal(chosen, expected) and chosen.shape == (len(rows), 28, 28)
    with pytest.raises((AssertionError, ValueError)):
        pair[0].crop_and_resize(boxes, 28)


class MasksMade(TorchDispatchMode):
    """Notes how many masks of the image's size an operation made at most."""

    def __init__(self, size):
        super().__init__()
        self.size, self.most = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.shape[-2:] == (self.size, self.size):
            self.most = max(self.most, made.numel() // self.size**2)
        return made


@pytest.mark.parametrize(("head", "shared"), [("mask_rcnn", True), ("patchdct", True), ("mask_rcnn", False)])
def test_training_copies_few_masks_at_a_time(head, shared, monkeypatch):
    size = 96
    monkeypatch.setattr(bitmasks, "_PIXELS_AT_ONCE", 4 * size**2)
    cfg = tiny_cfg(head)
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 64
    sample = training_input(3, size)
    if shared:
        sample["instances"].gt_masks = SharedBitMasks(sample["instances"].gt_masks.tensor)
    with EventStorage(), MasksMade(size) as made:
        untrained(cfg).train()([sample])
    # The three channels of the image, and four masks; Detectron2 copies them to all proposals
    assert made.most == 4 if shared else made.most > 32
