"""Embeddings: shapes, the two features, use at any size, windows, mirror, frozen norms, ImageNet weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.v2.functional import resize

from reposer.errors import MissingWeightsError, UserError
from reposer.images import imagenet_normalize, to_float
from reposer.models.backbones import MobileNetV2, ResNet
from reposer.models.embedding import EMBEDDINGS, Embedding, ReidNetwork, compare_pairs, load_pretrained


def _images(count: int = 3, size: tuple[int, int] = (64, 32), seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("small", {}, (4, 2)),
        ("resnet18", {}, (2, 1)),
        ("resnet50", {"last_stride": 1}, (4, 2)),
        ("mobilenet_v2", {}, (2, 1)),
        ("mobilenet_v2", {"last_stride": 1}, (4, 2)),
        ("mobilenet_v2_keras", {"last_stride": 1}, (4, 2)),
    ],
)
def test_backbones_keep_their_promises(name, args, size):
    backbone = EMBEDDINGS[name](**args).eval()
    with torch.inference_mode():
        maps = backbone(to_float(_images()))
    assert maps.shape == (3, backbone.channels, *size)


def test_a_trained_resnet_gives_torchvisions_pooled_feature():
    torch.manual_seed(0)
    whole = torchvision.models.resnet18(weights=None).eval()
    backbone = ResNet("resnet18").eval()
    backbone.load(whole.state_dict())
    whole.fc = nn.Identity()
    image = to_float(_images())
    with torch.inference_mode():
        torch.testing.assert_close(backbone(image).mean((2, 3)), whole(imagenet_normalize(image)))


def test_keras_padding_by_hand():
    """Keras' stride 2 on an even side looks at pixels 0-2, 2-4, ...; torchvision's at -1-1, 1-3, ..."""
    torch.manual_seed(0)
    network = MobileNetV2(keras=True)
    convolution = network.features[0][0]
    for side in (8, 9):
        x = torch.randn(1, 3, side, side)
        padded = F.pad(x, (0, 1, 0, 1)) if side == 8 else F.pad(x, (1, 1, 1, 1))
        by_hand = F.conv2d(padded, convolution.weight, stride=2)
        torch.testing.assert_close(convolution(x), by_hand)
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_in_use_images_of_any_size_become_vectors_of_length_one():
    torch.manual_seed(0)
    embedding = Embedding("small", size=(64, 32), stripes=2).eval()
    images = _images(3, (90, 50))
    with torch.inference_mode():
        features = embedding(images)
        resized = resize(to_float(images), [64, 32], antialias=True)  # torchvision's
        assert features.shape == (3, embedding.dimension) == (3, 256)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(features, embedding(resized))
        torch.testing.assert_close(features, F.normalize(embedding.features(resized).feature, dim=1))


def test_stripes_are_the_means_of_their_rows():
    embedding = Embedding("small", size=(64, 32), stripes=2, neck="none").eval()
    with torch.inference_mode():
        maps = embedding.backbone(to_float(_images()))  # (3, C, 4, 2)
        pooled = embedding.features(_images()).pooled.view(3, -1, 2)
    torch.testing.assert_close(pooled[..., 0], maps[:, :, :2].mean((2, 3)))
    torch.testing.assert_close(pooled[..., 1], maps[:, :, 2:].mean((2, 3)))


def test_the_neck_stands_between_the_two_features():
    embedding = Embedding("small", neck="bn").train()
    features = embedding.features(_images(8))
    torch.testing.assert_close(features.feature.mean(0), torch.zeros(128), atol=1e-5, rtol=0)
    assert features.pooled.min() >= 0  # after a ReLU
    assert not embedding.neck.bias.requires_grad
    plain = Embedding("small", neck="none").features(_images(2))
    assert plain.feature is plain.pooled


def test_windows_by_a_loop():
    torch.manual_seed(0)
    embedding = Embedding("small", size=(64, 48), neck="none", window=2).eval()
    images = _images(2, (64, 48))
    with torch.inference_mode():
        maps, total = embedding.backbone(to_float(images)), 0
        for row in range(3):
            for column in range(2):
                mean = maps[:, :, row : row + 2, column : column + 2].mean((2, 3))
                total = total + mean / mean.norm(dim=1, keepdim=True)
        torch.testing.assert_close(embedding(images), total / total.norm(dim=1, keepdim=True))


def test_the_mirror_image_counts_as_much():
    torch.manual_seed(0)
    embedding = Embedding("small", size=(64, 32), mirror=True).eval()
    plain = Embedding("small", size=(64, 32)).eval()
    plain.load_state_dict(embedding.state_dict())
    with torch.inference_mode():
        both = plain(_images()) + plain(_images().flip(3))
        torch.testing.assert_close(embedding(_images()), F.normalize(both, dim=1))
        torch.testing.assert_close(embedding(_images()), embedding(_images().flip(3)))


def test_frozen_norms_keep_their_statistics():
    embedding = Embedding("small", neck="none", freeze_norm=True).train()
    norms = [m for m in embedding.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    embedding.features(_images()).pooled.sum().backward()
    assert all(torch.equal(a, norm.running_mean) for a, norm in zip(before, norms, strict=True))
    assert all(norm.weight.grad is not None for norm in norms)


def test_imagenet_weights_come_from_a_file(tmp_path, monkeypatch):
    whole = torchvision.models.resnet18(weights=None)
    file = tmp_path / "resnet18.safetensors"
    save_file(whole.state_dict(), file)
    embedding = Embedding("resnet18")
    assert load_pretrained(embedding, file) == file
    assert torch.equal(embedding.backbone.network.conv1.weight, whole.conv1.weight)
    with pytest.raises(UserError, match="not the weights of this backbone"):
        load_pretrained(Embedding("resnet50"), file)
    with pytest.raises(UserError, match="Small: no official"):
        load_pretrained(Embedding("small"))
    monkeypatch.setenv("REPOSER_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="resnet18-f37072fd"):
        load_pretrained(embedding)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"backbone": "resnet5"}, "resnet5"),
        ({"backbone": "resnet18", "backbone_args": {"last_strid": 1}}, "did you mean last_stride"),
        ({"backbone": "resnet18", "backbone_args": {"last_stride": 3}}, "last_stride"),
        ({"neck": "giraffe"}, "neck"),
        ({"window": 3}, "window"),
        ({"size": (0, 64)}, "impossible"),
        ({"backbone_args": {"widths": [4]}}, "widths"),
    ],
)
def test_impossible_networks_are_refused(args, message):
    with pytest.raises(UserError, match=message):
        Embedding(**args)


def test_pairs_are_the_two_halves_of_a_batch():
    torch.manual_seed(0)
    network = ReidNetwork(Embedding("small", neck="none"), classes=5, verification="square").eval()
    images = _images(6)
    output = network(images)
    assert output.logits.shape == (6, 5)
    a, b = output.pooled[:3], output.pooled[3:]
    torch.testing.assert_close(output.pair_logits, network.verifier((a - b) ** 2))
    assert ReidNetwork(Embedding("small"), classes=5)(images).pair_logits is None


def test_comparisons_by_hand():
    a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]])
    assert compare_pairs(a, b, "square").tolist() == [[4, 9]]
    assert compare_pairs(a, b, "product").tolist() == [[3, -2]]
    assert compare_pairs(a, b, "abs").tolist() == [[2, 3]]
    with pytest.raises(UserError, match="verification"):
        ReidNetwork(Embedding("small"), classes=5, verification="sum")


@pytest.mark.parametrize("name", ["small", "resnet18", "mobilenet_v2_keras"])
def test_the_lowest_parts_stay_as_they_are(name):
    torch.manual_seed(0)
    network = Embedding(name, frozen=3, neck="none").train()
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network.features(_images()).feature.square().sum().backward()
    optimizer.step()
    changed = {
        key for key, value in network.backbone.state_dict().items() if not torch.equal(value, before[key])
    }
    low = {key for part in network.backbone.parts()[:3] for key in _keys_of(network.backbone, part)}
    assert low
    assert changed == set(before) - low
    with pytest.raises(UserError, match="frozen=99"):
        Embedding(name, frozen=99)


def _keys_of(backbone: nn.Module, part: nn.Module) -> set[str]:
    """State keys of the backbone whose tensors are the part's."""
    own = {value.data_ptr() for value in part.state_dict().values()}
    return {key for key, value in backbone.state_dict().items() if value.data_ptr() in own}
