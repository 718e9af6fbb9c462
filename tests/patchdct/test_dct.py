import subprocess
import sys

import pytest
import scipy.fft
import torch

from patchdct import DCTMaskCodec, dct_matrix, zigzag_order
from patchdct.dct import nearest_positions
from pixelmask.errors import UserError

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.3}


def test_zigzag_and_one_pixel_by_hand():
    order = [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (1, 2), (2, 1), (2, 2)]
    # Anti-diagonal 1 runs from (0, 1) down to (1, 0), anti-diagonal 2 from (2, 0) up to (0, 2)
    assert zigzag_order(3) == order
    assert DCTMaskCodec(112, 300).basis.shape == (24, 112)
    # A 2 x 2 mask with its first pixel set has all four coefficients 1/2 (Eq. 1)
    vector = DCTMaskCodec(2, 4).encode(torch.tensor([[1, 0], [0, 0]]))
    torch.testing.assert_close(vector, torch.full((4,), 0.5))
    vector = DCTMaskCodec(8, 6).encode(torch.ones(8, 8, dtype=torch.bool))
    torch.testing.assert_close(vector, torch.tensor([8.0, 0, 0, 0, 0, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 8, 112])
def test_matrix_is_orthonormal_and_scipys(size):
    matrix = dct_matrix(size)
    torch.testing.assert_close(matrix @ matrix.t(), torch.eye(size), atol=1e-5, rtol=0)
    expected = torch.from_numpy(scipy.fft.dct(torch.eye(size).double().numpy(), axis=0, norm="ortho")).float()
    torch.testing.assert_close(matrix, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "dim"), [(8, 6), (8, 64), (112, 300), (128, 200), (4, 3)])
def test_encode_is_scipys_dctn_in_zigzag_order(size, dim, dtype):
    masks = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) > 0.4
    spectrum = torch.from_numpy(scipy.fft.dctn(masks.double().numpy(), axes=(1, 2), norm="ortho"))
    rows, columns = zip(*zigzag_order(size)[:dim], strict=True)
    vectors = DCTMaskCodec(size, dim).encode(masks.to(dtype))
    assert vectors.dtype == dtype
    torch.testing.assert_close(vectors.double(), spectrum[:, rows, columns], atol=TOLERANCE[dtype], rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_is_scipys_idctn_of_the_zero_filled_spectrum(dtype):
    vectors = torch.randn(2, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    spectrum = torch.zeros(2, 112, 112, dtype=torch.float64)
    rows, columns = zip(*zigzag_order(112)[:300], strict=True)
    spectrum[:, rows, columns] = vectors.double()
    expected = torch.from_numpy(scipy.fft.idctn(spectrum.numpy(), axes=(1, 2), norm="ortho"))
    masks = DCTMaskCodec(112, 300).decode(vectors)
    assert masks.dtype == dtype
    torch.testing.assert_close(masks.double(), expected, atol=2e-5 if dtype == torch.float32 else 5e-3, rtol=0.01)


def test_rows_and_columns_are_not_swapped():
    rows = torch.zeros(8, 8)
    rows[:4] = 1
    codec = DCTMaskCodec(8, 6)
    vector = codec.encode(rows)
    assert vector[1].abs() < 1e-5 < vector[2].abs(), "variation along the rows is element (1, 0), the third of the scan"
    assert codec.decode(vector)[0, 0] > 0.8
    assert codec.decode(vector)[7, 7] < 0.2


def test_error_falls_with_the_length_and_vanishes_at_full_length():
    masks = (torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    errors = []
    for dim in (1, 16, 64, 200, 256):
        codec = DCTMaskCodec(16, dim)
        errors.append((codec.decode(codec.encode(masks)) - masks).abs().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_sampled_decoding_equals_decoding_then_sampling():
    vectors = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    codec = DCTMaskCodec(112, 300)
    positions = nearest_positions(112, 42)
    resized = torch.nn.functional.interpolate(torch.arange(112.0)[None, None], size=42, mode="nearest")
    assert positions.tolist() == resized[0, 0].tolist()
    expected = codec.decode(vectors)[:, positions][:, :, positions]
    torch.testing.assert_close(codec.decode(vectors, positions), expected, atol=1e-6, rtol=0)


def test_empty_batches():
    codec = DCTMaskCodec(112, 300)
    assert codec.encode(torch.zeros(0, 112, 112)).shape == (0, 300)
    assert codec.decode(torch.zeros(0, 300)).shape == (0, 112, 112)
    assert DCTMaskCodec(8, 6).decode(torch.zeros(0, 196, 6)).shape == (0, 196, 8, 8)


def test_float32_arithmetic_under_autocast():
    vectors = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    codec = DCTMaskCodec(112, 300)
    with torch.autocast("cpu", torch.bfloat16):
        inside = codec.decode(vectors)
    torch.testing.assert_close(inside, codec.decode(vectors), atol=0, rtol=0)


@pytest.mark.parametrize("dim", [0, 65])
def test_impossible_lengths_are_refused(dim):
    with pytest.raises(UserError, match="64 DCT elements"):
        DCTMaskCodec(8, dim)


def test_codec_and_branches_import_torch_alone():
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'detectron2', 'fvcore', 'numpy', 'cv2', 'scipy', 'pycocotools'}:\n"
        "            raise ImportError(name)\n"
        "import torch\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'detectron2' else find(name, *a)\n"
        "loaded = set(sys.modules); sys.meta_path.insert(0, Block())\n"
        "import patchdct, patchdct.losses\n"
        "new = {n.split('.')[0] for n in set(sys.modules) - loaded} - set(sys.stdlib_module_names)\n"
        "assert new <= {'patchdct', 'pixelmask', 'torch'}, new\n"
        "assert not hasattr(patchdct, 'MaskRCNNPatchDCTHead')\n"
        "sizes = patchdct.MaskBranchSizes(in_channels=4, fine_channels=4, conv_dim=4, hidden_features=4)\n"
        "assert patchdct.PatchDCTBranch(sizes).make_targets(torch.ones(2, 112, 112) > 0).labels.shape == (2, 196)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
