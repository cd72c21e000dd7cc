"""Training of an image GAN: discriminator step, generator step, average; grids and errors to watch.

SAN's training (arXiv 2008.07884, section 3.3): first the discriminator, then the generator against the
renewed discriminator. The images are generated once a step and serve both. With accumulated parts, the
generator's parts but the last are judged by the discriminator before its update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.data.parsing import colorize
from reposer.data.samplers import draw_pairs
from reposer.errors import UserError
from reposer.images import to_float, to_uint8
from reposer.losses.image_gan import (
    TERMS,
    GanNetworks,
    ImagePool,
    discriminator_loss,
    generate,
    generator_loss,
)
from reposer.losses.perceptual import PerceptualNetwork
from reposer.models.discriminators import build_discriminator
from reposer.models.embedding import Embedding, EmbeddingInfo
from reposer.models.generators import build_generator, extra_terms
from reposer.models.texture_transport import with_carried
from reposer.runtime import Runtime
from reposer.sections import draw_grid
from reposer.storage import checkpoint
from reposer.storage.checkpoint import Checkpoint, TensorGroups
from reposer.storage.files import sha256_file
from reposer.storage.paths import CHECKPOINTS, printable
from reposer.structures import PairBatch
from reposer.trained.networks import EMBEDDING, GENERATOR, GeneratorConfig, Trained, open_network
from reposer.training.gan.config import GanConfig
from reposer.training.gan.data import GanData, Part
from reposer.training.state import TrainingState, below, build_adam, build_ema, load_into, place, wrap

SAMPLE_TITLES = ("source", "target parsing", "generated", "target")
_VALIDATION_BATCH = 32
_BEGIN_WITH = 64  # pairs that a generator sees before the first step, where it asks for some

# ---- Everything that changes during a GAN training.


@dataclass(frozen=True)
class Beginning:
    """What a new run begins with instead of random weights."""

    generator: Mapping[str, Tensor]  # averaged, where it was trained here
    discriminator: Mapping[str, Tensor] | None  # None: only a run's checkpoints have one
    fingerprint: str  # sha256 that tells one beginning from another
    info: GeneratorConfig

    @classmethod
    def of(cls, name: Path, generator: str) -> Self:
        """That of a run folder's newest good checkpoint, or of any other trained generator.

        Args:
            name: as for ``trained.networks.open_network``.
            generator: a key of models.generators.GENERATORS.

        Raises:
            UserError: there is none of that name, or it is of another generator.
        """
        try:
            opened = open_network(GENERATOR, str(name))
        except UserError as error:
            raise UserError(f"start_from={printable(name)}: {error.problem}", error.advice) from error
        theirs = opened.info.generator
        if theirs != generator:
            raise UserError(
                f"start_from={printable(name)}: its generator is {theirs}, and this one is {generator}",
                "name one of the same generator",
            )
        found = checkpoint.of_run(name) if (name / CHECKPOINTS).is_dir() else None
        if found is None:
            return cls(opened.network.state_dict(), None, opened.weights_hash, opened.info)
        critic = found.groups.get("discriminator")
        return cls(found.groups["ema"], critic, sha256_file(found.path / "meta.json"), opened.info)


class GanState(TrainingState):
    """Generator, discriminator, averaged generator, their optimizers, and the pool of earlier images.

    Where no discriminator plays, one without a weight stands in its place, and checkpoints hold none.

    Args:
        config: sizes, seeds, learning rates.
        runtime: device and process group.
    """

    def __init__(self, config: GanConfig, runtime: Runtime) -> None:
        generator = build_generator(config.generator, **config.generator_args)
        self.generator = place(generator, runtime, config.channels_last)
        played = config.gan.discriminator
        discriminator = build_discriminator(**config.discriminator_args) if played else nn.Identity()
        self.discriminator = place(discriminator, runtime, config.channels_last)
        self.ema = build_ema(self.generator, config.ema_decay)
        self.stage = ""  # of the generator; "" before the first, and where there are none
        networks = {"generator": self.generator}
        networks |= {"discriminator": self.discriminator} if played else {}
        optimizers = {f"{name}_optimizer": _adam(network, config, name) for name, network in networks.items()}
        self.pool = ImagePool(config.gan.pool)
        self.pool_rng = torch.Generator().manual_seed(config.seed + runtime.rank)
        super().__init__({**networks, "ema": self.ema.module}, optimizers, {"pool": self.pool_rng})
        torch.manual_seed(config.seed + runtime.rank)  # processes draw different dropout masks

    def pack(self, accelerator: Accelerator) -> tuple[TensorGroups, dict[str, Any]]:
        """See TrainingState; with the number of updates of the average."""
        groups, meta = super().pack(accelerator)
        return groups, {"ema_updates": int(self.ema.n_averaged), **meta}

    def restore(self, checkpoint: Checkpoint, runtime: Runtime) -> list[str]:
        """See TrainingState."""
        self.ema.n_averaged.fill_(checkpoint.meta["ema_updates"])
        return super().restore(checkpoint, runtime)

    def own_tensors(self) -> dict[str, Tensor]:
        """See TrainingState: the pool."""
        return {f"pool.{k}": _bits(k, v) for k, v in self.pool.state_dict().items()}

    def load_own_tensors(self, own: Mapping[str, Tensor], device: torch.device) -> None:
        """See TrainingState."""
        self.pool.load_state_dict({k: _bits(k, v) for k, v in below("pool.", own).items()}, device)

    def start_from(self, beginning: Beginning) -> None:
        """Begin with the networks of another training: its averaged generator and, where both have one, its
        discriminator.

        Raises:
            UserError: they are not of this configuration's sizes.
        """
        load_into(self.generator, beginning.generator)
        load_into(self.ema.module, beginning.generator)
        if "discriminator" in self.networks and beginning.discriminator is not None:
            load_into(self.discriminator, beginning.discriminator)

    def enter(self, stage: str) -> None:
        """Begin or go on with a stage of the generator: what learns in it learns, and all else stands still.

        Args:
            stage: a key of the generator's ``stages``.
        """
        if stage == self.stage:
            return
        self.stage = stage
        for network in (self.generator, self.ema.module):
            network.stage = stage  # type: ignore[assignment]
        learning: Sequence[str] = self.generator.stages[stage]  # type: ignore[index,assignment]
        for name in learning:
            self.generator.get_submodule(name)  # there is one
        for name, parameter in self.generator.named_parameters():
            parameter.requires_grad_(_inside(name, learning))
        for name, module in self.generator.named_modules():
            around = not name or any(_inside(one, (name,)) for one in learning)
            module.training = around or _inside(name, learning)


def _adam(network: nn.Module, config: GanConfig, name: str) -> torch.optim.Adam:
    """The optimizer of the generator or the discriminator, by its name."""
    ours = (config.gan.optimizer if name == "discriminator" else None) or config.optimizer
    betas, factor = (ours.beta1, ours.beta2), ours.lr / config.optimizer.lr
    return build_adam(network.parameters(), config.optimizer.lr, betas, ours.weight_decay, factor)


def _inside(name: str, places: Sequence[str]) -> bool:
    """Whether a submodule or parameter of that name is one of the places, or inside one."""
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def _bits(name: str, tensor: Tensor) -> Tensor:
    """Keypoints as int32 bits and back: their NaN is a missing joint, which a checkpoint would refuse."""
    if not name.endswith("keypoints"):
        return tensor
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.float32)


# ---- The task.


class GanTask:
    """A Task of :mod:`reposer.training.loop`: a generator of images, against a discriminator.

    Args:
        config: everything that the result depends on.
        runtime: device and process group.

    Raises:
        UserError: data, weights or configuration are not in order; names what.
    """

    counted = "pairs"
    wrote = "checkpoints/, samples/*.png, metrics.jsonl, config.json, environment.json"

    def __init__(self, config: GanConfig, runtime: Runtime) -> None:
        self.config, self.total_steps, self.notes = config, config.total_steps, _notes(config)
        self._runtime, self._accelerator = runtime, runtime.accelerator
        self._data = GanData(config, runtime.rank, runtime.world_size)
        self.state = GanState(config, runtime)
        named = config.identity.network
        self._judge = None if named is None else open_network(EMBEDDING, named)  # of the identity term
        self._nets = _networks(config, runtime, self.state, self._judge)
        shown = self._data.validation_pairs if len(self._data.validation_pairs) else self._data.pairs
        spread = np.linspace(0, len(shown) - 1, config.output.sample_pairs).astype(np.int64)  # many people
        self._sample_batch = self._data.batch(shown[np.unique(spread)])

    # ---- A step.

    def fetch(self, step: int) -> Iterator[Part]:
        """See Task: the parts that are accumulated, one after the other."""
        return self._data.parts(step)

    def step(self, batch: Iterator[Part]) -> None:
        """See Task: discriminator, then generator, then average (section 3.3)."""
        stage = self.config.stage(self.state.step)
        if stage is not None:
            self.state.enter(stage.name)
        for part in batch:
            pairs = self._on_device(part.batch)
            with self._accelerator.accumulate(self._nets.generator, self._nets.discriminator):
                with self._runtime.autocast():
                    generated, auxiliary = generate(self._nets, pairs)
                if self.config.plays(stage):
                    self._discriminator_step(pairs, generated, part.names)
                self._generator_step(pairs, generated, auxiliary, part.names)
        self.state.ema.update_parameters(self.state.generator)

    def _on_device(self, batch: PairBatch) -> PairBatch:
        """The batch on the device, its target as model float: what the losses compare with."""
        batch = batch.to(self._runtime.device, non_blocking=True)
        if "carried" in getattr(self.state.generator, "needs", ()):
            batch = with_carried(batch)
        # of generators that are to make another image than I_t
        own_target = getattr(self.state.generator, "training_target", None)
        return replace(batch, target_image=own_target(batch) if own_target else to_float(batch.target_image))

    def _discriminator_step(self, pairs: PairBatch, generated: Tensor, names: Sequence[str]) -> None:
        """Eq. 4: tell real targets from generated ones."""
        state, game = self.state, self.config.gan
        with self._runtime.autocast():
            loss, parts = discriminator_loss(
                *(self._nets, pairs, generated, state.pool, state.pool_rng),
                *(game.mode, game.real_label, game.loss_scale),
            )
        self._accelerator.backward(loss)
        self._update("discriminator", parts, names)

    def _generator_step(
        self, pairs: PairBatch, generated: Tensor, auxiliary: Any, names: Sequence[str]
    ) -> None:
        """Eq. 7: make images that the discriminator, the target and its features agree with."""
        weights = self.config.weights_at(self.state.step)
        with self._runtime.autocast(), _frozen(self.state.discriminator) as critic:
            against = replace(self._nets, discriminator=critic)
            loss, parts = generator_loss(against, pairs, generated, weights, self.config.gan.mode, auxiliary)
            self._accelerator.backward(loss)
        self._update("generator", parts, names)

    def _update(self, name: str, parts: Mapping[str, Tensor], images: Sequence[str]) -> None:
        """Count the figures; after the last accumulated part, let the network of that name learn."""
        self.state.means.add(parts)
        if self._accelerator.sync_gradients:
            self.state.update(name, name, parts, images)

    # ---- What is watched.

    def show(self, last: bool) -> NDArray[np.uint8] | None:
        """See Task: a grid of the fixed sample pairs, made by the averaged generator."""
        if not last and self.state.step % self.config.output.sample_every:
            return None
        batch = self._sample_batch
        columns = (
            _pictures(batch.source_image),
            [colorize(labels) for labels in batch.target_parsing.numpy()],
            _pictures(to_uint8(self._generate(batch))),
            _pictures(batch.target_image),
        )
        return draw_grid(list(zip(*columns, strict=True)), SAMPLE_TITLES, scale=2, groups=2)

    def validate(self) -> dict[str, float]:
        """See Task: mean absolute error on validation pairs, in [0, 1], of image and target person."""
        pairs = self._data.validation_pairs[: self.config.output.validate_pairs]
        if not len(pairs):
            return {}
        errors: list[Tensor] = []
        for start in range(0, len(pairs), _VALIDATION_BATCH):
            batch = self._data.batch(pairs[start : start + _VALIDATION_BATCH])
            difference = (self._generate(batch) - to_float(batch.target_image)).abs().mean(1) / 2  # (B, H, W)
            inside = (difference * batch.target_mask).sum((1, 2)) / batch.target_mask.sum((1, 2)).clamp(min=1)
            errors.append(torch.stack([difference.mean((1, 2)), inside], dim=1))
        l1, mask_l1 = torch.cat(errors).double().mean(0).tolist()
        return {"validation/l1": l1, "validation/mask_l1": mask_l1}

    @torch.inference_mode()
    def _generate(self, batch: PairBatch) -> Tensor:
        with self._runtime.autocast():
            generated: Tensor = self.state.ema.module(batch.to(self._runtime.device))
        return generated.float().cpu()

    # ---- What the run folder keeps.

    def begin(self) -> None:
        """See Task: take the networks of ``start_from``, or let a generator that wants to see data begin."""
        if self._beginning is not None:
            self.state.start_from(self._beginning)
            del self._beginning  # its weights are the state's now
            return
        begin = getattr(self.state.generator, "begin", None)
        if begin is None:
            return
        rows = draw_pairs(len(self._data.pairs), _BEGIN_WITH, self.config.seed, 0)
        begin(self._data.batch(self._data.pairs[rows]).to(self._runtime.device))
        if self._runtime.world_size > 1:  # each has noise of its own
            for tensor in self.state.generator.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def inputs(self, new: bool) -> dict[str, str]:
        """See Task: prepared folder, pair lists, perceptual network's weights, what a new run starts from."""
        perceptual = self.config.perceptual.path if self.config.feature_layers else None
        named = {} if perceptual is None else {"perceptual": sha256_file(perceptual)}
        if new and self._beginning is not None:
            self._data.check_beginning(self._beginning.info, f"start_from={self.config.start_from}")
            named["start_from"] = self._beginning.fingerprint
        if self._judge is not None:
            self._data.check_identity(self._judge.info, f"identity.network={self.config.identity.network}")
            named["identity"] = self._judge.weights_hash
        return self._data.inputs() | named

    @cached_property
    def _beginning(self) -> Beginning | None:
        """Read once, for its hash and its weights; a run that goes on never asks for it."""
        start = self.config.start_from
        return None if start is None else Beginning.of(start, self.config.generator)

    def facts(self) -> dict[str, Any]:
        """See Task: image size and the people of the training."""
        people = self._data.people
        return people.training_facts("train") | {"size": list(people.size)}


