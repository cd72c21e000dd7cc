"""Feature networks against rebuilt references, with random weights of our own making."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from reposer.errors import UserError
from reposer.evaluation.image_quality import evaluate_images
from reposer.metrics import feature_networks, protocols
from reposer.metrics.feature_networks import (
    GflaInception,
    KerasMobileNetV2,
    PtInception,
    PtInceptionLogits,
    gfla_input,
)


def _images(batch=2, size=(32, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


def _shake(network):
    """Random BatchNorm statistics: fresh ones (0, 1) would hide a wrong eps or a wrong mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.01, 0.3)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.5)
    return network.eval()


def test_gfla_transform_by_hand():
    gray = torch.full((1, 3, 4, 2), 51, dtype=torch.uint8)  # 0.2
    shown = gfla_input(gray)
    assert shown.shape == (1, 3, 299, 299)
    # mu .485 .456 .406, sigma .229 .224 .225
    expected = [
        0.2 * 0.458 - 0.03,
        0.2 * 0.448 - 0.088,
        0.2 * 0.45 - 0.188,
    ]
    np.testing.assert_allclose(shown.mean((0, 2, 3)), expected, atol=1e-6)


def test_gfla_resize_is_bilinear_between_pixel_centers():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[:, :, :, 1] = 255
    row = (gfla_input(image)[0, 0, 0] - (0.485 - 0.5) / 0.5) / (0.229 / 0.5)  # back to [0, 1]
    expected = np.clip((np.arange(299) + 0.5) * 2 / 299 - 0.5, 0, 1)
    np.testing.assert_allclose(row, expected, atol=1e-5)


def _keras_forward(module, x):
    """torchvision's modules one by one, with TensorFlow's SAME padding and eps 1e-3 written out."""
    if isinstance(module, nn.Conv2d):
        padding = []
        for size, stride, kernel in zip(x.shape[:1:-1], module.stride, module.kernel_size, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, padding), module.weight, module.bias, module.stride, 0, 1, module.groups)
    if isinstance(module, nn.BatchNorm2d):
        scale = module.weight / torch.sqrt(module.running_var + 1e-3)
        return x * scale[:, None, None] + (module.bias - module.running_mean * scale)[:, None, None]
    if isinstance(module, nn.ReLU6):
        return x.clamp(0, 6)
    if type(module).__name__ == "InvertedResidual":
        y = _keras_forward(module.conv, x)
        return x + y if module.use_res_connect else y
    for child in module.children():
        x = _keras_forward(child, x)
    return x


@pytest.mark.parametrize("size", [(64, 32), (50, 39)])
def test_keras_mobilenet_equals_tensorflows_padding_written_out(size, tmp_path):
    torch.manual_seed(0)
    network = _shake(torchvision.models.mobilenet_v2(weights=None))
    state = {f"features.{name}": value for name, value in network.features.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    images = _images(3, size)
    with torch.no_grad():
        expected = _keras_forward(network.features, images / 127.5 - 1).mean((2, 3))
    ours = KerasMobileNetV2(tmp_path / "net.safetensors")(images)
    assert ours.shape == (3, KerasMobileNetV2.dimension)
    np.testing.assert_allclose(ours, expected, atol=1e-3)  # float32 through 52 layers


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=r"net\.safetensors: not the weights of this network"):
        KerasMobileNetV2(tmp_path / "net.safetensors")


