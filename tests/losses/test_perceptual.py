"""The perceptual loss against torchvision's networks with planted weights; bad weight files are refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from reposer.errors import MissingWeightsError, UserError
from reposer.images import IMAGENET_MEAN, IMAGENET_STD
from reposer.losses.perceptual import PerceptualNetwork, layer_differences


def perceptual_loss(
    network: PerceptualNetwork, generated: Tensor, target: Tensor, norm: str = "l2"
) -> Tensor:
    """As training sums it: the target's maps receive no gradient."""
    with torch.no_grad():
        wanted = network(target)
    return torch.stack(layer_differences(network(generated), wanted, norm)).sum()


@cache
def original(net: str) -> nn.Sequential:
    """torchvision's feature layers with seeded weights, activations not in place."""
    torch.manual_seed(0)
    if net == "squeezenet":
        features = torchvision.models.squeezenet1_1().features
    else:  # the classifier of a VGG has 120 M parameters that nobody needs here
        features = torchvision.models.vgg.make_layers(
            torchvision.models.vgg.cfgs[{"vgg16": "D", "vgg19": "E"}[net]]
        )
    for layer in features.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.bias, std=0.1)
    assert isinstance(features, nn.Sequential)
    return features.requires_grad_(False)


def weights_of(net: str) -> dict[str, Tensor]:
    return {f"features.{key}": value for key, value in original(net).state_dict().items()}


