"""The two objectives of an image GAN: SAN's eq. 4 (adversarial), 5 (L1), 6 (perceptual) and their sum, eq. 7.

Each is a function of networks and batch that returns the weighted sum and its parts, which are logged. The
generator's terms stand in one dict, ``TERMS``, among them ``identity``, by which a re-posed person stays the
same: a further term is a function and a line there, its weight a setting of the training (``weights.NAME``).
Terms that a generator computes itself stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError, known
from reposer.images import to_float
from reposer.losses.perceptual import (
    PerceptualNetwork,
    content_loss,
    contextual_loss,
    correctness_loss,
    layer_differences,
    nearest_neighbor_loss,
    style_loss,
)
from reposer.structures import MoreSources, PairBatch

# ---- The adversarial game (eq. 4) on logits, and the pool of earlier generated images.

MODES = ("bce", "lsgan")
_FIELDS = tuple(f.name for f in fields(PairBatch) if f.name not in ("more_sources", "carried"))  # of a row


def _distance(logits: Tensor, label: float, mode: str) -> Tensor:
    """How far the logits are from a label: cross-entropy of their sigmoid (bce) or squared error (lsgan)."""
    known("adversarial mode", mode, MODES)
    logits = logits.float()
    labels = torch.full_like(logits, label)
    if mode == "bce":
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.mse_loss(logits, labels)


def discriminator_adversarial_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    mode: str = "bce",
    real_label: float = 1.0,
    loss_scale: float = 0.5,
) -> Tensor:
    """The discriminator's loss, a scalar: real logits towards ``real_label``, fake ones towards 0.

    Args:
        real_logits: any shape, of (source, target) pairs.
        fake_logits: any shape, of (source, generated) pairs; the generated images are detached by the caller.
        mode: bce (eq. 4) or lsgan (least squares on the raw logits).
        real_label: 1, or 0.9 for one-sided label smoothing.
        loss_scale: factor of the sum. PATN's code halves it (default) and multiplies it by the adversarial
            weight as well; with Adam such a factor hardly matters.
    """
    return loss_scale * (_distance(real_logits, real_label, mode) + _distance(fake_logits, 0.0, mode))


def generator_adversarial_loss(fake_logits: Tensor, mode: str = "bce") -> Tensor:
    """The generator's non-saturating loss, a scalar: fake logits towards 1."""
    return _distance(fake_logits, 1.0, mode)


