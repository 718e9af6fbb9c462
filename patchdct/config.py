"""The config keys of PatchDCT, DCT-Mask and Swin Transformers."""

from detectron2.config import CfgNode

from pixelmask.config import add_common_config, register_keys


def add_patchdct_config(cfg: CfgNode) -> None:
    """Add the keys of PatchDCT and DCT-Mask, with their defaults, to a Detectron2 config."""
    add_common_config(cfg)
    head = cfg.MODEL.ROI_MASK_HEAD
    # Feature maps that the 14 x 14 RoI feature of PatchDCT's first stage is pooled from
    head.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Probability above which foreground or background beats mixed at inference
    head.PATCH_THRESHOLD = 0.30
    # Width of the fully connected layers and of the refinement's last convolutions
    head.HIDDEN_FEATURES = 1024
    # Elements of the mask's DCT vector, parameter `N`
    head.DCT_VECTOR_DIM = 300
    # Side in pixels of the mask that they encode, parameter `K`; the PatchDCT configs have 112
    head.MASK_SIZE = 128
    # R in Eq. 4 and 5: "l1", "sl1" (smooth l1) or "l2"
    head.DCT_LOSS_TYPE = "l1"
    # Factor of the whole mask loss; DCT-Mask, which sums over elements, has 0.007
    head.MASK_LOSS_PARA = 1.0
    # Feature maps that the fine RoI feature is pooled from, and its side
    head.FINE_FEATURES = ["p2"]
    head.FINE_FEATURES_RESOLUTION = 42
    # Ours, of the light PatchDCT: channels that these maps are projected to before they are pooled; 0, as in the paper,
    # leaves them as they are
    head.FINE_PROJECTION = 0
    # 3 x 3 convolutions over the fine feature after the mask is added to it; 2 in the paper, 0 in the light PatchDCT
    head.NUM_FUSION = 2
    # Side in pixels of the mask put together from patches, and of a patch, parameter `m`
    head.MASK_SIZE_ASSEMBLE = 112
    head.PATCH_SIZE = 8
    # Elements of a patch's DCT vector, parameter `n`
    head.PATCH_DCT_VECTOR_DIM = 6
    # Table 6 to 8. Classes of patches: 3, 2 (mixed or not; the latter keep their mask), or 1 (all are regressed)
    head.PATCH_CLASSES = 3
    # Whether mixed patches are regressed, or keep their mask
    head.PATCH_REGRESSOR = True
    # Stages, the DCT-Mask stage counted: 2 is one PatchDCT module
    head.NUM_STAGE = 2
    # Weight of each stage's loss, parameter `lambda` in Eq. 3
    head.MASK_LOSS_PARA_EACH_STAGE = [1.0, 1.0]
    # Accepted for the published configs' sake; True is refused
    head.EVAL_GT = False
    _add_swin_config(cfg)


def _add_swin_config(cfg: CfgNode) -> None:
    """Add the keys of published Swin configs, with the values of Swin-B as the authors of PatchDCT have them."""
    cfg.MODEL.SWINT = CfgNode()
    # Channels of the first stage; blocks and attention heads of each stage
    cfg.MODEL.SWINT.EMBED_DIM = 128
    cfg.MODEL.SWINT.DEPTHS = [2, 2, 18, 2]
    cfg.MODEL.SWINT.NUM_HEADS = [4, 8, 16, 32]
    # Side of a window in tokens
    cfg.MODEL.SWINT.WINDOW_SIZE = 7
    cfg.MODEL.SWINT.MLP_RATIO = 4
    # Probability of dropping the residuals of the last block in training; from 0 for the first, linearly
    cfg.MODEL.SWINT.DROP_PATH_RATE = 0.2
    # Some of stage2 (stride 4) to stage5 (stride 32)
    cfg.MODEL.SWINT.OUT_FEATURES = ["stage2", "stage3", "stage4", "stage5"]
    # 1 freezes the patch embedding, 2 also the first stage, ...; BACKBONE.FREEZE_AT, 2 by default, is for ResNets
    cfg.MODEL.SWINT.FREEZE_AT = 0
    # Both accepted for the published configs' sake: APE True is refused, and p6 is pooled from p5
    cfg.MODEL.SWINT.APE = False
    cfg.MODEL.FPN.TOP_LEVELS = 2


add_dctmask_config = add_patchdct_config  # DCT-Mask's keys are among PatchDCT's


register_keys(add_patchdct_config)
