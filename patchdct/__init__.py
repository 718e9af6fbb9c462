"""PatchDCT: DCT masks refined patch by patch (Wen et al., ICLR 2023), as an extension of Detectron2.

The codec, the patches and the mask branches need torch alone; the rest is there where Detectron2 is.
"""

from importlib.util import find_spec

from .dct import DCTMaskCodec, dct_matrix, zigzag_order
from .errors import UserError
from .mask_branch import DCTMaskBranch, PatchDCTBranch, PatchPrediction
from .patches import PatchLabel, assemble_patches, classify_patches, split_into_patches

__all__ = [
    "DCTMaskBranch",
    "DCTMaskCodec",
    "PatchDCTBranch",
    "PatchLabel",
    "PatchPrediction",
    "UserError",
    "assemble_patches",
    "classify_patches",
    "dct_matrix",
    "split_into_patches",
    "zigzag_order",
]

if find_spec("detectron2") is not None:
    from .backbone import build_narrow_resnet_fpn_backbone
    from .config import add_dctmask_config, add_patchdct_config, get_cfg
    from .mask_head import MaskRCNNDCTHead, MaskRCNNPatchDCTHead
    from .roi_heads import PatchDCTROIHeads

    __all__ += [
        "MaskRCNNDCTHead",
        "MaskRCNNPatchDCTHead",
        "PatchDCTROIHeads",
        "add_dctmask_config",
        "add_patchdct_config",
        "build_narrow_resnet_fpn_backbone",
        "get_cfg",
    ]
