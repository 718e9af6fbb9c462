import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from airm.tiling import ALIGNMENT, grid_axis, resize_reads, split_axis


@pytest.mark.parametrize(("n_in", "n_out"), [(40, 10), (41, 10), (9, 4), (7, 7), (5, 13), (1, 6), (6, 1)])
def test_reads_are_those_of_interpolate(n_in, n_out):
    x = torch.rand(n_in)
    reads = resize_reads(n_in, n_out, x.device)
    ours = (x[reads.indices] * reads.weights).sum(0)
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
    middle = axis.position(torch.tensor((n - 1) / 2))
    assert middle.item() == pytest.approx(axis.before + axis.size / 2, abs=1e-3)


@pytest.mark.parametrize(
    ("n", "tile", "halo"), [(512, 512, 32), (528, 512, 32), (2624, 512, 32), (96, 64, 16), (4064, 384, 48)]
)
def test_windows_cover_the_grid_with_their_halo(n, tile, halo):
    spans = split_axis(n, tile, halo)
    covered = np.concatenate([np.arange(s.low, s.high) for s in spans])
    assert covered.tolist() == list(range(n))
    for span in spans:
        assert span.stop - span.start == min(tile, n) and span.start % ALIGNMENT == 0
        assert 0 <= span.start <= span.low and span.high <= span.stop <= n
    for left, right in itertools.pairwise(spans):
        assert left.stop - left.high >= halo - 1 and right.low - right.start >= halo - ALIGNMENT // 2


def test_no_tiles_unless_asked_for():
    assert len(split_axis(6000, 0, 32)) == 1
