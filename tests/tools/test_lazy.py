"""Python configs by tools/train_net.py: trained as the YAML config is, and every kind of mistake in them."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage
from omegaconf import ListConfig

from patchdct.trainer import Trainer
from pixelmask.config import load_cfg
from pixelmask.engine.lazy import lazy_trainer, load_lazy, settings_of
from pixelmask.errors import UserError
from tests.support.models import training_input
from tests.support.training import logged_by, metrics_of, run_train_net, same

pytestmark = pytest.mark.usefixtures("data_root")

R50 = "configs/patchdct/lazy/patchdct_R_50_FPN_1x_coco"
VITDET = "configs/patchdct/lazy/patchdct_vitdet_b_coco.py"
SHAPES = "tests/support/lazy_shapes.py"


def train(output, *overrides, options=()):
    run_train_net(["--config-file", SHAPES, *options, f"train.output_dir={output}", *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, trained_patchdct, drawn_data):
    """The output of a training by the Python config."""
    folder = tmp_path_factory.mktemp("lazy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(drawn_data))
        train(folder, "train.log_period=1")
    return folder


def found(folder):
    """The detections of an evaluation."""
    (path,) = (folder / "inference").rglob("coco_instances_results.json")
    return path.read_text()


def losses(folder):
    return [
        {key: value for key, value in line.items() if "time" not in key and key != "eta_seconds"}
        for line in logged_by(folder)
    ]


def test_a_training_is_digit_for_digit_that_of_the_yaml_config(trained, trained_patchdct):
    assert same(metrics_of(trained), metrics_of(trained_patchdct))
    lazy, yaml = (torch.load(folder / "model_final.pth", weights_only=False) for folder in (trained, trained_patchdct))
    assert all(torch.equal(lazy["model"][name], tensor) for name, tensor in yaml["model"].items())
    assert lazy["iteration"] == yaml["iteration"] and "config" not in lazy
    assert losses(trained)[-1] == losses(trained_patchdct)[-1]
    assert [line["iteration"] for line in logged_by(trained)][:3] == [0, 1, 2]  # log_period
    assert "_target_" in (trained / "config.yaml").read_text()


def test_resuming_and_evaluation_alone(trained, tmp_path):
    shutil.copy(trained / "model_0000001.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    train(tmp_path, options=["--resume"])
    assert [line["iteration"] for line in logged_by(tmp_path)][0] == 2
    again = [torch.load(folder / "model_final.pth", weights_only=False) for folder in (trained, tmp_path)]
    assert again[0]["iteration"] == again[1]["iteration"] == 2
    train(tmp_path / "given", f"train.init_checkpoint={trained}/model_final.pth", options=["--eval-only"])
    assert found(tmp_path / "given") == found(trained)
    resumed = found(tmp_path)
    train(tmp_path, f"train.init_checkpoint={trained}/model_final.pth", options=["--eval-only", "--resume"])
    assert found(tmp_path) == resumed != found(trained)


SEQUENCES = (list, tuple, ListConfig)


def plain(value):
    """Return numbers, texts and lists of them as they compare; None for all else."""
    if isinstance(value, SEQUENCES):
        return [plain(part) for part in value]
    return value if isinstance(value, (int, float, str)) else None


def settings(model):
    """The class and the plain attributes of each module, and of the helpers that a module has."""
    found = {}
    for name, module in model.named_modules():
        helpers = {k: vars(v) for k, v in vars(module).items() if type(v).__module__.startswith("detectron2.modeling")}
        for part, values in {"": vars(module), **helpers}.items():
            found[name, part] = type(module), {key: plain(value) for key, value in values.items()}
    return found


def test_the_yaml_and_the_python_config_are_equal():
    lazy = load_lazy(f"{R50}.py", ["train.device=meta"])
    ours, yaml = (
        settings_of(lazy, R50),
        load_cfg("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml", ["MODEL.DEVICE", "meta"]),
    )
    for group, keys in {
        "SOLVER": ["MAX_ITER", "IMS_PER_BATCH", "CHECKPOINT_PERIOD"],
        "DATASETS": ["TRAIN", "TEST"],
        "MODEL": ["WEIGHTS", "MASK_ON", "META_ARCHITECTURE"],
    }.items():
        assert [ours[group][key] for key in keys] == [yaml[group][key] for key in keys]
    trainer = lazy_trainer(Trainer, lazy)
    with torch.device("meta"):
        models = [trainer.build_model(ours), Trainer.build_model(yaml)]
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    assert settings(models[0]) == settings(models[1])
    for is_train in (True, False):
        mappers = [build(cfg, is_train) for build, cfg in ((trainer.build_mapper, ours), (Trainer.build_mapper, yaml))]
        for mapper in mappers:
            mapper.use_instance_mask |= not is_train  # of annotations, which a test has none of
        numbers = [plain(list(vars(mapper).values())) for mapper in mappers]
        assert numbers[0] == numbers[1]
        single = "" if is_train else ", sample_style='choice'"  # of one size
        texts = [str(mapper.augmentations).replace(single, "") for mapper in mappers]
        augmentations = [text.replace("(", "[").replace(")", "]") for text in texts]
        assert augmentations[0] == augmentations[1]
    optimizers = [trainer.build_optimizer(ours, models[0]), Trainer.build_optimizer(yaml, models[1])]
    groups = [
        sorted((len(g["params"]), g["lr"], g["weight_decay"], g["momentum"]) for g in o.param_groups)
        for o in optimizers
    ]
    assert sum(count for count, *_ in groups[0]) == sum(count for count, *_ in groups[1])
    assert {group[1:] for group in groups[0]} == {group[1:] for group in groups[1]}
    multiplier = instantiate(lazy.lr_multiplier)
    expected = build_lr_scheduler(yaml, optimizers[1])._multiplier
    for iteration in (0, 500, 1000, 59999, 60000, 79999, 80000, 89999):
        assert multiplier(iteration / 90000) == pytest.approx(expected(iteration / 90000))


def test_patchdct_on_vitdet(tmp_path):
    if find_spec("detectron2.modeling.backbone.vit") is None:
        with pytest.raises(UserError, match=r"vitdet_b_coco.py, line \d+: .* lacks it; its main branch"):
            load_lazy(VITDET)
        return
    pytest.importorskip("timm", reason="Detectron2's ViT needs timm")
    small = ["backbone.net.depth=1", "backbone.net.img_size=64", "backbone.square_pad=64"]
    small += ["roi_heads.mask_head.sizes.hidden_features=8", "roi_heads.box_head.conv_dims=[8]"]
    lazy = load_lazy(VITDET, ["train.device=cpu", f"train.output_dir={tmp_path}", *(f"model.{key}" for key in small)])
    trainer, cfg = lazy_trainer(Trainer, lazy), settings_of(lazy, VITDET)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.AMP.ENABLED) == (64, 184375, True)
    model = trainer.build_model(cfg)
    assert {"mask_fcn1.norm.weight", "predictor_bfg.weight"} <= model.roi_heads.mask_head.state_dict().keys()
    optimizer = trainer.build_optimizer(cfg, model)
    trainer.build_lr_scheduler(cfg, optimizer)
    assert len({group["lr"] for group in optimizer.param_groups}) > 1  # by depth
    with EventStorage():
        sum(model([training_input(2, 64)]).values()).backward()
    assert model.backbone.net.pos_embed.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        (None, [], ["no config file", "wrong.py"]),
        ("model = (\n", [], ["wrong.py, line 1"]),
        ("x = 1\ny = x.z\n", [], ["wrong.py, line 2", "'int' object has no attribute 'z'"]),
        ("from .absent import model\n", [], ["wrong.py, line 1", "absent.py"]),
        ("x = {}\n", [], ["wrong.py does not define model, optimizer.params, lr_multiplier, dataloader.train"]),
        ("WHOLEmodel.cfg.config = 1\n", [], ["model of the Python config", "config"]),
        ("WHOLEmodel.cfg.config_file = 'none.yaml'\n", [], ["none.yaml"]),
        ("WHOLEdataloader['train'].total_batch_sizes = 2\n", [], ["dataloader.train", "total_batch_sizes"]),
        ("WHOLEtrain['max_iter'] = 'many'\n", [], ["wrong.py", "SOLVER.MAX_ITER"]),
        ("WHOLE", ["train.max_iters=3"], ["no train.max_iters"]),
        ("WHOLE", ["tarin.max_iter=3"], ["no tarin.max_iter"]),
        ("WHOLE", ["SOLVER.MAX_ITER", "3"], ["no SOLVER.MAX_ITER", "key=value"]),
        ("WHOLE", ["train.max_iter=[3"], ["the command line", "train.max_iter=[3"]),
        ("WHOLE", ["dataloader.train.dataset.names=coco_2017_trian"], ["coco_2017_trian", "coco_2017_train"]),
        ("WHOLE", ["train.init_checkpoint=nowhere.pth"], ["nowhere.pth"]),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, fails, text, overrides, parts):
    path = tmp_path / "wrong.py"
    if text is not None:
        path.write_text(text.replace("WHOLE", f"{Path(SHAPES).read_text()}train['output_dir'] = {str(tmp_path)!r}\n"))
    with fails(*parts):
        run_train_net(["--config-file", str(path), *overrides])


def test_evaluation_without_weights_and_other_tools(tmp_path, fails):
    with fails("train.init_checkpoint", "--resume"):
        train(tmp_path, options=["--eval-only"])
    with pytest.raises(UserError, match=r"lazy_shapes.py is a Python config, which tools/train_net.py alone"):
        load_cfg(SHAPES)
