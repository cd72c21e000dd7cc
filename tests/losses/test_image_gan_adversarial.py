"""The adversarial losses by hand, and the image pool against a plain simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reposer.errors import UserError
from reposer.losses.image_gan import (
    GanNetworks,
    ImagePool,
    discriminator_adversarial_loss,
    discriminator_loss,
    generator_adversarial_loss,
    generator_loss,
)
from reposer.structures import PairBatch

REAL, FAKE = (2.0, -1.0), (0.5, -3.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("label", [1.0, 0.9])
def test_bce_is_half_of_equation_4(label: float) -> None:
    real = mean([-(label * math.log(sigmoid(x)) + (1 - label) * math.log(1 - sigmoid(x))) for x in REAL])
    fake = mean([-math.log(1 - sigmoid(x)) for x in FAKE])
    loss = discriminator_adversarial_loss(torch.tensor(REAL), torch.tensor(FAKE), real_label=label)
    assert loss.item() == pytest.approx((real + fake) / 2, rel=1e-5)


def test_lsgan_and_scale() -> None:
    real, fake = mean([(x - 0.9) ** 2 for x in REAL]), mean([x**2 for x in FAKE])
    loss = discriminator_adversarial_loss(
        torch.tensor(REAL), torch.tensor(FAKE), "lsgan", real_label=0.9, loss_scale=3.0
    )
    assert loss.item() == pytest.approx(3 * (real + fake), rel=1e-5)
    assert generator_adversarial_loss(torch.tensor(FAKE), "lsgan").item() == pytest.approx(
        mean([(x - 1) ** 2 for x in FAKE]), rel=1e-5
    )


def test_generator_loss_does_not_saturate() -> None:
    logits = torch.tensor(FAKE, requires_grad=True)
    loss = generator_adversarial_loss(logits)
    assert loss.item() == pytest.approx(mean([-math.log(sigmoid(x)) for x in FAKE]), rel=1e-5)
    lost = torch.tensor([-20.0], requires_grad=True)
    generator_adversarial_loss(lost).backward()
    assert lost.grad is not None
    assert lost.grad.item() == pytest.approx(-1.0, abs=1e-4)  # the saturating loss would give -2e-9


def test_losses_are_float32_and_finite_for_bfloat16_logits() -> None:
    logits = torch.tensor([300.0, -300.0], dtype=torch.bfloat16)
    for mode in ("bce", "lsgan"):
        for loss in (
            discriminator_adversarial_loss(logits, logits, mode),
            generator_adversarial_loss(logits, mode),
        ):
            assert loss.dtype == torch.float32
            assert loss.isfinite()


def test_unknown_mode_is_named() -> None:
    with pytest.raises(UserError, match="wgan"):
        generator_adversarial_loss(torch.zeros(1), "wgan")


def numbered(numbers: list[int]) -> tuple[Tensor, PairBatch]:
    """Images and a batch of which every row carries its number in every field."""

    def filled(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.stack([torch.full(shape, n, dtype=dtype) for n in numbers])

    image, label, flag = torch.uint8, torch.uint8, torch.bool
    dtypes = [image, image, label, label, flag, flag, torch.float32, torch.float32, torch.int64]
    shapes = [(3, 2, 1)] * 2 + [(2, 1)] * 4 + [(18, 2)] * 2 + [()]
    columns = [filled(*shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    return filled(3, 2, 1, dtype=torch.float32).requires_grad_(), PairBatch(*columns)


def numbers_of(images: Tensor, batch: PairBatch) -> list[int]:
    """The numbers of the rows; checks that every field of a row agrees."""
    numbers = images[:, 0, 0, 0].int().tolist()
    _, expected = numbered(numbers)
    for name, column in batch.tensors().items():
        assert torch.equal(column, getattr(expected, name)), name
    return numbers


def simulate(size: int, batches: list[list[int]], rng: torch.Generator) -> list[list[int]]:
    pool: list[int] = []
    answers = []
    for numbers in batches:
        answer = []
        for n in numbers:
            if len(pool) < size:
                pool.append(n)
                answer.append(n)
            elif torch.rand((), generator=rng) < 0.5:
                k = int(torch.randint(size, (), generator=rng))
                answer.append(pool[k])
                pool[k] = n
            else:
                answer.append(n)
        answers.append(answer)
    return answers


BATCHES = [list(range(start, start + 7)) for start in range(0, 70, 7)]


def test_pool_exchanges_whole_rows() -> None:
    pool, rng = ImagePool(10), torch.Generator().manual_seed(3)
    answers = []
    for numbers in BATCHES:
        images, batch = pool.query(*numbered(numbers), rng)
        assert not images.requires_grad
        answers.append(numbers_of(images, batch))
    assert answers == simulate(10, BATCHES, torch.Generator().manual_seed(3))
    assert len(pool) == 10
    late = [
        (a, n)
        for answer, numbers in zip(answers[2:], BATCHES[2:], strict=True)
        for a, n in zip(answer, numbers, strict=True)
    ]
    assert 0.3 < mean([a != n for a, n in late]) < 0.7


def test_pool_does_not_share_memory_with_the_batch() -> None:
    pool, rng = ImagePool(2), torch.Generator().manual_seed(0)
    images, batch = numbered([1, 2])
    pool.query(images, batch, rng)
    with torch.no_grad():
        images.zero_()
        batch.source_image.zero_()
    assert pool.state_dict()["generated"][:, 0, 0, 0].tolist() == [1, 2]
    assert pool.state_dict()["source_image"][:, 0, 0, 0].tolist() == [1, 2]


def test_pool_of_size_0_passes_everything() -> None:
    images, batch = numbered([1, 2])
    out, same = ImagePool(0).query(images, batch, torch.Generator())
    assert same is batch
    assert torch.equal(out, images)
    assert not out.requires_grad


@pytest.mark.parametrize("stop", [0, 1, 4])  # empty, partly filled, full
def test_pool_continues_from_a_file(stop: int, tmp_path: Path) -> None:
    pool, rng = ImagePool(10), torch.Generator().manual_seed(3)
    for numbers in BATCHES[:stop]:
        pool.query(*numbered(numbers), rng)
    save_file(pool.state_dict(), tmp_path / "pool.safetensors")
    resumed = ImagePool(10)
    resumed.load_state_dict(load_file(tmp_path / "pool.safetensors"))
    assert len(resumed) == len(pool)
    answers = [numbers_of(*resumed.query(*numbered(numbers), rng)) for numbers in BATCHES[stop:]]
    assert answers == simulate(10, BATCHES, torch.Generator().manual_seed(3))[stop:]


def test_pool_refuses_a_state_of_another_pool() -> None:
    pool = ImagePool(4)
    pool.query(*numbered([1, 2, 3, 4]), torch.Generator())
    state = pool.state_dict()
    with pytest.raises(UserError, match="pool of 3 images"):
        ImagePool(3).load_state_dict(state)
    with pytest.raises(UserError, match="does not fit"):
        ImagePool(4).load_state_dict({name: value for name, value in state.items() if name != "pids"})
    with pytest.raises(UserError, match="does not fit"):
        ImagePool(4).load_state_dict({**state, "pids": state["pids"][:2]})


class _BatchNormed(torch.nn.Module):
    """A logit an image, less the mean of all in the batch; what it was asked is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, source_image: Tensor, image: Tensor, batch: PairBatch, fake: bool = False) -> Tensor:
        self.asked.append((source_image, image, batch.pids))
        values = image.float().mean((1, 2, 3))
        return values - values.mean()


