"""The config keys of AIRM."""

from detectron2.config import CfgNode

from pixelmask.config import add_common_config, register_keys


def add_airm_config(cfg: CfgNode) -> None:
    """Add the keys of AIRM, with the defaults of the paper's main model, to a Detectron2 config."""
    add_common_config(cfg)
    # --- Mix Transformer, MODEL.BACKBONE.NAME build_mit_backbone; the defaults are b1's
    cfg.MODEL.MIT = mit = CfgNode()
    mit.EMBED_DIMS = [64, 128, 320, 512]
    mit.DEPTHS = [2, 2, 2, 2]
    mit.NUM_HEADS = [1, 2, 5, 8]
    # Keys and values of each stage are taken at a resolution lower by this factor
    mit.SR_RATIOS = [8, 4, 2, 1]
    # Strides of the patch embeddings: the last stage is at their product, 1/16
    mit.PATCH_STRIDES = [4, 2, 2, 1]
    # Highest probability with which training skips a residual branch
    mit.DROP_PATH = 0.1

    # --- Plain CNN of Fig. 2a, MODEL.BACKBONE.NAME build_plain_cnn_backbone
    cfg.MODEL.PLAIN_CNN = plain = CfgNode()
    # Of every convolution, odd: what the figure varies
    plain.KERNEL_SIZE = 3
    plain.NUM_LAYERS = 6
    plain.CHANNELS = 64
    # Stride of the features, a power of two: the first layers have a stride of 2, the others of 1
    plain.STRIDE = 4
    plain.NORM = "BN"

    cfg.MODEL.AIRM = airm = CfgNode()
    # Stages of the backbone that make up feature F, finest first, and the channels that each gives
    airm.IN_FEATURES = ["mit1", "mit2", "mit3", "mit4"]
    airm.STAGE_CHANNELS = 64
    # The same where they differ, one for each stage; []: STAGE_CHANNELS for all
    airm.STAGE_WIDTHS = []
    # Whether a 3 x 3 convolution follows where the stages are joined
    airm.FUSION = False
    airm.NORM = "BN"
    # "AIRMF", whose weights a hypernetwork predicts, or "SIRMF", whose weights are shared by all samples
    airm.MAPPING = "AIRMF"
    # Widths of the mapping's hidden layers
    airm.HIDDEN_FEATURES = [32, 32, 32, 32]
    # Rank of the predicted weights, parameter `r` in Eq. 6, and the hypernetwork's channels, stride 2 each
    airm.RANK = 20
    airm.HYPERNETWORK_CHANNELS = [32, 64, 64]
    # Of "mask", "image", "colour", "local" and "walk", what the mapping also sees at each pixel; not of the paper, see
    # airm/query_inputs/. The last three, which are computed from image and mask, the encoder sees, too
    airm.QUERY_INPUTS = []
    # Whether training has the affinity loss, and how far apart in its grid two positions may be, parameter `R`
    airm.AFFINITY = True
    airm.AFFINITY_RADIUS = 14.0
    # Weights in Eq. 7, lambda 1 to 4, and those of the two terms of Eq. 11
    airm.L1_WEIGHT = 0.2
    airm.L2_WEIGHT = 0.2
    airm.CE_WEIGHT = 0.3
    airm.GRADIENT_WEIGHT = 0.4
    airm.MAPPING_LOSS_WEIGHT = 0.5
    airm.AFFINITY_LOSS_WEIGHT = 0.5
    # What pixels near the truth's contour count more than others do in l1, l2 and cross-entropy; not of the paper
    airm.BAND_WEIGHT = 0.0
    # How often training refines a batch twice and learns from the second time alone, which begins with the result of
    # the first, as refinement from coarse to fine does; not of the paper
    airm.SECOND_PASS_PROB = 0.0
    # Checkpoint of an AIRM whose encoder training starts from and leaves as it is, as in Sec. 3.2; "": none
    airm.FROZEN_ENCODER = ""

    # --- Inference
    # Coarse to fine: resolutions of the encoder's input, as shares of the image's
    airm.RATIOS = [0.125, 0.25, 0.5, 1.0]
    # Ratios at which the image's longer side would be shorter than this are left out, except the last; 0: none
    airm.MIN_SIZE_TEST = 0
    # Reflected border around the image, in pixels
    airm.PADDING = 32
    # A mask whose IoU with what the last ratio made of it is below this is refined once more there; 0: none
    airm.REPEAT_BELOW = 0.0
    # Pixels for which the mapping is evaluated at once: bounds its memory; on a CPU this many stay in the cache
    airm.QUERY_CHUNK = 8192
    # Side of the tiles in which larger inputs are encoded, in the resolution of the ratio; 0: never, as in the paper
    airm.TILE_SIZE = 0
    # Context around a tile that is encoded with it
    airm.TILE_HALO = 32
    # Pixels of tiles that are encoded at once: bounds memory; a GPU takes more. At least one tile
    airm.BATCH_PIXELS = 262144
    # In tiles, above the first ratio, only is refined what is near pixels where the mask lies between this and 1 - this
    airm.UNDECIDED = 0.01
    # Where |2 p - 1| of the refined probability p is below this, the coarse mask is kept; 0: nowhere
    airm.MIN_CONFIDENCE = 0.0

    # --- Data
    # Sets to register: [name, folder], [name, image folder, mask folder] or the latter with a file that lists ids
    cfg.DATASETS.REFINEMENT = []
    cfg.INPUT.REFINEMENT = refinement = CfgNode()
    # Side in pixels of the square crops that training sees
    refinement.CROP_SIZE = 224
    # Whether a crop is to hold a place of the mask's contour, else some foreground
    refinement.CROP_AT_CONTOUR = False
    refinement.FLIP_PROB = 0.5
    # Strengths for brightness, contrast, saturation and hue
    refinement.COLOR_JITTER = [0.3, 0.3, 0.3, 0.1]
    refinement.GRAYSCALE_PROB = 0.1
    # The coarse mask is the truth perturbed to an IoU drawn from IOU_RANGE: "regions", with islands and holes, or
    # "contour", with errors near the contour alone
    refinement.PERTURBATION = "regions"
    refinement.IOU_RANGE = [0.8, 1.0]
    # Several kinds of coarse masks, each as frequent: see airm/data/coarse_masks.py; []: PERTURBATION alone
    refinement.COARSE_MASKS = []
    # Pictures are resized by a factor from this range before a crop is cut
    refinement.SCALE_RANGE = [1.0, 1.0]
    # Perturb the whole mask, as for testing, instead of the crop's, whose errors are smaller as they go with its size
    refinement.PERTURB_BEFORE_CROP = False
    # Of the coarse masks of test sets that have none
    refinement.SEED = 0


register_keys(add_airm_config, "AIRM")
