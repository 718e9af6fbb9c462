"""PatchDCT's refinement (Wen et al., ICLR 2023, Fig. 2, right): patches labelled, and the mixed ones regressed.

Imports torch alone. Letters: B instances, S side of the fine RoI feature, n length of a patch's DCT vector, M side of
the refined mask, m side of a patch, P patches of a mask, L patch classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pixelmask.errors import UserError

from .dct import DCTMaskCodec
from .losses import patch_classification_loss, patch_vector_loss
from .mask_branch import Downsample, MaskBranchSizes, RefinementBranch, predict_class
from .patches import PatchLabel, assemble_patches, classify_patches, fill_uniform_patches, split_into_patches


class PatchPrediction(NamedTuple):
    """What one PatchDCT module says about the patches of B masks."""

    logits: Tensor | None
    """(B, P, L) scores: of the :class:`~patchdct.patches.PatchLabel` values if L is 3; if it is 2 of "not mixed" and
    "mixed". None without a classifier: every patch counts as mixed."""
    vectors: Tensor | None
    """(B, P, n) DCT vectors, meaningful where the patch is mixed. None without a regressor."""
    previous: Tensor | None = None
    """(B, P, m, m) patches of the mask that was refined, where some of them are kept."""


class PatchTargets(NamedTuple):
    """What the patches of B masks are to become."""

    labels: Tensor
    """(B, P) int64 :class:`~patchdct.patches.PatchLabel` values."""
    vectors: Tensor
    """(B, P, n) DCT vectors."""


class PatchDCTBranch(RefinementBranch):
    """PatchDCT: a coarse DCT vector, then patches refined by classifier and regressor.

    Only the scores and vectors of each instance's class are computed. Without a part of its own (Tables 6 to 8),
    a patch keeps what it was before the refinement.
    """

    def __init__(
        self,
        sizes: MaskBranchSizes,
        *,
        loss_type: str = "l1",
        patch_size: int = 8,
        patch_vector_dim: int = 6,
        patch_classes: int = 3,
        patch_regressor: bool = True,
        patch_threshold: float = 0.3,
    ):
        """
        Args:
            sizes: of the mask branch.
            loss_type: R of Eq. 4 and 5.
            patch_size: m, a divisor of M.
            patch_vector_dim: n.
            patch_classes: L. 3: background, mixed, foreground. 2: mixed or not, the latter keep their mask (Table 6).
                1: no classifier, all patches are regressed (Table 7).
            patch_regressor: whether mixed patches are regressed, or keep their mask (Table 8).
            patch_threshold: probability above which foreground or background beats mixed at inference.

        Raises:
            UserError: if the sizes do not fit together, or neither classifier nor regressor is left.
        """
        super().__init__(sizes, loss_type=loss_type)
        if sizes.assembled_size % patch_size:
            raise UserError(
                f"MODEL.ROI_MASK_HEAD.MASK_SIZE_ASSEMBLE {sizes.assembled_size} is no multiple of PATCH_SIZE "
                f"{patch_size}"
            )
        if patch_classes not in (1, 2, 3) or (patch_classes == 1 and not patch_regressor):
            raise UserError(
                f"MODEL.ROI_MASK_HEAD.PATCH_CLASSES {patch_classes} with PATCH_REGRESSOR {patch_regressor}: there are "
                "3, 2 (mixed or not) and 1 (all are mixed) patch classes, and the last needs the regressor"
            )
        hidden, classes = sizes.hidden_features, sizes.num_classes
        self.patches_per_side = sizes.assembled_size // patch_size
        self.patch_classes = patch_classes
        self.needs_previous = patch_classes == 2 or not patch_regressor
        self.patch_threshold = patch_threshold
        self.patch_codec = DCTMaskCodec(patch_size, patch_vector_dim)
        self.downsample = Downsample(
            sizes.fine_channels, hidden, sizes.fine_resolution, self.patches_per_side, sizes.norm
        )
        self.predictor1 = nn.Conv2d(hidden, classes * patch_vector_dim, 1) if patch_regressor else None
        self.predictor_bfg = nn.Conv2d(hidden, classes * patch_classes, 1) if patch_classes > 1 else None

    def refine(self, masks: Tensor, fine: Tensor, classes: Tensor, previous: Tensor | None = None) -> PatchPrediction:
        """One PatchDCT module: (B, S, S) soft masks, fine features and classes to a prediction for each patch."""
        x = self.downsample(self.fuse(masks, fine)).flatten(2)
        logits, vectors = (
            None if layer is None else predict_class(layer, x, classes, self.num_classes)
            for layer in (self.predictor_bfg, self.predictor1)
        )
        kept = previous if self.needs_previous else None
        patches = None if kept is None else split_into_patches(kept, self.patch_codec.mask_size)
        return PatchPrediction(logits, vectors, patches)

    def stage_masks(self, prediction: PatchPrediction, final: bool = False) -> Tensor:
        if final:  # patches are put together in float32 also under autocast
            prediction = PatchPrediction(*(None if x is None else x.float() for x in prediction))
        return self.assemble(prediction, self.label(prediction, final))

    def stage_details(self, prediction: PatchPrediction) -> dict[str, Tensor]:
        """``pred_patch_labels``, a (B, M / m, M / m) grid of the labels at inference."""
        side = self.patches_per_side
        return {"pred_patch_labels": self.label(prediction, final=True).unflatten(1, (side, side))}

    def label(self, prediction: PatchPrediction, final: bool = False) -> Tensor:
        """Label patches: (B, P) int64, :class:`~patchdct.patches.PatchLabel` values; of two classes, 0 is "not mixed".

        The threshold counts for three classes, and in the final stage only.
        """
        logits = prediction.logits
        if logits is None:
            assert prediction.vectors is not None
            return torch.full_like(prediction.vectors[..., 0], PatchLabel.MIXED.value, dtype=torch.int64)
        return self.final_labels(logits) if final and self.patch_classes == 3 else logits.argmax(-1)

    def final_labels(self, logits: Tensor) -> Tensor:
        """Label patches at inference: a foreground or background probability above the threshold beats mixed.

        Args:
            logits: (B, P, 3) of the last module.

        Returns:
            (B, P) int64 :class:`~patchdct.patches.PatchLabel` values.
        """
        probs = logits.float().softmax(-1)
        background, foreground = probs[..., PatchLabel.BACKGROUND], probs[..., PatchLabel.FOREGROUND]
        uniform = torch.where(foreground > background, PatchLabel.FOREGROUND.value, PatchLabel.BACKGROUND.value)
        sure = torch.maximum(background, foreground) > self.patch_threshold
        return torch.where(sure, uniform, probs.argmax(-1))

    def assemble(self, prediction: PatchPrediction, labels: Tensor) -> Tensor:
        """Decode mixed patches, fill or keep the others, put all together: (B, P) labels to (B, M, M) soft masks."""
        vectors, previous = prediction.vectors, prediction.previous
        patches = previous if vectors is None else self.patch_codec.decode(vectors)
        assert patches is not None
        if self.patch_classes != 2:
            return assemble_patches(fill_uniform_patches(patches, labels))
        assert previous is not None
        mixed = labels == PatchLabel.MIXED.value
        return assemble_patches(torch.where(mixed[..., None, None], patches, previous))

    def make_targets(self, masks: Tensor) -> PatchTargets:
        """Label the patches of (B, M, M) boolean masks by counting, and encode them."""
        patches = split_into_patches(masks, self.patch_codec.mask_size)
        return PatchTargets(classify_patches(patches), self.patch_codec.encode(patches))

    def stage_losses(self, prediction: PatchPrediction, targets: PatchTargets) -> dict[str, Tensor]:
        """``patch_cls``, the cross-entropy of the classifier, and ``patch_dct``, Eq. 5; those that there are."""
        losses = {}
        mixed = targets.labels == PatchLabel.MIXED
        if prediction.logits is not None:
            labels = targets.labels if self.patch_classes == 3 else mixed.long()
            losses["patch_cls"] = patch_classification_loss(prediction.logits, labels)
        if prediction.vectors is not None:
            selected = mixed if self.patch_classes > 1 else mixed.new_ones(mixed.shape)
            losses["patch_dct"] = patch_vector_loss(prediction.vectors, targets.vectors, selected, self.loss_type)
        return losses
