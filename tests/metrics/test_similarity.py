"""Similarity metrics against literal loops, hand calculations and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from reposer.errors import UserError
from reposer.metrics.similarity import l1, mae_gfla, mask_l1, mask_ssim, psnr, ssim, ssim_gfla, ssim_patn


def _images(seed, batch=2, height=14, width=16):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (batch, 3, height, width), np.uint8)
    b = np.clip(a.astype(int) + rng.integers(-40, 41, a.shape), 0, 255).astype(np.uint8)
    return torch.from_numpy(a), torch.from_numpy(b)


def _literal_ssim(a, b, data_range):
    """Wang et al. (2004), equation 13, window by window; a, b (H, W) lists of floats."""
    taps = [math.exp(-(d * d) / (2 * 1.5**2)) for d in range(-5, 6)]
    window = [[u * v / sum(taps) ** 2 for u in taps] for v in taps]
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for y in range(5, len(a) - 5):
        for x in range(5, len(a[0]) - 5):
            ma = mb = aa = bb = ab = 0.0
            for i in range(11):
                for j in range(11):
                    w, p, q = window[i][j], float(a[y + i - 5][x + j - 5]), float(b[y + i - 5][x + j - 5])
                    ma, mb = ma + w * p, mb + w * q
                    aa, bb, ab = aa + w * p * p, bb + w * q * q, ab + w * p * q
            va, vb, cov = aa - ma * ma, bb - mb * mb, ab - ma * mb
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return sum(values) / len(values)


def _literal(a, b, data_range):
    channels = [
        _literal_ssim(x / 255.0, y / 255.0, data_range) for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    return sum(channels) / 3


def test_ssim_equals_the_window_loop():
    a, b = _images(0)
    expected = [_literal(a[i], b[i], 1.0) for i in range(2)]
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-10)
    np.testing.assert_allclose(ssim(a, a), 1.0)


def test_patn_ssim_uses_the_generated_range():
    a, b = _images(1)
    a = a // 2 + 30  # range below 1
    spans = [(a[i].max() - a[i].min()).item() / 255.0 for i in range(2)]
    expected = [_literal(a[i], b[i], spans[i]) for i in range(2)]
    np.testing.assert_allclose(ssim_patn(a, b), expected, rtol=1e-10)
    assert not np.allclose(ssim_patn(a, b), ssim(a, b), rtol=1e-3)
    assert np.isnan(ssim_patn(torch.full_like(a, 7), b)).all()


def test_patn_ssim_pads_deepfashion_with_white():
    a, b = _images(2, batch=1, height=256, width=176)
    white = torch.full((1, 3, 256, 40), 255, dtype=torch.uint8)
    padded = ssim_patn(torch.cat([white, a, white], 3), torch.cat([white, b, white], 3))
    np.testing.assert_allclose(ssim_patn(a, b), padded)
    assert padded[0] > ssim(a, b)[0]


def test_mask_ssim_blackens_the_outside():
    a, b = _images(3)
    mask = torch.zeros(2, 14, 16, dtype=torch.bool)
    mask[0, 3:12, 2:14] = True
    expected = _literal(a[0] * mask[0], b[0] * mask[0], 1.0)
    values = mask_ssim(a, b, mask)
    assert values[0] == pytest.approx(expected, rel=1e-10)
    assert np.isnan(values[1])  # an empty mask is not a perfect image


def test_psnr_equals_scikit_image():
    a, b = _images(4)
    expected = [peak_signal_noise_ratio(b[i].numpy(), a[i].numpy(), data_range=255) for i in range(2)]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-12)
    assert np.isposinf(psnr(a, a)).all()


def test_l1_and_mask_l1_by_hand():
    a = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    b = a.clone()
    b[0, :, 0, 0] = torch.tensor([51, 102, 0], dtype=torch.uint8)  # 0.2, 0.4, 0
    b[0, 0, 5, 5] = 255
    mask = torch.zeros(2, 12, 12, dtype=torch.bool)
    mask[0, 0, :4] = True
    np.testing.assert_allclose(l1(a, b), [1.6 / (3 * 144), 0.0])
    values = mask_l1(a, b, mask)
    assert values[0] == pytest.approx(0.6 / (3 * 4))
    assert np.isnan(values[1])


@pytest.mark.parametrize("metric", [ssim, ssim_patn, psnr, l1, mae_gfla])
def test_values_do_not_depend_on_the_batch(metric):
    a, b = _images(5, batch=5)
    alone = np.concatenate([metric(a[i : i + 1], b[i : i + 1]) for i in range(5)])
    assert (metric(a, b) == alone).all()


def test_floats_are_refused():
    a, b = _images(6)
    with pytest.raises(ValueError, match="uint8"):
        l1(a.float() / 127.5 - 1, b)


def _literal_gfla(a, b):
    """Uniform window 51, sample covariance, window by window; a, b (H, W) in [0, 1]."""
    values = []
    for y in range(25, a.shape[0] - 25):
        for x in range(25, a.shape[1] - 25):
            p, q = (m[y - 25 : y + 26, x - 25 : x + 26].ravel() for m in (a, b))
            cov = np.cov(p, q)  # n - 1
            c1, c2 = 0.01**2, 0.03**2
            top = (2 * p.mean() * q.mean() + c1) * (2 * cov[0, 1] + c2)
            values.append(top / ((p.mean() ** 2 + q.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return sum(values) / len(values)


def test_gfla_ssim_equals_the_window_loop():
    a, b = _images(7, height=58, width=53)
    expected = [
        sum(_literal_gfla(a[i, c].numpy() / 255, b[i, c].numpy() / 255) for c in range(3)) / 3
        for i in range(2)
    ]
    np.testing.assert_allclose(ssim_gfla(a, b), expected, rtol=1e-9)
    with pytest.raises(UserError, match="images of 14x16 are smaller than the 51 pixels"):
        ssim_gfla(*_images(7))
    with pytest.raises(UserError, match="images of 8x16 are smaller than the 11 pixels"):
        ssim(*_images(7, height=8))


def test_gfla_mae_by_hand():
    a = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    b = a.clone()
    a[0, 0, 0, 0], b[0, 0, 0, 0], b[0, 1, 3, 3] = 100, 40, 60
    values = mae_gfla(a, b)
    assert values[0] == pytest.approx((60 + 60) / (140 + 60))
    assert np.isnan(values[1])  # two black images


@pytest.mark.parametrize("metric", [ssim, ssim_patn, ssim_gfla, psnr, l1, mae_gfla])
def test_images_that_do_not_fit_together_are_refused(metric):
    a, b = _images(8, batch=3, height=60, width=60)
    for other in (b[:1], b[:, :1], b[..., :-1]):  # numpy would broadcast the first two
        with pytest.raises(ValueError, match=r"images of shapes \(3, 3, 60, 60\)"):
            metric(a, other)


def test_a_mask_of_0_and_255_is_refused():
    a, b = _images(9)
    for metric in (mask_l1, mask_ssim):
        with pytest.raises(ValueError, match="expected a bool mask"):
            metric(a, b, torch.full((2, 14, 16), 255, dtype=torch.uint8))
