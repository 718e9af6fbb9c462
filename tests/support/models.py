"""What several tests share: tiny configs, instances and data sets."""

import importlib.util
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

import patchdct  # noqa: F401  registers its keys and models
from airm.meta_arch import AIRM
from pixelmask.config import get_cfg

HEADS = {
    "mask_rcnn": {"NAME": "MaskRCNNConvUpsampleHead"},
    "dct_mask": {"NAME": "MaskRCNNDCTHead", "CLS_AGNOSTIC_MASK": True, "MASK_LOSS_PARA": 0.007},
    "patchdct": {"NAME": "MaskRCNNPatchDCTHead", "POOLER_TYPE": "", "MASK_SIZE": 112},
    "two_stage_dct": {"NAME": "MaskRCNNTwoStageDCTHead", "POOLER_TYPE": "", "MASK_SIZE": 112},
    "binary_grid": {
        "NAME": "MaskRCNNBinaryGridHead",
        "POOLER_TYPE": "",
        "MASK_SIZE": 112,
        "FINE_FEATURES_RESOLUTION": 56,
    },
}


def tiny_cfg(head: str = "patchdct", num_classes: int = 3, **mask_head: Any) -> CfgNode:
    """A whole model that is built and run on the CPU in a moment; ``mask_head`` overrides keys of ROI_MASK_HEAD."""
    cfg = get_cfg()
    cfg.merge_from_file("configs/patchdct/Base-RCNN-FPN.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATALOADER.NUM_WORKERS = 0
    small = {"CONV_DIM": 16, "HIDDEN_FEATURES": 16, "NUM_CONV": 1}
    for key, value in {**small, **HEADS[head], **mask_head}.items():
        cfg.MODEL.ROI_MASK_HEAD[key] = value
    return cfg


def untrained(cfg: CfgNode) -> nn.Module:
    """Build the model of a config, always the same."""
    torch.manual_seed(5 if cfg.MODEL.META_ARCHITECTURE == "AIRM" else 0)  # with 0 this one answers "background" alone
    return build_model(cfg)


def load_tool(name: str, folder: str = "tools") -> ModuleType:
    """Import ``tools/<name>.py``."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", f"{folder}/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def disc(height: int, width: int, center: tuple[float, float], radius: float) -> torch.Tensor:
    """(height, width) boolean mask of a disc; ``center`` is (x, y)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2


def training_input(num_instances: int, size: int = 96, seed: int = 0) -> dict[str, Any]:
    """One image with discs, as Detectron2's mapper gives it for training."""
    generator = torch.Generator().manual_seed(seed)
    centers = size * (0.3 + 0.4 * torch.rand(num_instances, 2, generator=generator))
    radii = size * (0.1 + 0.15 * torch.rand(num_instances, generator=generator))
    masks = [disc(size, size, tuple(c.tolist()), r.item()) for c, r in zip(centers, radii, strict=True)]
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.cat([centers - radii[:, None], centers + radii[:, None]], 1))
    instances.gt_classes = torch.arange(num_instances) % 3
    instances.gt_masks = BitMasks(torch.stack(masks) if masks else torch.zeros(0, size, size, dtype=torch.bool))
    image = torch.randint(0, 255, (3, size, size), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": size, "width": size, "instances": instances}


def proposals(num_instances: int, size: int = 96, seed: int = 0) -> Instances:
    """Foreground proposals with ground truth, as ROI heads give them to a mask head in training."""
    instances = training_input(num_instances, size, seed)["instances"]
    instances.proposal_boxes = Boxes(instances.gt_boxes.tensor + 1.5)
    return instances


def detections(num_instances: int, size: int = 96, seed: int = 0) -> Instances:
    """Detections without masks, as ROI heads give them to a mask head at inference."""
    truth = training_input(num_instances, size, seed)["instances"]
    instances = Instances((size, size))
    instances.pred_boxes = truth.gt_boxes
    instances.pred_classes = truth.gt_classes
    instances.scores = torch.linspace(0.9, 0.5, num_instances)
    return instances


def feature_maps(num_images: int, channels: int = 16, size: int = 96, seed: int = 0) -> dict[str, torch.Tensor]:
    """FPN maps p2 to p5 of random values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"p{i}": torch.randn(num_images, channels, size // 2**i, size // 2**i, generator=generator)
        for i in (2, 3, 4, 5)
    }


def tiny_airm_cfg(encoder: str = "mit", **keys: Any) -> CfgNode:
    """AIRM that is built and run on the CPU in a moment; ``encoder`` is mit, plain or resnet, ``keys`` are AIRM's."""
    cfg = get_cfg("AIRM")
    cfg.merge_from_file(f"configs/airm/Base-AIRM{'-R' if encoder == 'resnet' else ''}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.MIT.EMBED_DIMS = [8, 16, 24, 32]
    cfg.MODEL.MIT.NUM_HEADS = [1, 2, 3, 4]
    cfg.MODEL.MIT.DEPTHS = [1, 1, 1, 2]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.INPUT.REFINEMENT.CROP_SIZE = 64
    cfg.DATALOADER.NUM_WORKERS = 0
    small = {"MIN_SIZE_TEST": 224, "STAGE_CHANNELS": 8, "HIDDEN_FEATURES": [8, 8], "HYPERNETWORK_CHANNELS": [8, 8]}
    if encoder == "plain":
        cfg.MODEL.BACKBONE.NAME = "build_plain_cnn_backbone"
        cfg.MODEL.PLAIN_CNN.CHANNELS, cfg.MODEL.PLAIN_CNN.NUM_LAYERS = 8, 3
        small |= {"IN_FEATURES": ["plain"], "AFFINITY": False}
    if encoder == "resnet":
        small["STAGE_WIDTHS"] = [8, 8, 16]
    for key, value in {**small, **keys}.items():
        cfg.MODEL.AIRM[key] = value
    return cfg


def untrained_airm(encoder: str = "mit", **keys: Any) -> AIRM:
    """Build a tiny AIRM for inference, always the same."""
    return untrained(tiny_airm_cfg(encoder, **keys)).eval()


def refinement_batch(batch: int = 2, size: int = 64) -> list[dict[str, Any]]:
    """Images with a disc, as AIRM's mapper gives them for training."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(batch):
        mask = disc(size, size, (size / 2 + i, size / 2), size / 4).float()[None]
        image = 100 * mask + 100 * torch.rand(3, size, size, generator=generator)
        samples.append({"image": image.to(torch.uint8), "coarse_mask": mask.roll(5, 2), "mask": mask})
    return samples
