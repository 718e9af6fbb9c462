import torch

from patchdct import PatchLabel, assemble_patches, classify_patches, split_into_patches
from patchdct.patches import fill_uniform_patches


def test_split_by_hand_with_a_non_symmetric_mask():
    masks = torch.arange(16).reshape(1, 4, 4)
    patches = split_into_patches(masks, 2)
    assert patches[0].tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, 7]], [[8, 9], [12, 13]], [[10, 11], [14, 15]]]


def test_split_and_assemble_are_inverse_both_ways():
    masks = torch.rand(3, 112, 112)
    assert torch.equal(assemble_patches(split_into_patches(masks, 8)), masks)
    patches = torch.rand(2, 196, 8, 8)
    assert torch.equal(split_into_patches(assemble_patches(patches), 8), patches)


def test_labels_count_pixels():
    patches = torch.zeros(5, 8, 8)
    patches[1] = 1
    patches[2, 3, 4] = 1
    patches[3] = 1
    patches[3, 0, 0] = 0
    labels = [PatchLabel.BACKGROUND, PatchLabel.FOREGROUND, PatchLabel.MIXED, PatchLabel.MIXED, PatchLabel.BACKGROUND]
    for dtype in (torch.bool, torch.float32, torch.bfloat16):
        assert classify_patches(patches.to(dtype)).tolist() == labels


def test_empty_batches():
    assert split_into_patches(torch.zeros(0, 112, 112), 8).shape == (0, 196, 8, 8)
    assert assemble_patches(torch.zeros(0, 196, 8, 8)).shape == (0, 112, 112)
    assert classify_patches(torch.zeros(0, 196, 8, 8, dtype=torch.bool)).shape == (0, 196)


def test_uniform_patches_are_filled_and_mixed_ones_left():
    patches = torch.full((3, 2, 2), 0.4)
    labels = torch.tensor([PatchLabel.BACKGROUND, PatchLabel.MIXED, PatchLabel.FOREGROUND])
    filled = fill_uniform_patches(patches, labels)
    torch.testing.assert_close(filled[:, 0, 0], torch.tensor([0.0, 0.4, 1.0]))