def _played(numbers: list[int], **game: bool) -> tuple[Tensor, Tensor, _BatchNormed]:
    """The losses of both networks: real images 0.5, generated ones their number / 10, sources 7 / 255."""
    image, batch = numbered(numbers)
    shape = (len(numbers), 3, 2, 2)
    batch = replace(
        batch, target_image=torch.full(shape, 0.5), source_image=torch.full(shape, 7, dtype=torch.uint8)
    )
    made = (image.mean((1, 2, 3), keepdim=True) / 10).expand(shape)
    judge = _BatchNormed()
    nets = GanNetworks(torch.nn.Identity(), judge, None, **game)
    first, _ = discriminator_loss(nets, batch, made, ImagePool(0), torch.Generator())
    second, _ = generator_loss(nets, batch, made, {"adversarial": 1.0})
    return first, second, judge


def test_a_source_taken_for_generated_counts_a_quarter() -> None:
    """PG2: 1/2 of the real, 1/4 of the generated, 1/4 of the sources."""
    loss, _, judge = _played([1, 3], source_fake=True)
    assert len(judge.asked) == 4  # real, generated, source; then the generator's
    real, fake, source = [0.0, 0.0], [-0.1, 0.1], [0.0, 0.0]
    positive = mean([-math.log(sigmoid(x)) for x in real])
    negative = [mean([-math.log(1 - sigmoid(x)) for x in logits]) for logits in (fake, source)]
    assert loss.item() == pytest.approx(positive / 2 + negative[0] / 4 + negative[1] / 4, rel=1e-5)


@pytest.mark.parametrize("source_fake", [False, True])
def test_judged_together_all_images_have_the_statistics_of_all(source_fake: bool) -> None:
    loss, ours, judge = _played([1, 3], together=True, source_fake=source_fake)
    assert len(judge.asked) == 2
    source = 2 * 7 / 255 - 1
    values = [0.5, 0.5, 0.1, 0.3] + [source] * 2 * source_fake
    logits = [x - mean(values) for x in values]
    positive = mean([-math.log(sigmoid(x)) for x in logits[:2]])
    negative = mean([-math.log(1 - sigmoid(x)) for x in logits[2:]])
    assert loss.item() == pytest.approx((positive + negative) / 2, rel=1e-5)
    assert ours.item() == pytest.approx(mean([-math.log(sigmoid(x)) for x in logits[2:4]]), rel=1e-5)
    for _, images, pids in judge.asked:
        assert pids.tolist() == [1, 3] * (2 + source_fake)  # each beside its own row
        assert len(images) == len(pids)
