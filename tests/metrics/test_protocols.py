"""The names: what each pins, how weights are found, what a missing one says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reposer.errors import MissingWeightsError, UserError
from reposer.metrics.protocols import (
    _MASKS,
    METRICS,
    ImageBatch,
    SetMetric,
    find_metric,
    load_metrics,
    locate,
    weights_in,
)
from reposer.metrics.similarity import pose_mask

CPU = torch.device("cpu")
PIXELS = ("ssim", "ssim_patn", "ssim_gfla", "mask_ssim", "psnr", "l1", "mae_gfla", "mask_l1", "pckh")


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    for variable in ("REPOSER_WEIGHTS", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "empty"))


def test_every_name_of_the_issue_is_there():
    names = "ssim ssim_patn mask_ssim psnr l1 mask_l1 lpips_alex lpips_vgg lpips_squeeze lpips_alex_v0.0"
    names += " mask_lpips mask_lpips_person mask_lpips_parsing lpips_like_squeeze mask_lpips_like_squeeze"
    names += " fid fid_gfla kid is mask_is mask_lpips_v0.1 ssim_gfla mae_gfla"
    assert {*names.split(), "frechet_mobilenetv2"} <= set(METRICS)
    assert all(metric.protocol for metric in METRICS.values())


def test_published_protocols_are_pinned():
    assert METRICS["mask_lpips"].weights == ("alexnet",)
    assert "v0.0" in METRICS["mask_lpips"].protocol
    assert METRICS["mask_lpips"].needs == ("keypoints",)
    assert "v0.1" in METRICS["lpips_alex"].protocol
    newer = METRICS["mask_lpips_v0.1"]
    assert (newer.weights, newer.needs, "v0.1" in newer.protocol) == (("alexnet",), ("keypoints",), True)
    for name in ("fid", "kid", "is", "mask_is"):
        assert METRICS[name].weights == ("pt_inception-2015-12-05",)
    assert [METRICS[name].better for name in ("kid", "is", "mask_is")] == ["lower", "higher", "higher"]
    assert METRICS["mask_is"].needs == ("keypoints",)
    gfla = METRICS["fid_gfla"]
    assert isinstance(gfla, SetMetric)
    assert (gfla.reference, gfla.whole_batches_of, gfla.weights) == ("training", 64, ("inception_v3",))


def test_missing_weights_are_named_and_nothing_takes_their_place(no_weights):
    measures, networks, missing = load_metrics(list(METRICS), {}, CPU)
    assert set(measures) == set(PIXELS)
    assert not networks
    assert set(missing) == set(METRICS) - set(measures)
    assert "alexnet-owt-7be5be79.pth" in missing["mask_lpips"]
    assert "pt_inception-2015-12-05" in missing["fid"]
    assert "mobilenet_v2_features_imagenet.safetensors" in missing["frechet_mobilenetv2"]


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UserError, match="did you mean mask_lpips"):
        find_metric("mask_lpip")


def test_weights_in_a_folder_go_by_their_stems(tmp_path, no_weights):
    save_file({"a": torch.zeros(1)}, tmp_path / "lpips_heads_squeeze_v0.1.safetensors")
    files = weights_in(tmp_path)
    assert locate("lpips_heads_squeeze_v0.1", files) == tmp_path / "lpips_heads_squeeze_v0.1.safetensors"
    with pytest.raises(MissingWeightsError, match=r"squeezenet1_1_imagenet\.safetensors"):
        locate("squeezenet1_1_imagenet", files)
    with pytest.raises(UserError, match="not a folder"):
        weights_in(tmp_path / "nothing")


def test_masks_of_the_masked_metrics():
    images = torch.zeros(1, 3, 32, 16, dtype=torch.uint8)
    parsing = torch.zeros(1, 32, 16, dtype=torch.uint8)
    parsing[0, 0, 0], parsing[0, 1, 1] = 5, 255
    mask = torch.rand(1, 32, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    keypoints = torch.full((1, 18, 2), torch.nan)
    keypoints[0, 1], keypoints[0, 2] = torch.tensor([4.0, 9.0]), torch.tensor([9.5, 20.25])
    batch = ImageBatch(images, images, mask, parsing, keypoints)
    chosen = {name: choose(batch).numpy() for name, (_, choose, _) in _MASKS.items()}
    assert (chosen["person"] == mask.numpy()).all()
    assert chosen["parsing"].sum() == 1  # background and "no map" are outside
    assert chosen["parsing"][0, 0, 0]
    np.testing.assert_array_equal(chosen["keypoints"][0], pose_mask(keypoints[0].numpy(), 32, 16))


def test_masked_inception_score_sees_the_person_on_black():
    images = torch.randint(1, 256, (2, 3, 32, 16), dtype=torch.uint8)
    keypoints = torch.full((2, 18, 2), torch.nan)
    keypoints[0, 1], keypoints[0, 2] = torch.tensor([4.0, 9.0]), torch.tensor([9.5, 20.25])
    batch = ImageBatch(images, torch.zeros_like(images), keypoints=keypoints)
    metric = METRICS["mask_is"]
    assert isinstance(metric, SetMetric)
    shown, used = metric.shown(batch)
    mask = pose_mask(keypoints[0].numpy(), 32, 16)
    np.testing.assert_array_equal(shown[0].numpy(), images[0].numpy() * mask)
    assert used.tolist() == [True, False]  # without keypoints there is nothing to see
    assert (METRICS["is"].shown(batch)[0] == images).all()
