"""The DCT mask codec: masks to short vectors and back (PatchDCT, Sec. 3.1, Eq. 1 and 2). Imports torch alone.

Letters: K side of a mask in pixels, N length of a DCT vector, F frequencies per axis that the N elements touch.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelmask.errors import UserError


def dct_matrix(size: int, num_frequencies: int | None = None) -> Tensor:
    """Return the first rows of the orthonormal DCT-II matrix.

    Args:
        size: K, the number of samples.
        num_frequencies: F <= K, the number of rows; all K if None.

    Returns:
        (F, K) float32; row u is ``sqrt(2 / K) * C(u) * cos((2x + 1) * u * pi / 2K)`` over x, ``C(0) = 1 / sqrt(2)``.
    """
    x = torch.arange(size, dtype=torch.float64)
    u = torch.arange(num_frequencies or size, dtype=torch.float64)
    matrix = torch.cos((2 * x + 1) * u[:, None] * (math.pi / (2 * size))) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def zigzag_order(size: int) -> list[tuple[int, int]]:
    """Return the zigzag scan of a square: its size * size (row, column) pairs in order.

    Anti-diagonal i runs from (i, 0) up to (0, i) where i is even, and back down where it is odd.
    """
    order = []
    for i in range(2 * size - 1):
        rows = range(max(0, i - size + 1), min(i, size - 1) + 1)
        order += [(row, i - row) for row in (reversed(rows) if i % 2 == 0 else rows)]
    return order


def nearest_positions(in_size: int, out_size: int) -> Tensor:
    """Return the source index of each output sample of a nearest-neighbour resize: floor(i * in_size / out_size)."""
    return torch.arange(out_size) * in_size // out_size


class DCTMaskCodec(nn.Module):
    """Encode K x K masks as the first N coefficients of their 2-D DCT in zigzag order, and decode them.

    Both directions are products with one fixed cosine basis, cut to the F frequencies that the N coefficients touch
    (24 of 112 for N = 300): nothing complex, no float64, no transform library. The arithmetic is in float32 also under
    autocast; results have the dtype of the input.
    """

    basis: Tensor
    scan_index: Tensor
    spectrum_index: Tensor

    def __init__(self, mask_size: int, vector_dim: int):
        """
        Args:
            mask_size: K.
            vector_dim: N, at most K * K.

        Raises:
            UserError: if N is not in 1..K * K.
        """
        super().__init__()
        if not 1 <= vector_dim <= mask_size**2:
            raise UserError(
                f"a {mask_size} x {mask_size} mask or patch has 1 to {mask_size**2} DCT elements, not {vector_dim}: "
                "see DCT_VECTOR_DIM and PATCH_DCT_VECTOR_DIM in MODEL.ROI_MASK_HEAD"
            )
        self.mask_size = mask_size
        self.vector_dim = vector_dim
        scan = zigzag_order(mask_size)[:vector_dim]
        num_frequencies = max(map(max, scan)) + 1
        # The spectrum is kept transposed (column, row), so that two right-hand products give a row-major mask
        scan_index = [column * num_frequencies + row for row, column in scan]
        # Where each element of the spectrum stands in a vector; those beyond N point behind its end
        spectrum_index = [vector_dim] * num_frequencies**2
        for i, index in enumerate(scan_index):
            spectrum_index[index] = i
        self.register_buffer("basis", dct_matrix(mask_size, num_frequencies), persistent=False)
        self.register_buffer("scan_index", torch.tensor(scan_index), persistent=False)
        self.register_buffer("spectrum_index", torch.tensor(spectrum_index), persistent=False)

    def extra_repr(self) -> str:
        return f"mask_size={self.mask_size}, vector_dim={self.vector_dim}"

    def encode(self, masks: Tensor) -> Tensor:
        """Encode masks (Eq. 1).

        Args:
            masks: (..., K, K) of any dtype, values usually in {0, 1} or [0, 1].

        Returns:
            (..., N) coefficients in zigzag order; float32 for masks of integers or booleans.
        """
        dtype = masks.dtype if masks.is_floating_point() else torch.float32
        with torch.autocast(masks.device.type, enabled=False):
            basis = self.basis.float().t()
            spectrum = (masks.float() @ basis).transpose(-1, -2) @ basis
        return spectrum.flatten(-2)[..., self.scan_index].to(dtype)

    def decode(self, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        """Decode vectors, the elements beyond N taken as zero (Eq. 2).

        Args:
            vectors: (..., N) coefficients in zigzag order.
            positions: (S,) int64 rows, which serve as columns too, to decode; all K of them if None. Costs S * S
                pixels, not K * K.

        Returns:
            (..., S, S) soft masks, nominally in [0, 1] (not clipped).
        """
        num_frequencies = self.basis.shape[0]
        with torch.autocast(vectors.device.type, enabled=False):
            basis = self.basis.float() if positions is None else self.basis.float()[:, positions]
            spectrum = F.pad(vectors.float(), (0, 1))[..., self.spectrum_index]
            spectrum = spectrum.unflatten(-1, (num_frequencies, num_frequencies))
            masks = (spectrum @ basis).transpose(-1, -2) @ basis
        return masks.to(vectors.dtype)
