"""The network as a whole: shapes, initial state, gradients, and independence of what stands beside a picture."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.profiler import ProfilerActivity, profile

from app.artifact import Size, grids
from model.backbone import Backbone, StaticSameConv2d, _load_matching, load_imagenet_weights
from model.config import STRIDES, FCOSConfig, InputConfig
from model.fcos import FCOS
from model.fpn import FPN

CLASSES = ("cat", "dog", "bird")
TINY = "test_efficientnet"
INPUT = InputConfig(short=128, long=160, canvases=((128, 160), (160, 128)))


def tiny(**options: object) -> FCOS:
    torch.manual_seed(0)
    values = {"classes": CLASSES, "backbone": TINY, "channels": 32, "norm_groups": 8, **options}
    return FCOS(FCOSConfig(**values), INPUT)  # type: ignore[arg-type]


def pictures(batch: int = 2, canvas: tuple[int, int] = (128, 160)) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, *canvas), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("canvas", [(128, 160), (96, 32), (416, 416)])
def test_every_level_gives_its_points(canvas: tuple[int, int]) -> None:
    heads = tiny().eval()(pictures(2, canvas))
    points = sum(rows * columns for rows, columns in grids(STRIDES, Size(*canvas)))
    assert heads.class_logits.shape == (2, points, 3)
    assert heads.distances.shape == (2, points, 4)
    assert heads.centerness.shape == (2, points)
    assert (heads.distances >= 0).all()


@pytest.mark.parametrize("options", [{"norm": "gn"}, {"norm": "bn"}, {"head_conv": "full", "head_kernel": 3}])
def test_every_parameter_gets_a_finite_gradient(options: dict[str, object]) -> None:
    model = tiny(**options)
    boxes = [torch.tensor([[10.0, 10, 60, 60], [20, 20, 150, 120]]), torch.tensor([[5.0, 5, 25, 25]])]
    # Boxes for every level: P6 and P7 learn from what is larger than this canvas.
    boxes[1] = torch.cat((boxes[1], torch.tensor([[-300.0, -300, 460, 428], [-900.0, -900, 1060, 1028]])))
    labels = [torch.tensor([0, 1]), torch.tensor([2, 0, 1])]
    sum(model.losses(pictures(), boxes, labels).values(), torch.zeros(())).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_a_batch_without_boxes_gives_every_parameter_a_finite_gradient() -> None:
    model = tiny()
    nothing = [torch.zeros(0, 4)] * 2
    losses = model.losses(pictures(), nothing, [torch.zeros(0, dtype=torch.long)] * 2)
    sum(losses.values(), torch.zeros(())).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_before_training_every_class_has_a_probability_of_one_percent() -> None:
    scores = tiny().eval()(pictures()).class_logits.sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, abs=1e-3)
    assert scores.max().item() < 0.03


def test_head_convolutions_start_small_and_without_bias() -> None:
    head = tiny(head_conv="full", channels=64).head
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.15), name
            if name != "class_logits":
                assert module.bias is not None
                assert (module.bias == 0).all(), name
    assert all(scale.item() == 1 for scale in head.scales)


@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_convolutions_start_with_unit_gain(kernel: int) -> None:
    head = tiny(head_kernel=kernel, channels=64).head
    depthwise = [module for module in head.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    weights = torch.cat([module.weight.flatten() for module in depthwise])
    assert weights.std().item() == pytest.approx(1 / kernel, rel=0.05)


def test_a_negative_scale_never_gives_a_negative_distance() -> None:
    model = tiny().eval()
    with torch.no_grad():
        for scale in model.head.scales:
            scale.fill_(-3.0)
        nn.init.normal_(model.head.distances.weight)
    assert (model(pictures()).distances >= 0).all()


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_a_pictures_heads_do_not_depend_on_its_batch_mates(norm: str) -> None:
    model = tiny(norm=norm).eval()
    images = pictures(3)
    together, alone = model(images), model(images[1:2])
    for all_of_them, one in zip(together, alone, strict=True):
        torch.testing.assert_close(all_of_them[1:2], one, atol=1e-4, rtol=1e-5)


def test_levels_share_convolutions_and_keep_their_own_batch_statistics() -> None:
    shared, own = tiny(norm="gn").head, tiny(norm="bn").head
    assert len([*own.class_tower.norms[0].children()]) == len(STRIDES)
    assert len([*shared.class_tower.norms[0].children()]) == 1
    assert len(own.class_tower.convs) == len(shared.class_tower.convs) == 2


def test_pyramid_sizes_halve_and_p6_comes_from_p5() -> None:
    torch.manual_seed(0)
    fpn = FPN([4, 6, 8], 16)
    features = [torch.rand(1, c, 20 // k, 28 // k) for c, k in ((4, 1), (6, 2), (8, 4))]
    pyramid = fpn(features)
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)]
    torch.testing.assert_close(pyramid[3], fpn.p6(pyramid[2]))


@pytest.mark.parametrize("backbone", [TINY, "tf_efficientnet_lite0", "mobilenetv3_large_100"])
def test_no_activation_copies_its_input_for_the_gradient(backbone: str) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as ran:
        Backbone(backbone)(torch.zeros(2, 3, 64, 96))
    assert "aten::clone" not in {event.key for event in ran.key_averages()}


def test_static_padding_is_tensorflows_same_padding() -> None:
    for kernel, stride in ((3, 2), (5, 2), (3, 1), (5, 1)):
        dynamic = Conv2dSame(4, 6, kernel, stride=stride)
        static = StaticSameConv2d(4, 6, kernel, stride=stride)
        static.load_state_dict(dynamic.state_dict())
        x = torch.rand(2, 4, 64, 96)
        torch.testing.assert_close(static(x), dynamic(x))


def test_the_default_backbones_features_are_timms() -> None:
    torch.manual_seed(0)
    ours = Backbone("tf_efficientnet_lite0").eval()
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4)).eval()
    theirs.load_state_dict(ours.body.state_dict())
    x = torch.rand(1, 3, 96, 64)
    for mine, other in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_packaged_imagenet_weights_are_loaded_whole(name: str) -> None:
    backbone = Backbone(name)
    before = backbone.body.conv_stem.weight.clone()
    assert load_imagenet_weights(backbone, name).startswith("ImageNet")
    assert not torch.equal(before, backbone.body.conv_stem.weight)
    # Statistics of a trained network, not the zeros and ones of a new one.
    variances = [m.running_var for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(v is not None and not torch.equal(v, torch.ones_like(v)) for v in variances)


def test_a_short_file_of_packaged_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "short.pth")
    name = "tf_efficientnet_lite0"
    with pytest.raises(ValueError, match="they are 1 tensors"):
        load_imagenet_weights(Backbone(name), name, str(tmp_path / "short.pth"))


def test_resnet_weights_of_torchvision_are_loaded_from_their_file(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(3)
    theirs = resnet18(weights=None).state_dict()
    torch.save(theirs, tmp_path / "resnet18.pth")
    backbone = Backbone("resnet18")
    load_imagenet_weights(backbone, "resnet18", str(tmp_path / "resnet18.pth"))
    ours = backbone.body.state_dict()
    assert {key for key in theirs if key in ours} == {key for key in theirs if not key.startswith("fc.")}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet999"}, "timm does not know the model 'resnet999'"),
        ({"backbone": "vit_tiny_patch16_224"}, "no features at strides 8, 16 and 32"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, "'swin_tiny_patch4_window7_224'"),
        ({"channels": 80, "norm_groups": 32}, "multiple of norm_groups"),
        ({"classes": ("cat", "cat")}, "unique"),
        ({"classes": ()}, "at least one"),
        ({"head_kernel": 4}, "odd"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_words(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_a_norm_with_a_single_value_to_work_on_is_refused_in_words() -> None:
    small = InputConfig(short=128, long=128, canvases=((128, 128),))
    with pytest.raises(ValueError, match=r"32 channels .* canvas of 128x128: choose more channels"):
        FCOS(FCOSConfig(classes=CLASSES, backbone=TINY, channels=32), small)
    FCOS(FCOSConfig(classes=CLASSES, backbone=TINY, channels=32, norm="bn"), small)
    FCOS(FCOSConfig(classes=CLASSES, backbone=TINY, channels=64), small)


def test_configs_survive_a_round_trip_and_refuse_strange_keys() -> None:
    config = FCOSConfig(classes=CLASSES, channels=64, norm="bn")
    assert FCOSConfig.from_dict(config.to_dict()) == config
    assert InputConfig.from_dict(INPUT.to_dict()) == INPUT
    with pytest.raises(ValueError, match="colour"):
        FCOSConfig.from_dict({**config.to_dict(), "colour": "red"})


def test_the_canvass_filler_is_zero_to_the_network_also_where_the_mean_is_no_whole_number() -> None:
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    config = InputConfig(short=128, long=160, canvases=INPUT.canvases, mean=mean, std=std)
    model = FCOS(FCOSConfig(classes=CLASSES, backbone=TINY, channels=32), config)
    images = pictures()
    images[:, :, 100:] = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
    x = model.normalize(images)
    assert (x[:, :, 100:] == 0).all()
    expected = (images.float() - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(x[:, :, :100], expected[:, :, :100])


def test_the_packaged_weights_are_found_under_timms_name_of_them_too() -> None:
    backbone = Backbone("tf_efficientnet_lite0.in1k")
    assert "efficientnet-lite0" in load_imagenet_weights(backbone, "tf_efficientnet_lite0.in1k")


def test_weights_of_extractors_that_wrap_their_model_are_found() -> None:
    name = "twins_svt_small"
    state = timm.create_model(name).state_dict()
    backbone = Backbone(name)
    _load_matching(backbone, state, "timm's weights")
    key = "patch_embeds.0.proj.weight"
    assert backbone.body.state_dict()[f"model.{key}"].equal(state[key])
