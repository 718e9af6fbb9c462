"""A trained model for single images: reading pictures of any kind, and running the model of a config on them.

In short:

    predictor = Predictor(load_cfg("config.yaml", ["MODEL.WEIGHTS", "model_final.pth"]))
    instances = predictor(read_picture("photo.jpg"))
"""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances

from pixelmask.checkpoint.checkpointer import load_trained
from pixelmask.config import find_device
from pixelmask.engine.build import build_model
from pixelmask.engine.precision import set_precision
from pixelmask.errors import UserError

from .mask_head import MaskRCNNPatchDCTHead


class Predictor:
    """A model with trained weights, from an image to its instances."""

    def __init__(self, cfg: CfgNode, keep_stages: bool = False, precision: str = "fp32"):
        """
        Args:
            cfg: ``MODEL.WEIGHTS`` is to name a checkpoint of a trained model, which is read as data
                (:class:`~pixelmask.checkpoint.SafeCheckpointer`).
            keep_stages: whether instances also get ``pred_coarse_masks`` and ``pred_patch_labels``.
            precision: "fp32", "bf16" or "fp16", see :func:`~pixelmask.engine.precision.set_precision`.

        Raises:
            UserError: if there are no weights, or weights that leave a part of the model random, if the model has no
                stages to keep, or if there is no such device or the device not this precision.
        """
        weights = cfg.MODEL.WEIGHTS
        if not weights or "ImageNetPretrained" in weights:
            found = f"MODEL.WEIGHTS is {weights!r}, a backbone to train from" if weights else "MODEL.WEIGHTS is empty"
            raise UserError(
                f"no trained weights: {found}. Give a checkpoint of this model with --weights FILE or MODEL.WEIGHTS; "
                "tools/train_net.py writes one, model_final.pth, in OUTPUT_DIR"
            )
        find_device(cfg.MODEL.DEVICE)
        self.model = build_model(cfg).eval()
        if keep_stages:
            head = getattr(getattr(self.model, "roi_heads", None), "mask_head", None)
            if not isinstance(head, MaskRCNNPatchDCTHead):
                raise UserError(
                    f"only PatchDCT has stages to show; MODEL.ROI_MASK_HEAD.NAME is {type(head).__name__}, so leave "
                    "--stages (keep_stages) out"
                )
            head.keep_stages = True
        load_trained(self.model, weights)
        set_precision(self.model, precision)
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detect the instances of an (H, W, 3) uint8 RGB image.

        Returns:
            instances on the CPU, of the image's size: ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_masks``
            (N, H, W) boolean; best score first.

        Raises:
            UserError: if the image is so narrow that nothing of it would be left at the size of the config.
        """
        height, width = image.shape[:2]
        if self.input_format == "BGR":
            image = image[:, :, ::-1]
        transform = self.resize.get_transform(image)
        if not min(transform.new_h, transform.new_w):
            raise UserError(
                f"an image of {width} x {height} pixels would become {transform.new_w} x {transform.new_h} by "
                "INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST; crop it"
            )
        resized = transform.apply_image(image)
        pixels = torch.from_numpy(resized.astype(np.float32).transpose(2, 0, 1).copy())
        return self.model([{"image": pixels, "height": height, "width": width}])[0]["instances"].to("cpu")