@pytest.mark.slow
def test_gfla_inception_pools_the_last_block(tmp_path):
    torch.manual_seed(0)
    network = _shake(torchvision.models.inception_v3(weights=None, init_weights=False))
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    seen = []
    network.Mixed_7c.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = _images()
    with torch.no_grad():
        network(gfla_input(images))
    before = torch.get_rng_state()
    ours = GflaInception(tmp_path / "net.safetensors")(images)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(ours, seen[0].mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fid_equals_torchmetrics_without_antialiasing(tmp_path, monkeypatch):
    """The whole way with random Inception weights: image to features to distance."""
    import io

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    from reposer.metrics.set_scores import FeatureStatistics, frechet_distance

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # the only way to build it without its weights
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=empty)
    torch.save(_shake(network).state_dict(), tmp_path / "net.pth")
    real, fake = _images(12, seed=1), _images(12, seed=2) // 2
    metric = FrechetInceptionDistance(
        antialias=False, feature_extractor_weights_path=str(tmp_path / "net.pth")
    )
    metric.update(real, real=True)
    metric.update(fake, real=False)
    before = torch.get_rng_state()
    ours = PtInception(tmp_path / "net.pth")
    assert torch.equal(torch.get_rng_state(), before)
    sets = [FeatureStatistics(PtInception.dimension) for _ in range(2)]
    for statistics, images in zip(sets, (real, fake), strict=True):
        statistics.update(ours(images).numpy())
    assert frechet_distance(*sets) == pytest.approx(metric.compute().item(), rel=1e-3)


def test_metrics_of_one_inception_run_it_once_for_each_batch(tmp_path, monkeypatch):
    """fid, kid and is together: as many passes as fid alone, and the numbers of each alone."""
    seen: list[bytes] = []
    planes = torch.randn(3, 2048 + 1008, generator=torch.Generator().manual_seed(0))

    class Counting(nn.Module):
        def __init__(self, name, outputs, feature_extractor_weights_path):
            super().__init__()
            assert outputs == ["2048", "logits_unbiased"]
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images):
            seen.append(images.numpy().tobytes())
            return (images.float().mean((2, 3)) / 64 @ planes).split([2048, 1008], 1)

    save_file({"a": torch.zeros(1)}, tmp_path / "net.safetensors")
    monkeypatch.setattr(feature_networks, "FeatureExtractorInceptionV3", Counting)
    monkeypatch.setattr(protocols, "locate", lambda name, files: tmp_path / "net.safetensors")
    images = [_images(24, (8, 4), seed).permute(0, 2, 3, 1).numpy() for seed in (0, 1)]

    def measured(*names):
        seen.clear()
        rows = evaluate_images({"model": images[0]}, images[1], names, batch_size=8).rows
        return rows, len(seen), len(set(seen))

    alone = {name: measured(name) for name in ("fid", "kid", "is")}
    together, passes, different = measured(*alone)
    assert (
        passes == different == alone["fid"][1] == 3 + 3 + 6
    )  # the model's, the targets', two halves of these
    for name, (rows, _, _) in alone.items():
        assert {method: cells[name] for method, cells in rows.items()} == {
            method: cells[name] for method, cells in together.items()
        }
    monkeypatch.setattr(feature_networks, "MOST_KEPT", 8)  # less is kept: again as many, the same numbers
    again, passes, _ = measured(*alone)
    assert again == together
    assert passes > different


@pytest.mark.slow
def test_logits_are_those_of_torch_fidelitys_network_without_the_bias(tmp_path, monkeypatch):
    """The network as torch-fidelity builds it, its last layer written out over the pooled features."""
    import io

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    names = ["2048", "logits_unbiased", "logits"]
    with monkeypatch.context() as patch:  # the only way to build it without its weights
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("random", names, feature_extractor_weights_path=empty)
    torch.save(_shake(network).state_dict(), tmp_path / "net.pth")
    images = _images(3)
    with torch.no_grad():
        pooled, unbiased, biased = network(images)
    ours = PtInceptionLogits(tmp_path / "net.pth")(images)
    assert ours.shape == (3, PtInceptionLogits.dimension)
    np.testing.assert_allclose(ours, unbiased, rtol=1e-4, atol=1e-5)
    weight = network.state_dict()["fc.weight"].double()
    expected = pooled.double() @ weight.T  # some thousands with these weights, summed in float32 by ours
    np.testing.assert_allclose(ours, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    assert (ours - biased).abs().max() > 1e-3  # the bias is left out
