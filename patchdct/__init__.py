"""PatchDCT: DCT masks refined patch by patch (Wen et al., ICLR 2023), as an extension of Detectron2.

The codec, the patches and the mask branches need torch alone; the rest is there where Detectron2 is.
"""

from importlib.util import find_spec

from pixelmask.errors import UserError

from .baselines import BinaryGridBranch, DCTMaskBranch, TwoStageDCTBranch
from .dct import DCTMaskCodec, dct_matrix, zigzag_order
from .mask_branch import MaskBranchSizes, RefinementBranch
from .patch_branch import PatchDCTBranch, PatchPrediction
from .patches import PatchLabel, assemble_patches, classify_patches, split_into_patches

__all__ = [
    "BinaryGridBranch",
    "DCTMaskBranch",
    "DCTMaskCodec",
    "MaskBranchSizes",
    "PatchDCTBranch",
    "PatchLabel",
    "PatchPrediction",
    "RefinementBranch",
    "TwoStageDCTBranch",
    "UserError",
    "assemble_patches",
    "classify_patches",
    "dct_matrix",
    "split_into_patches",
    "zigzag_order",
]

if find_spec("detectron2") is not None:
    from .backbone.narrow_resnet import build_narrow_resnet_fpn_backbone
    from .backbone.swin import SwinTransformer, build_swin_fpn_backbone
    from .config import add_dctmask_config, add_patchdct_config
    from .mask_head import (
        MaskRCNNBinaryGridHead,
        MaskRCNNDCTHead,
        MaskRCNNPatchDCTHead,
        MaskRCNNTwoStageDCTHead,
        PatchDCTROIHeads,
        RefinementHead,
    )
    from .predictor import Predictor
    from .trainer import Trainer

    __all__ += [
        "MaskRCNNBinaryGridHead",
        "MaskRCNNDCTHead",
        "MaskRCNNPatchDCTHead",
        "MaskRCNNTwoStageDCTHead",
        "PatchDCTROIHeads",
        "Predictor",
        "RefinementHead",
        "SwinTransformer",
        "Trainer",
        "add_dctmask_config",
        "add_patchdct_config",
        "build_narrow_resnet_fpn_backbone",
        "build_swin_fpn_backbone",
    ]