def _networks(
    config: GanConfig, runtime: Runtime, state: GanState, judge: Trained[Embedding, EmbeddingInfo] | None
) -> GanNetworks:
    """The networks as a step calls them: compiled, and wrapped for several processes, where asked for."""
    runtime.accelerator.gradient_accumulation_steps = config.accumulate
    owned = extra_terms(config.generator).keys() - TERMS.keys()
    idle = bool(config.schedule.stages) or not owned <= config.terms.keys()
    generator = wrap(state.generator, runtime, config.compile, unused=idle)
    discriminator = state.discriminator
    if config.gan.discriminator:
        discriminator = wrap(discriminator, runtime, config.compile)
    perceptual, layers = None, config.feature_layers
    if layers:
        network, names = config.perceptual, list(dict.fromkeys(chain.from_iterable(layers.values())))
        perceptual = PerceptualNetwork(network.network, names, network.path, network.normalize)
        perceptual = perceptual.to(runtime.device)
        if config.channels_last:
            perceptual = perceptual.to(memory_format=torch.channels_last)
    if judge is not None:  # it looks at the images' size, or resizes them to its own
        place(judge.network.requires_grad_(False), runtime, config.channels_last)
    return GanNetworks(
        generator,
        discriminator,
        perceptual,
        config.perceptual.norm,
        layers,
        extra_terms=bool(config.extra_terms),
        identity=None if judge is None else judge.network.feature_and_maps,
        identity_maps=config.identity.maps,
        identity_wanted=config.identity.wanted,
        together=config.gan.together,
        source_fake=config.gan.source_fake,
        nearest_window=config.perceptual.nearest_window,
    )


def _notes(config: GanConfig) -> dict[str, str]:
    """What a reader of the run must know, for environment.json."""
    network, layers = config.perceptual, config.feature_layers
    judge = {}
    if config.identity.network is not None:
        judge["identity"] = f"{config.identity.network}: no score under this network is evidence for the run"
    if not layers:
        return {"perceptual": "none: trained without the perceptual term", **judge}
    origin = f"weights {network.path.name}" if network.path else "torchvision's weights"
    by_term = "; ".join(f"{term}: {', '.join(names)}" for term, names in layers.items())
    return {"perceptual": f"{network.network} {by_term}, {network.norm}, {origin}", **judge}


@contextmanager
def _frozen(module: nn.Module) -> Iterator[nn.Module]:
    """The bare module without gradients for its weights: saves computing and all-reducing them."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)


def _pictures(images: Tensor) -> list[Any]:
    """(B, 3, H, W) uint8 -> B arrays (H, W, 3)."""
    return list(images.permute(0, 2, 3, 1).numpy())
