"""The perceptual networks with real ImageNet weights on real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from reposer.errors import UserError
from reposer.images import imagenet_normalize
from reposer.losses.perceptual import PerceptualNetwork, layer_differences

SHARED = Path(__file__).parents[3] / "shared"
VGG16 = SHARED / "weights" / "vgg16_features_to_relu3_3_imagenet.safetensors"
SQUEEZENET = SHARED / "weights" / "squeezenet1_1_imagenet.safetensors"
PHOTOS = SHARED / "data" / "market1501"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (VGG16.is_file() and PHOTOS.is_dir()), reason="no real data beside the repository"
    ),
]


def perceptual_loss(
    network: PerceptualNetwork, generated: Tensor, target: Tensor, norm: str = "l2"
) -> Tensor:
    """As training sums it: the target's maps receive no gradient."""
    with torch.no_grad():
        wanted = network(target)
    return torch.stack(layer_differences(network(generated), wanted, norm)).sum()


@pytest.fixture(scope="module")
def people() -> Tensor:
    """(64, 3, 128, 64) model-float crops."""
    paths = sorted(PHOTOS.rglob("*.jpg"))
    crops = [np.asarray(Image.open(path).convert("RGB")) for path in paths[:: max(1, len(paths) // 64)][:64]]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_relu1_2_of_vgg16_has_the_scale_its_maker_states(people: Tensor) -> None:
    network = PerceptualNetwork("vgg16", ("relu1_2",), VGG16)
    (maps,) = network(people)
    assert maps.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.2)


def test_every_layer_of_the_truncated_vgg16_loads_and_no_more(people: Tensor) -> None:
    names = ("relu1_1", "relu1_2", "relu2_2", "relu3_3")
    for maps in PerceptualNetwork("vgg16", names, VGG16)(people[:4]):
        assert (maps.amax((0, 2, 3)) > 0).float().mean() > 0.9
    with pytest.raises(UserError, match="lack"):
        PerceptualNetwork("vgg16", ("relu4_1",), VGG16)


def test_squeezenet_is_torchvision_s(people: Tensor) -> None:
    official = torchvision.models.squeezenet1_1().eval()
    official.load_state_dict(load_file(SQUEEZENET))
    (maps,) = PerceptualNetwork("squeezenet", ("fire9",), SQUEEZENET)(people[:4])
    with torch.no_grad():
        torch.testing.assert_close(maps, official.features(imagenet_normalize(people[:4])))


@pytest.mark.parametrize(
    ("net", "layer", "path"), [("vgg16", "relu1_2", VGG16), ("squeezenet", "fire4", SQUEEZENET)]
)
def test_loss_grows_with_blur(net: str, layer: str, path: Path, people: Tensor) -> None:
    network = PerceptualNetwork(net, (layer,), path)
    losses = []
    for sigma in (0.5, 1.0, 2.0, 4.0):
        blurred = torchvision.transforms.functional.gaussian_blur(people, [15, 15], [sigma, sigma])
        losses.append(perceptual_loss(network, blurred, people).item())
    assert losses == sorted(losses)
    assert losses[0] > 0