def truth(net: str, image: Tensor, index: int) -> Tensor:
    """The map behind torchvision's layer ``index``, its input normalized as torchvision says."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((image + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    maps: Tensor = original(net)[: index + 1](x)
    return maps


@pytest.fixture
def images() -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 3, 64, 48, generator=rng) * 2 - 1 for _ in range(2))


INDEX = [
    *(("vgg19", name, i) for name, i in {"conv1_2": 2, "relu1_2": 3, "relu3_4": 17, "pool5": 36}.items()),
    *(("vgg16", name, i) for name, i in {"relu1_2": 3, "pool1": 4, "conv3_3": 14, "relu5_3": 29}.items()),
    *(("squeezenet", name, i) for name, i in {"conv1": 0, "relu1": 1, "fire2": 3, "pool3": 5}.items()),
    *(("squeezenet", name, i) for name, i in {"fire4": 6, "pool5": 8, "fire6": 9, "fire9": 12}.items()),
]


@pytest.mark.parametrize(("net", "layer", "index"), INDEX)
def test_maps_are_torchvision_s(net: str, layer: str, index: int, images: tuple[Tensor, Tensor]) -> None:
    (maps,) = PerceptualNetwork(net, (layer,), weights_of(net))(images[0])
    torch.testing.assert_close(maps, truth(net, images[0], index), rtol=1e-4, atol=1e-5)


def test_images_can_be_seen_as_they_are(images: tuple[Tensor, Tensor]) -> None:
    """What is normalized elsewhere: an image whose normalization is the one at hand has its maps."""
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    network = PerceptualNetwork("vgg16", ("relu2_2",), weights_of("vgg16"), normalize=False)
    (maps,) = network(images[0])
    unscaled = (images[0] * deviation + mean) * 2 - 1
    torch.testing.assert_close(maps, truth("vgg16", unscaled, 8), rtol=1e-4, atol=1e-5)


def test_a_convolution_and_its_activation_can_both_be_asked_for(images: tuple[Tensor, Tensor]) -> None:
    network = PerceptualNetwork("vgg19", ("relu1_1", "conv1_1", "conv2_1"), weights_of("vgg19"))
    for maps, index in zip(network(images[0]), (1, 0, 5), strict=True):
        torch.testing.assert_close(maps, truth("vgg19", images[0], index), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_loss_is_the_mean_difference_summed_over_layers(norm: str, images: tuple[Tensor, Tensor]) -> None:
    expected = 0.0
    for index in (3, 8):
        difference = truth("vgg19", images[0], index) - truth("vgg19", images[1], index)
        expected += (difference.square() if norm == "l2" else difference.abs()).mean().item()
    network = PerceptualNetwork("vgg19", ("relu1_2", "relu2_2"), weights_of("vgg19"))
    assert perceptual_loss(network, *images, norm=norm).item() == pytest.approx(expected, rel=1e-4)
    assert perceptual_loss(network, images[0], images[0], norm=norm).item() == 0


def test_only_the_generated_image_gets_a_gradient(images: tuple[Tensor, Tensor]) -> None:
    network = PerceptualNetwork(weights=weights_of("vgg19"))
    generated, target = (image.clone().requires_grad_() for image in images)
    perceptual_loss(network, generated, target).backward()
    assert generated.grad is not None
    assert generated.grad.abs().max() > 0
    assert target.grad is None
    assert not any(p.requires_grad for p in network.parameters())


def test_default_is_vgg19_relu1_2_and_no_deeper() -> None:
    network = PerceptualNetwork(weights=weights_of("vgg19"))
    assert network.names == ("conv1_1", "relu1_1", "conv1_2", "relu1_2")
    assert sum(p.numel() for p in network.parameters()) == 3 * 64 * 9 + 64 + 64 * 64 * 9 + 64


def test_planted_weights_are_copied() -> None:
    weights = weights_of("vgg19")
    weights = {key: value.clone() for key, value in weights.items()}
    network = PerceptualNetwork(weights=weights)
    weights["features.0.weight"].zero_()
    assert network.features[0].weight.abs().max() > 0  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("prefix", ["", "features."])
def test_truncated_file_serves_the_layers_it_has(prefix: str, tmp_path: Path) -> None:
    part = {prefix + key: value for key, value in original("vgg16")[:5].state_dict().items()}
    save_file(part, tmp_path / "part.safetensors")
    network = PerceptualNetwork("vgg16", ("relu1_2",), tmp_path / "part.safetensors")
    assert torch.equal(network.features[2].weight, original("vgg16")[2].weight)  # type: ignore[arg-type, union-attr]
    with pytest.raises(UserError, match=r"lack 5\.bias"):
        PerceptualNetwork("vgg16", ("relu2_1",), tmp_path / "part.safetensors")


def test_torchvision_s_own_file_format_is_read(tmp_path: Path) -> None:
    extra = {"classifier.1.weight": torch.zeros(1), "classifier.1.bias": torch.zeros(1)}
    torch.save({**weights_of("squeezenet"), **extra}, tmp_path / "squeezenet.pth")
    network = PerceptualNetwork("squeezenet", ("fire2",), tmp_path / "squeezenet.pth")
    assert torch.equal(network.features[0].weight, original("squeezenet")[0].weight)  # type: ignore[arg-type, union-attr]


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"none\.pth"):
        PerceptualNetwork("vgg19", weights=tmp_path / "none.pth")
    with pytest.raises(UserError, match="unknown 17"):  # a VGG-16 is not a VGG-19
        PerceptualNetwork("vgg19", weights=weights_of("vgg16"))
    wrong = {**weights_of("vgg19"), "features.0.weight": torch.zeros(64, 3, 5, 5)}
    with pytest.raises(UserError, match=r"wrong shape for 0\.weight"):
        PerceptualNetwork("vgg19", weights=wrong)


def test_missing_weights_are_never_made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("REPOSER_WEIGHTS", "TORCH_HOME", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    for net in ("vgg19", "vgg16", "squeezenet"):
        with pytest.raises(MissingWeightsError):
            PerceptualNetwork(net, ("pool5",))


@pytest.mark.parametrize(
    ("net", "layers"), [("vgg19", ("relu1_3",)), ("squeezenet", ("relu1_2",)), ("vgg16", ())]
)
def test_unknown_layers_are_named(net: str, layers: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^layer of .*unknown: did you mean"):
        PerceptualNetwork(net, layers, {})


def test_unknown_network_and_norm_are_named(images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="vgg11"):
        PerceptualNetwork("vgg11")
    with pytest.raises(UserError, match="l3"):
        perceptual_loss(PerceptualNetwork(weights=weights_of("vgg19")), *images, norm="l3")
