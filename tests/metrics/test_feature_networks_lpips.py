"""LPIPS against the lpips package itself, with backbones of our own making; no network, no random weights."""

from __future__ import annotations

import socket

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reposer.errors import UserError
from reposer.metrics.feature_networks import Lpips, packaged_heads


def _package(net, version, folder):
    """The package's own network with a random backbone; that backbone in torchvision's names as a file."""
    torch.manual_seed(0)
    network = lpips.LPIPS(pretrained=True, pnet_rand=True, net=net, version=version, verbose=False)
    state = {}
    for name, value in network.net.state_dict().items():  # slice2.3.squeeze.weight
        _, rest = name.split(".", 1)
        state[f"features.{rest}"] = value.contiguous()
    path = folder / f"{net}.safetensors"
    save_file(state, path)
    return network, path


def _pair(seed=0, batch=3, size=(70, 64)):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator) for _ in range(2)
    ]


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
@pytest.mark.parametrize(
    ("net", "version"),
    [
        ("squeeze", "0.1"),
        ("alex", "0.0"),
        ("alex", "0.1"),
        pytest.param("vgg", "0.1", marks=pytest.mark.slow),
    ],
)
def test_equals_the_package(net, version, tmp_path, monkeypatch):
    network, path = _package(net, version, tmp_path)
    a, b = _pair()
    with torch.no_grad():
        expected = network(a / 127.5 - 1, b / 127.5 - 1).flatten().numpy()
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("network access"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing here"))
    before = torch.get_rng_state()
    ours = Lpips(net, version, path)
    assert torch.equal(torch.get_rng_state(), before), "building the metric draws random numbers"
    np.testing.assert_allclose(ours(a, b), expected, rtol=1e-5)
    assert (ours(a, a) == 0).all()


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory):
    with pytest.warns(UserWarning, match="weight"):
        return _package("squeeze", "0.1", tmp_path_factory.mktemp("squeeze"))


def test_mask_makes_the_background_mid_gray(squeeze):
    network, path = squeeze
    a, b = _pair(1)
    mask = torch.zeros(3, 70, 64, dtype=torch.bool)
    mask[:2, 10:50, 20:40] = True
    values = Lpips("squeeze", "0.1", path)(a, b, mask)
    with torch.no_grad():
        expected = network((a / 127.5 - 1) * mask[:, None], (b / 127.5 - 1) * mask[:, None]).flatten().numpy()
    np.testing.assert_allclose(values[:2], expected[:2], rtol=1e-5)
    assert np.isnan(values[2])  # an empty mask says nothing


def test_values_do_not_depend_on_the_batch(squeeze):
    ours = Lpips("squeeze", "0.1", squeeze[1])
    a, b = _pair(2, batch=5)
    alone = np.concatenate([ours(a[i : i + 1], b[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(ours(a, b), alone, rtol=1e-5)


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
@pytest.mark.parametrize("version", ["0.1", "0.0"])
def test_heads_are_in_the_package(net, version):
    assert packaged_heads(net, version).is_file()


def test_a_missing_or_misshapen_parameter_is_named(squeeze, tmp_path):
    from safetensors.torch import load_file

    state = load_file(squeeze[1])
    whole = dict(state)
    del state["features.3.squeeze.weight"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"short\.safetensors: features\.3\.squeeze\.weight is missing"):
        Lpips("squeeze", "0.1", tmp_path / "short.safetensors")
    whole["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    save_file(whole, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"features\.0\.weight has shape \(64, 3, 5, 5\)"):
        Lpips("squeeze", "0.1", tmp_path / "odd.safetensors")
