import re

import pytest
import torch
import torchvision
import yaml
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import StochasticDepth

from patchdct.backbone.swin import SwinTransformer
from pixelmask.config import get_cfg, load_cfg
from pixelmask.engine.optimizer import build_optimizer, optimizer_name
from pixelmask.errors import UserError
from tests.support.models import tiny_cfg, training_input
from tests.support.swin_reference import SWIN_B, TINY, published_shapes, random_state, stages

CONFIG = "configs/patchdct/patchdct_Swin_B_FPN_3x_coco.yaml"


def tiny(state=None, double=False, **arguments) -> SwinTransformer:
    torch.manual_seed(0)
    model = SwinTransformer(**{**TINY, **arguments}).eval()
    if double:
        model.double()
    if state is not None:
        outcome = model.load_state_dict(state, strict=False)
        assert all(name.startswith("norm") and name[4].isdigit() for name in outcome.missing_keys)
    return model


def tiny_swin_cfg(name="build_swin_fpn_backbone", **swin):
    cfg = tiny_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.FPN.IN_FEATURES = ["stage2", "stage3", "stage4", "stage5"]
    for key, value in {**TINY, **swin}.items():
        cfg.MODEL.SWINT[key.upper()] = list(value) if isinstance(value, tuple) else value
    return cfg


def normed(tokens):
    """What a stage's norm, which starts as the identity, makes of its tokens."""
    return nn.functional.layer_norm(tokens, tokens.shape[-1:]).permute(2, 0, 1)


@pytest.fixture(scope="module")
def spelled_out():
    """Published weights, an image, and what its stages are, in float64."""
    state = {name: value.double() for name, value in random_state(published_shapes(**TINY)).items()}
    image = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    arguments = {key: TINY[key] for key in ("depths", "num_heads", "window_size")}
    return state, image, [normed(tokens) for tokens in stages(state, image, **arguments)]


def differences(state, image, expected):
    with torch.no_grad():
        features = tiny(state, double=True)(image[None])
    assert list(features) == ["stage2", "stage3", "stage4", "stage5"]
    return [(a[0] - b).abs().max().item() for a, b in zip(features.values(), expected, strict=True)]


def test_equals_its_arithmetic_spelled_out(spelled_out):
    assert max(differences(*spelled_out)) < 1e-9


@pytest.mark.parametrize("order", ["qkv", "merging", "positions"])
def test_the_arithmetic_would_tell_another_order(spelled_out, order):
    state, image, expected = spelled_out
    other = dict(state)
    for name, value in state.items():
        if order == "qkv" and ".qkv." in name:
            other[name] = torch.cat(value.chunk(3)[::-1])
        elif order == "merging" and "reduction" in name:
            other[name] = torch.cat([value.chunk(4, 1)[i] for i in (0, 2, 1, 3)], 1)
        elif order == "positions" and "table" in name:
            other[name] = value.view(5, 5, -1).transpose(0, 1).reshape(value.shape)  # x before y
    assert max(differences(other, image, expected)) > 0.05


def test_equals_torchvision():
    state = random_state(published_shapes(**TINY, classes=5))
    whole = torchvision.models.SwinTransformer([4, 4], 8, [2] * 4, [1, 2, 4, 8], [3, 3], num_classes=5).eval()
    renamed = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "layers":
            stage, kind, rest = rest.split(".", 2)
            part = f"features.{2 * int(stage) + (1 if kind == 'blocks' else 2)}"
        elif part == "patch_embed":
            part, rest = "features.0", rest.replace("proj", "0").replace("norm", "2")
        rest = rest.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
        renamed[f"{part}.{rest}"] = value.flatten() if "index" in name else value
    whole.load_state_dict({name: value for name, value in renamed.items() if not name.endswith("attn_mask")})
    ours = tiny(state)
    ours.norm3.load_state_dict({"weight": state["norm.weight"], "bias": state["norm.bias"]})
    image = torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        feature = ours(image[:, :, :72, :100])["stage5"]
        logits = whole(image[:, :, :72, :100])
    expected = nn.functional.linear(feature.mean((2, 3)), state["head.weight"], state["head.bias"])
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (33, 50), (97, 64)])
def test_any_image_size(size):
    features = tiny()(torch.randn(2, 3, *size))
    for name, stride in zip(features, (4, 8, 16, 32), strict=True):
        assert features[name].shape == (2, 2 * stride, -(-size[0] // stride), -(-size[1] // stride))
        assert features[name].isfinite().all()


def test_names_of_swin_b_are_the_published_ones():
    with torch.device("meta"):
        own = SwinTransformer(**SWIN_B).state_dict()
    published = published_shapes(**SWIN_B)
    left_out = re.compile(r"norm\.|head\.|.*(relative_position_index|attn_mask)$")
    expected = {name: shape for name, shape in published.items() if not left_out.match(name)}
    for i, dim in enumerate((128, 256, 512, 1024)):
        expected |= {f"norm{i}.weight": (dim,), f"norm{i}.bias": (dim,)}
    assert {name: tuple(value.shape) for name, value in own.items()} == expected


def test_output_features_can_be_chosen():
    model = tiny(out_features=["stage4", "stage3"])
    expected = {"stage3": (16, 8), "stage4": (32, 16)}
    assert {name: (s.channels, s.stride) for name, s in model.output_shape().items()} == expected
    assert list(model(torch.randn(1, 3, 64, 64))) == ["stage3", "stage4"]
    names = set(model.state_dict())
    assert "layers.2.blocks.1.mlp.fc2.bias" in names
    assert not any(name.startswith(("layers.3.", "layers.2.downsample", "norm0", "norm3")) for name in names)
    loss = sum(feature.sum() for feature in model.train()(torch.randn(1, 3, 64, 64)).values())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())  # DDP wants all of them used


def test_drop_path_rises_linearly_and_spares_frozen_stages():
    def rates(**arguments):
        model = tiny(drop_path_rate=0.7, **arguments)
        return [module.p for module in model.modules() if isinstance(module, StochasticDepth)]

    assert rates() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], abs=1e-6)
    assert rates(freeze_at=2) == pytest.approx([0.0, 0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], abs=1e-6)


