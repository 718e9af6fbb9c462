"""The mask branch of a model by itself, and what it costs: multiply-adds and parameters."""

import copy
from typing import Any, NamedTuple

import torch
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from fvcore.nn import FlopCountAnalysis, parameter_count
from torch import Tensor, nn

from pixelmask.errors import UserError
from pixelmask.export import Export, ExportedFile, export_module, largest_difference

from .baselines import DCTMaskBranch
from .mask_branch import RefinementBranch


class MaskNetwork(nn.Module):
    """The mask head of a model, shared with it, as a plain network: classes and RoI features in, soft masks out."""

    head: Any
    num_classes: int

    def __init__(self, model: Any):
        """
        Args:
            model: a Detectron2 model with StandardROIHeads or a subclass.

        Raises:
            UserError: if it has no mask head, or one that is not known here.
        """
        super().__init__()
        roi_heads = getattr(model, "roi_heads", None)
        if not isinstance(roi_heads, StandardROIHeads) or not roi_heads.mask_on:
            raise UserError(
                f"{type(model).__name__} with {type(roi_heads).__name__} has no mask branch to look at: it takes "
                "StandardROIHeads or a subclass, and MODEL.MASK_ON True"
            )
        self.head = head = roi_heads.mask_head
        if not isinstance(head, (RefinementBranch, DCTMaskBranch, MaskRCNNConvUpsampleHead)):
            raise UserError(f"MODEL.ROI_MASK_HEAD.NAME {type(head).__name__} is not known to the analysis")
        convs = isinstance(head, MaskRCNNConvUpsampleHead)
        self.num_classes = self.head.predictor.out_channels if convs else self.head.num_classes
        channels = model.backbone.output_shape()[roi_heads.mask_in_features[0]].channels
        refines = isinstance(head, RefinementBranch)
        poolers: list[Any] = [head.coarse_pooler, head.fine_pooler] if refines else [roi_heads.mask_pooler]
        self.feature_shapes = [(channels, *pooler.output_size) for pooler in poolers]

    def example_inputs(self, num_instances: int) -> tuple[Tensor, ...]:
        """Draw inputs of :meth:`forward`."""
        classes = torch.randint(self.num_classes, (num_instances,))
        return classes, *(torch.randn(num_instances, *shape) for shape in self.feature_shapes)

    def forward(self, classes: Tensor, coarse: Tensor, fine: Tensor | None = None) -> Tensor:
        """
        Args:
            classes: (B,) int64 class of each instance; class-agnostic heads do not look at it.
            coarse: (B, channels, R, R) RoI features.
            fine: (B, channels, S, S) fine RoI features, of heads that refine.

        Returns:
            the (B, M, M) soft masks of inference, in their boxes.
        """
        head = self.head
        if self.num_classes == 1:
            classes = torch.zeros_like(classes)
        if isinstance(head, RefinementBranch):
            assert fine is not None
            # After pooling, which is the same: both are linear, and RoIAlign's weights sum to 1
            return head.infer(coarse, head.projection(fine), classes)
        if isinstance(head, DCTMaskBranch):
            return head.codec.decode(head.predict(coarse, classes))
        logits = head.layers(coarse)
        return logits[torch.arange(len(classes), device=classes.device), classes].sigmoid()


class MaskBranchCost(NamedTuple):
    """Multiply-adds for one instance, RoI pooling and element-wise arithmetic not counted, and parameters."""

    every_class: int
    """The paper's count: convolutions and fully connected layers, for all classes; the DCT, an FFT there, is not in."""
    spent: int
    """What the forward pass of this implementation does: the instance's class only, the DCT included."""
    parameters: int
    """Of the mask branch."""
    model_parameters: int
    """Of the whole model."""


def mask_branch_cost(model: nn.Module) -> MaskBranchCost:
    """Count a model's mask branch by fvcore, one multiply-add as one.

    Raises:
        UserError: if it has none, or one that is not known here.
    """
    network = copy.deepcopy(MaskNetwork(model)).cpu().eval()  # the model stays where it is
    counter = FlopCountAnalysis(network, network.example_inputs(num_instances=1))
    # Applies the rows of a predictor that belong to one class; nothing else in a mask branch is a baddbmm.
    counter.set_op_handle("aten::baddbmm", _count_baddbmm)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    macs = counter.by_operator()
    layers = macs["conv"] + macs["linear"]
    return MaskBranchCost(
        every_class=int(layers + macs["baddbmm"] * network.num_classes),
        spent=int(counter.total()),
        parameters=parameter_count(network.head)[""],
        model_parameters=parameter_count(model)[""],
    )


def _count_baddbmm(inputs: list, outputs: list) -> int:
    batch, rows, inner = inputs[1].type().sizes()
    return batch * rows * inner * inputs[2].type().sizes()[2]


def export_mask_branch(network: MaskNetwork, num_instances: int | None = None) -> Export:
    """Export a mask branch, on the CPU, from RoI features to soft masks of ``num_instances``, or of any number."""
    inputs = network.example_inputs(num_instances or 2)
    dynamic = None if num_instances else [{0: "instances"}] * len(inputs)
    metadata = {"part": "mask-branch", "head": type(network.head).__name__, "num_classes": network.num_classes}
    # Strict, because the branches ask for len(classes), which is a plain number to the other mode
    return export_module(network, inputs, metadata, "masks", dynamic, strict=True)


def check_mask_branch(file: ExportedFile, network: MaskNetwork, num_instances: int | None = None) -> float:
    """Return the largest difference between a file and the model's own masks, for random features.

    They are of the ``num_instances`` that it was exported for; without them 1, 2 and 7 are tried.
    """
    numbers = [num_instances] if num_instances else [1, 2, 7]
    return largest_difference(file, network, map(network.example_inputs, numbers))