class ImagePool:
    """A pool of earlier generated images for the discriminator (Shrivastava et al. 2017; as in PATN).

    Until it is full, images go in and come back. From then on each image is, with probability 1/2, exchanged
    for a random one of the pool. Every image travels with its row of the batch, so that the discriminator
    always sees it beside its own condition, less further sources. Size 0 returns everything unchanged.
    """

    def __init__(self, size: int = 50) -> None:
        self.size = size
        self._rows: list[dict[str, Tensor]] = []  # one per image: "generated" and the fields of PairBatch

    def __len__(self) -> int:
        return len(self._rows)

    def query(self, generated: Tensor, batch: PairBatch, rng: torch.Generator) -> tuple[Tensor, PairBatch]:
        """Exchange some of the images.

        Args:
            generated: (B, 3, H, W) model float.
            batch: the B rows that they were made from.
            rng: a CPU generator, the only source of randomness.

        Returns:
            (B, 3, H, W) images without gradient, and the batch of the rows that belong to them.
        """
        generated = generated.detach()
        if self.size == 0:
            return generated, batch
        columns = {"generated": generated, **batch.tensors()}
        out: list[dict[str, Tensor]] = []
        for i in range(len(generated)):
            row = {name: column[i] for name, column in columns.items()}
            if len(self._rows) < self.size:
                self._rows.append({name: value.clone() for name, value in row.items()})
            elif torch.rand((), generator=rng) < 0.5:
                k = int(torch.randint(self.size, (), generator=rng))
                kept = {name: value.clone() for name, value in row.items()}
                row, self._rows[k] = self._rows[k], kept
            out.append(row)
        joined = {name: torch.stack([row[name] for row in out]) for name in columns}
        return joined.pop("generated"), replace(batch, **joined, more_sources=None, carried=None)

    def state_dict(self) -> dict[str, Tensor]:
        """The pool as tensors with the images along the first dimension; {} while it is empty."""
        if not self._rows:
            return {}
        return {name: torch.stack([row[name] for row in self._rows]) for name in self._rows[0]}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Put back what ``state_dict`` returned.

        Raises:
            UserError: columns are missing, unknown, of different lengths, or longer than the pool.
        """
        expected = {"generated", *_FIELDS} if state else set()
        lengths = {len(column) for column in state.values()}
        if set(state) != expected or len(lengths) > 1 or max(lengths, default=0) > self.size:
            raise UserError(
                f"the saved image pool (columns {sorted(state)}, lengths {sorted(lengths)}) does not fit "
                f"a pool of {self.size} images",
                "resume with the configuration that the checkpoint was made with",
            )
        columns = {name: column.to(device) for name, column in state.items()}
        count = max(lengths, default=0)
        self._rows = [{name: column[i].clone() for name, column in columns.items()} for i in range(count)]


# ---- The two objectives.
#
# Both functions get the generated images from outside: one forward pass of the generator serves both steps,
# and its BatchNorm statistics move once a step. Nothing else changes: the generator is not updated between
# the two.

Parts = dict[str, Tensor]  # name -> detached scalar, for the log


@dataclass(frozen=True, slots=True)
class GanNetworks:
    """The networks that play, and the fixed one that looks on."""

    generator: nn.Module  # PairBatch -> (B, 3, H, W) in [-1, 1]
    discriminator: nn.Module  # (source image, image, PairBatch, fake) -> logits
    perceptual: PerceptualNetwork | None  # None where every term that needs it has weight 0
    perceptual_norm: str = "l2"
    # loss term -> its layers; empty: perceptual, all
    feature_layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    extra_terms: bool = False  # a term looks at the generator's second result (``parts=True``)
    # (B, 3, H, W) model floats -> feature (B, D) and maps (B, C, h, w) of a frozen Re-ID network
    identity: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    identity_maps: float = 0.0  # weight of the maps beside the feature
    identity_wanted: str = "target"  # or "both": halfway between the features of target and source
    together: bool = False  # the discriminator judges real and generated images in one pass
    source_fake: bool = False  # the source image is one more generated one to the discriminator
    nearest_window: int = 3  # places along each side in which the term nearest looks


def discriminator_loss(
    nets: GanNetworks,
    batch: PairBatch,
    generated: Tensor,
    pool: ImagePool,
    pool_rng: torch.Generator,
    mode: str = "bce",
    real_label: float = 1.0,
    loss_scale: float = 0.5,
) -> tuple[Tensor, Parts]:
    """What the discriminator minimizes: telling (I_s, I_t) from (I_s, generated), eq. 4.

    Args:
        nets: the networks; gradients reach the discriminator only.
        batch: B pairs; target_image is what the generator should make.
        generated: (B, 3, H, W) in [-1, 1]; its graph is cut here.
        pool: earlier fakes with the rows they belong to, which replace some of the batch's.
        pool_rng: the pool's only source of randomness.
        mode: see :func:`discriminator_adversarial_loss`.
        real_label: see there.
        loss_scale: see there.

    Returns:
        the loss, a scalar, and its parts: the loss and the mean logits of real and fake images.
    """
    fake, fake_batch = pool.query(generated.detach(), batch, pool_rng)
    real_logits, fake_logits = _judged(nets, batch, fake, fake_batch)
    loss = discriminator_adversarial_loss(real_logits, fake_logits, mode, real_label, loss_scale)
    parts = {"loss": loss, "real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()}
    return loss, {f"discriminator/{name}": part.detach() for name, part in parts.items()}


def _judged(
    nets: GanNetworks, batch: PairBatch, fake: Tensor, fake_batch: PairBatch
) -> tuple[Tensor, Tensor]:
    """The logits of the real and the generated images, among these the sources where they count as such."""
    judge = nets.discriminator
    fakes, conditions = [fake], [fake_batch]
    if nets.source_fake:
        fakes.append(to_float(batch.source_image))
        conditions.append(batch)
    if not nets.together:
        real_logits = judge(batch.source_image, batch.target_image, batch)
        fake_logits = [
            judge(rows.source_image, image, rows, fake=True)
            for image, rows in zip(fakes, conditions, strict=True)
        ]
        return real_logits, torch.cat(fake_logits) if len(fake_logits) > 1 else fake_logits[0]
    columns = {name: torch.cat([getattr(rows, name) for rows in (batch, *conditions)]) for name in _FIELDS}
    joined = replace(batch, **columns, more_sources=None, carried=None)
    logits = judge(joined.source_image, torch.cat([batch.target_image, *fakes]), joined)
    return logits[: len(batch)], logits[len(batch) :]


def generate(nets: GanNetworks, batch: PairBatch) -> tuple[Tensor, Any]:
    """The images (B, 3, H, W), and what the generator's extra terms look at where one has a weight."""
    if nets.extra_terms:
        generated, parts = nets.generator(batch, parts=True)
        return generated, parts
    return nets.generator(batch), None