@pytest.mark.parametrize(
    ("freeze_at", "frozen"), [(0, ()), (1, ("patch_embed",)), (3, ("patch_embed", "layers.0.", "layers.1."))]
)
def test_freezing(freeze_at, frozen):
    for name, parameter in tiny(freeze_at=freeze_at).named_parameters():
        assert parameter.requires_grad is not name.startswith(frozen or ("none",)), name


def test_bfloat16_autocast_is_near_float32():
    model, image = tiny(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            features = model(image)
    for name, feature in features.items():
        torch.testing.assert_close(feature.float(), expected[name], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", ["build_swin_fpn_backbone", "build_swinb_fpn_backbone", "build_swint_fpn_backbone"])
def test_fpn_backbone(name):
    backbone = build_backbone(tiny_swin_cfg(name))
    assert backbone.size_divisibility == 32
    features = backbone(torch.randn(1, 3, 64, 96))
    assert {key: tuple(value.shape) for key, value in features.items()} == {
        f"p{i}": (1, 16, -(-64 // 2**i), -(-96 // 2**i)) for i in (2, 3, 4, 5, 6)
    }


def test_a_detector_trains_and_predicts():
    torch.manual_seed(0)
    model = build_model(tiny_swin_cfg())
    with EventStorage():
        losses = model([training_input(3), training_input(2, size=64, seed=1)])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.backbone.bottom_up.parameters())
    with torch.no_grad():
        instances = model.eval()([{"image": torch.zeros(3, 70, 90, dtype=torch.uint8)}])[0]["instances"]
    assert instances.image_size == (70, 90)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.SWINT.APE", "True"], r"APE True .* not supported"),
        (["MODEL.SWINT.OUT_FEATURES", "['res2']"], r"OUT_FEATURES \['res2'\] are to be some of"),
        (["MODEL.SWINT.OUT_FEATURES", "[]"], r"OUT_FEATURES"),
        (["MODEL.SWINT.DEPTHS", "[2, 2]"], r"DEPTHS \[2, 2\] is to have 4 numbers"),
    ],
)
def test_keys_that_cannot_be_used(opts, message):
    cfg = load_cfg(CONFIG, opts)
    with pytest.raises(UserError, match=message), torch.device("meta"):
        build_backbone(cfg, ShapeSpec(channels=3))


def test_relative_positions_and_norms_are_not_decayed():
    cfg = load_cfg(CONFIG)
    model = build_backbone(tiny_swin_cfg())
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = {}
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["lr"] == 1e-4
        decay |= {names[parameter]: group["weight_decay"] for parameter in group["params"]}
    assert len(decay) == len(names)
    for name, value in decay.items():
        exempt = name.endswith("relative_position_bias_table") or ".norm" in name
        assert value == (0.0 if exempt else 0.05), name


# What the published Swin-B config of PatchDCT has beside what its ResNet configs have, key by key
PUBLISHED = {
    "MODEL": {
        "WEIGHTS": "swin_base_patch4_window7_224_22k_d2.pth",
        "PIXEL_MEAN": [123.675, 116.28, 103.53],
        "PIXEL_STD": [58.395, 57.12, 57.375],
        "MASK_ON": True,
        "RESNETS": {"DEPTH": 50},
        "BACKBONE": {"NAME": "build_swinb_fpn_backbone"},
        "SWINT": {"OUT_FEATURES": ["stage2", "stage3", "stage4", "stage5"]},
        "FPN": {"IN_FEATURES": ["stage2", "stage3", "stage4", "stage5"]},
    },
    "SOLVER": {
        "STEPS": "(210000, 250000)",
        "MAX_ITER": 270000,
        "WEIGHT_DECAY": 0.05,
        "BASE_LR": 0.0001,
        "CHECKPOINT_PERIOD": 90000,
        "AMP": {"ENABLED": True},
    },
    "TEST": {"EVAL_PERIOD": 10000},
    "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TRAIN": "(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)"},
    "DATASETS": {"TRAIN": '("coco_2017_train",)', "TEST": '("coco_2017_val",)'},
}


def test_published_config_is_ours(tmp_path):
    path = tmp_path / "patchdct_swinb_3x.yaml"
    base = f"{tmp_path.cwd()}/configs/patchdct/Base-PatchDCT-RCNN-FPN.yaml"
    path.write_text(yaml.safe_dump({"_BASE_": base, **PUBLISHED}))
    published, ours = load_cfg(str(path)), load_cfg(CONFIG)
    assert optimizer_name(published) == optimizer_name(ours) == "ADAMW"
    same = published.clone()
    same.defrost()
    for node, key in [("MODEL", "WEIGHTS"), ("SOLVER", "OPTIMIZER"), ("SOLVER", "CHECKPOINT_PERIOD")]:
        same[node][key] = ours[node][key]
    same.MODEL.BACKBONE.NAME, same.TEST.EVAL_PERIOD, same.OUTPUT_DIR = ours.MODEL.BACKBONE.NAME, 0, ours.OUTPUT_DIR
    assert same == ours


def test_optimizer_names():
    cfg = get_cfg()
    assert optimizer_name(cfg) == "SGD"
    cfg.SOLVER.OPTIMIZER = "AdamW"  # as in published configs
    assert optimizer_name(cfg) == "ADAMW"