def generator_loss(
    nets: GanNetworks,
    batch: PairBatch,
    generated: Tensor,
    weights: Mapping[str, float],
    mode: str = "bce",
    auxiliary: Any = None,
) -> tuple[Tensor, Parts]:
    """What the generator minimizes: eq. 7, alpha adversarial + beta L1 + gamma perceptual, and further terms.

    Args:
        nets: the networks; the discriminator's weights should not require gradients here.
        batch: B pairs; target_image is what the generator should make, in [-1, 1].
        generated: (B, 3, H, W) in [-1, 1], with its graph.
        weights: of the terms: keys of TERMS, or else of ``auxiliary.terms``, which the generator computed; a
            term of weight 0 is neither computed nor logged.
        mode: of the adversarial term (the non-saturating one).
        auxiliary: second result of ``generate``, for the generator's extra terms.

    Returns:
        the loss, a scalar, and its unweighted terms.
    """
    made = Made(nets, batch, generated, mode, auxiliary)
    terms = {name: term(made) for name, term in TERMS.items() if weights.get(name)}
    terms |= {name: auxiliary.terms[name] for name, weight in weights.items() if weight and name not in TERMS}
    total = sum((weights[name] * term for name, term in terms.items()), generated.new_zeros(()))
    parts = {"loss": total, **terms}
    return total, {f"generator/{name}": part.detach() for name, part in parts.items()}


# ---- The terms of the generator's objective.


@dataclass(frozen=True)
class Made:
    """What a term may look at."""

    nets: GanNetworks
    batch: PairBatch  # B pairs; target_image (B, 3, H, W) in [-1, 1] is what the generator is to make
    image: Tensor  # (B, 3, H, W) in [-1, 1], generated, with its graph
    mode: str  # of the adversarial game
    auxiliary: Any  # the generator's second result; None where no term needs it

    @cached_property
    def generated_maps(self) -> dict[str, Tensor]:
        """Maps of the perceptual network by layer, of the generated images."""
        return self._maps(self.image)

    @cached_property
    def wanted_maps(self) -> dict[str, Tensor]:
        """The same of the wanted images."""
        with torch.no_grad():
            return self._maps(self.batch.target_image)

    def _maps(self, image: Tensor) -> dict[str, Tensor]:
        network = self.nets.perceptual
        if network is None:
            raise ValueError("a term on feature maps needs the perceptual network")
        return dict(zip(network.layers, network(image), strict=True))

    def features(self, term: str) -> tuple[list[Tensor], list[Tensor]]:
        """The generated and the wanted maps of the term's layers."""
        wanted = self.wanted_maps
        layers = self.nets.feature_layers.get(term, tuple(wanted))
        return [self.generated_maps[name] for name in layers], [wanted[name] for name in layers]

    def source_features(self, term: str) -> tuple[list[Tensor], list[Tensor]]:
        """The source's and the wanted maps of the term's layers."""
        with torch.no_grad():
            source = self._maps(to_float(self.batch.source_image))
        layers = self.nets.feature_layers[term]
        return [source[name] for name in layers], [self.wanted_maps[name] for name in layers]


def l1_loss(generated: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of model-float images (B, 3, H, W), in [0, 2]; a scalar. SAN's eq. 5.

    Eq. 5 writes a norm without an average; PATN's code averages, and so do we: the weights of eq. 7 fit that.
    """
    return F.l1_loss(generated.float(), target.float())


def correspondence_loss(warped: Tensor, batch: PairBatch) -> Tensor:
    """Mean absolute difference of the warped small source image and the small target, on the target's mask.

    Args:
        warped: (B, 3, h, w) in [-1, 1]. batch: its target_image is model float. An empty mask counts as full.
    """
    size = (warped.shape[2], warped.shape[3])
    target = F.adaptive_avg_pool2d(batch.target_image.float(), size)
    weight = F.adaptive_avg_pool2d(batch.target_mask.unsqueeze(1).float(), size)
    weight = torch.where(weight.sum((1, 2, 3), keepdim=True) > 0, weight, 1.0)
    return ((warped.float() - target).abs() * weight).sum() / (3 * weight.sum())


def parsing_head_loss(logits: Tensor, parsing: Tensor) -> Tensor:
    """Cross-entropy of (B, 20, h, w) logits with the (B, H, W) label map, taken at the nearest pixel.

    Pixels without a label (MISSING_LABEL) are left out; 0 where there is none with one.
    """
    small = F.interpolate(parsing.unsqueeze(1).float(), logits.shape[2:], mode="nearest").squeeze(1).long()
    known = small < logits.shape[1]
    losses = F.cross_entropy(logits.float(), torch.where(known, small, 0), reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)


def identity_distance(
    generated: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], maps: float = 0.0
) -> Tensor:
    """How far generated people are from the wanted ones for a Re-ID network; a scalar, 0 for equal ones.

    1 - cosine of the features (B, D), in [0, 2], plus ``maps`` times the same of the maps (B, C, h, w), place
    by place: where on the person the likeness is lost.
    """
    feature, where = (
        1 - F.cosine_similarity(ours.float(), theirs.float(), dim=1)
        for ours, theirs in zip(generated, wanted, strict=True)
    )
    return feature.mean() + maps * where.mean()


def _identity(made: Made) -> Tensor:
    network = made.nets.identity
    if network is None:
        raise ValueError("the identity term needs a Re-ID network")
    wanted = _wanted(made.nets, network, made.batch.target_image, made.batch.source_image)
    return identity_distance(network(made.image), wanted, made.nets.identity_maps)


@torch.no_grad()
def _wanted(
    nets: GanNetworks, network: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, source: Tensor
) -> tuple[Tensor, Tensor]:
    """Feature (B, D) and maps (B, C, h, w) that a Re-ID network should see; the maps are the target's.

    Args:
        target: (B, 3, H, W) model floats. source: (B, 3, H, W), bytes or model floats.
    """
    feature, maps = network(target)
    if nets.identity_wanted == "both":
        # of length 1 first, so that neither has more of a say
        feature = F.normalize(feature) + F.normalize(network(to_float(source))[0])
    return feature, maps


def with_lent_targets(batch: PairBatch) -> PairBatch:
    """The first half of the sources, of B pairs (B + 1) // 2, each with a target of the second half.

    What the network may know of a target is lent (image, map, mask, joints): in a random batch mostly another
    person's, as in use. A batch of one keeps its own.
    """
    half = (len(batch) + 1) // 2
    lent = ("target_image", "target_parsing", "target_mask", "target_keypoints")
    rows = {name: value[-half:] if name in lent else value[:half] for name, value in batch.tensors().items()}
    more = batch.more_sources
    if more is not None:
        more = MoreSources(**{name: value[:half] for name, value in more.tensors().items()})
    return replace(batch, **rows, more_sources=more, carried=None)


def _lent(made: Made) -> Tensor:
    """1 - cosine of the features of people in a lent pose and of the picture that was wanted of them."""
    network = made.nets.identity
    if network is None:
        raise ValueError("the term lent needs a Re-ID network")
    rows = with_lent_targets(made.batch)
    wanted = _wanted(made.nets, network, made.batch.target_image[: len(rows)], rows.source_image)
    return identity_distance(network(made.nets.generator(rows)), wanted)


def closed_gate_loss(gate: Tensor, batch: PairBatch) -> Tensor:
    """Mean of 1 - gate over the pixels that texture transport trusts (validity 1); a scalar, 0 to 1.

    Args:
        gate: (B, 1, H, W) in [0, 1], share of the carried picture. batch: with what was carried.
    """
    if batch.carried is None:
        raise ValueError("the gate term needs the batch with what was carried")
    trusted = (batch.carried.validity >= 1).float()
    return ((1 - gate.float()) * trusted).sum() / trusted.sum().clamp_min(1)


def _adversarial(made: Made) -> Tensor:
    if made.nets.together:
        logits = _judged(made.nets, made.batch, made.image, made.batch)[1][: len(made.batch)]
    else:
        logits = made.nets.discriminator(made.batch.source_image, made.image, made.batch, fake=True)
    return generator_adversarial_loss(logits, made.mode)


def _perceptual(made: Made) -> Tensor:
    return torch.stack(layer_differences(*made.features("perceptual"), made.nets.perceptual_norm)).sum()


TERMS: dict[str, Callable[[Made], Tensor]] = {  # in the order in which they are added up
    "adversarial": _adversarial,
    "l1": lambda made: l1_loss(made.image, made.batch.target_image),
    "perceptual": _perceptual,
    "nearest": lambda made: nearest_neighbor_loss(*made.features("nearest"), made.nets.nearest_window),
    "content": lambda made: content_loss(*made.features("content")),
    "style": lambda made: style_loss(*made.features("style")),
    "contextual": lambda made: contextual_loss(*made.features("contextual")),
    "correspondence": lambda made: correspondence_loss(made.auxiliary.warped_source, made.batch),
    "correctness": lambda made: correctness_loss(made.auxiliary.flows, *made.source_features("correctness")),
    "identity": _identity,
    "lent": _lent,
    "painted": lambda made: l1_loss(made.auxiliary.painted, made.batch.target_image),
    "gate": lambda made: closed_gate_loss(made.auxiliary.gate, made.batch),
    "parsing": lambda made: parsing_head_loss(made.auxiliary.parsing_logits, made.batch.target_parsing),
}
