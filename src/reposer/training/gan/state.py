"""Everything that changes during a GAN training, and what it writes besides: grids, validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reposer.data.parsing import colorize
from reposer.errors import UserError
from reposer.grids import draw_grid
from reposer.images import to_float, to_uint8
from reposer.losses.adversarial import ImagePool
from reposer.models.discriminators import build_discriminator
from reposer.models.generators import build_generator
from reposer.runtime import Runtime
from reposer.storage import checkpoint
from reposer.storage.checkpoint import Checkpoint, TensorGroups
from reposer.storage.files import sha256_file
from reposer.storage.state import load_into, pack_optimizer, rng_state, set_rng_state, unpack_optimizer
from reposer.structures import PairBatch
from reposer.training.gan.config import GanConfig
from reposer.training.gan.data import GanData
from reposer.training.optimizers import RunningMeans, build_adam, build_ema
from reposer.training.record import RunWriter
from reposer.training.state import below, differences, gather, match_layout

# ---- Everything that changes during a GAN training, in one object; a checkpoint holds exactly this.


class GanState:
    """Networks, their average, optimizers, pool, random generators, unlogged means, and the step.

    The step is also the position of the schedule and of the sampler, which are functions of it. The networks
    are the bare ones: what Accelerate or DDP wraps around them is not saved.

    Args:
        config: sizes, seeds, learning rates.
        runtime: device and process group.
    """

    def __init__(self, config: GanConfig, runtime: Runtime) -> None:
        self.generator = _place(build_generator(config.generator, **config.generator_args), config, runtime)
        self.discriminator = _place(build_discriminator(**config.discriminator_args), config, runtime)
        self.ema = build_ema(self.generator, config.ema_decay)
        betas = (config.optimizer.beta1, config.optimizer.beta2)
        self.generator_optimizer = build_adam(self.generator.parameters(), config.optimizer.lr, betas)
        self.discriminator_optimizer = build_adam(self.discriminator.parameters(), config.optimizer.lr, betas)
        self.pool = ImagePool(config.gan.pool)
        self.pool_rng = torch.Generator().manual_seed(config.seed + runtime.rank)
        self.means = RunningMeans()
        self.step = 0  # optimizer steps done
        torch.manual_seed(config.seed + runtime.rank)  # processes draw different dropout masks

    def pack(self, accelerator: Accelerator) -> tuple[TensorGroups, dict[str, Any]]:
        """Tensors by group, and JSON values. A collective call: every process must make it."""
        rng, rng_rest = rng_state({"pool": self.pool_rng})
        own = {f"rng.{k}": v for k, v in rng.items()}
        own |= {f"pool.{k}": _bits(k, v) for k, v in self.pool.state_dict().items()}
        own |= {f"means.{k}": v for k, v in self.means.state_dict().items()}
        generator_optimizer, generator_rest = pack_optimizer(self.generator_optimizer)
        discriminator_optimizer, discriminator_rest = pack_optimizer(self.discriminator_optimizer)
        groups = {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.module.state_dict(),
            "generator_optimizer": generator_optimizer,
            "discriminator_optimizer": discriminator_optimizer,
            "processes": {name: gather(tensor, accelerator) for name, tensor in own.items()},
        }
        meta = {
            "ema_updates": int(self.ema.n_averaged),
            "generator_optimizer": generator_rest,
            "discriminator_optimizer": discriminator_rest,
            "rng": rng_rest,
            "world_size": accelerator.num_processes,
        }
        return groups, meta

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Begin with the networks of another training: its averaged generator and its discriminator.

        Raises:
            UserError: they are not of this configuration's sizes.
        """
        load_into(self.generator, checkpoint.groups["ema"])
        load_into(self.ema.module, checkpoint.groups["ema"])
        load_into(self.discriminator, checkpoint.groups["discriminator"])

    def restore(self, checkpoint: Checkpoint, runtime: Runtime) -> list[str]:
        """Go back to a checkpoint, bit for bit; returns what differs from it in ways that change the bits.

        Raises:
            UserError: the checkpoint belongs to other networks.
        """
        groups, meta = checkpoint.groups, checkpoint.meta
        load_into(self.generator, groups["generator"])
        load_into(self.discriminator, groups["discriminator"])
        load_into(self.ema.module, groups["ema"])
        self.ema.n_averaged.fill_(meta["ema_updates"])
        for name in ("generator_optimizer", "discriminator_optimizer"):
            optimizer = getattr(self, name)
            unpack_optimizer(optimizer, groups[name], meta[name])
            match_layout(optimizer)
        self.step = checkpoint.step
        if meta["world_size"] == runtime.world_size:  # else pools and random generators start afresh
            # clone: torch.set_rng_state reads a view from the start of its storage
            own = {name: tensor[runtime.rank].clone() for name, tensor in groups["processes"].items()}
            set_rng_state(below("rng.", own), meta["rng"], {"pool": self.pool_rng})
            pool = {k: _bits(k, v) for k, v in below("pool.", own).items()}
            self.pool.load_state_dict(pool, runtime.device)
            self.means.load_state_dict(below("means.", own), runtime.device)
        return differences(meta, runtime)


def _place(module: nn.Module, config: GanConfig, runtime: Runtime) -> nn.Module:
    """On the device, in the memory layout; BatchNorm over all processes on GPUs (there is none for CPUs)."""
    if runtime.world_size > 1 and runtime.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return module.to(runtime.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]


def _bits(name: str, tensor: Tensor) -> Tensor:
    """Key-points as int32 bits and back: their NaN is a missing joint, which a checkpoint would refuse."""
    if not name.endswith("keypoints"):
        return tensor
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.float32)


# ---- What a GAN training writes besides metrics and checkpoints: sample grids and errors on validation
# pairs.

SAMPLE_TITLES = ("source", "target parsing", "generated", "target")


class GanWriter(RunWriter):
    """The run folder of a GAN training.

    Args:
        config: of the training; must be that of the run, if there is one in ``folder``.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        state: is put back to the newest good checkpoint of the folder.
        data: training and validation pairs.
        notes: facts for environment.json.

    Raises:
        UserError: as RunWriter's.
    """

    counted = "pairs"
    wrote = "checkpoints/, samples/*.png, metrics.jsonl, config.json, environment.json"

    def __init__(
        self,
        config: GanConfig,
        folder: Path,
        runtime: Runtime,
        state: GanState,
        data: GanData,
        notes: dict[str, Any],
    ) -> None:
        self._config, self._state, self._data = config, state, data
        super().__init__(config, config.output, config.total_steps, folder, runtime, state, notes)
        shown = data.validation_pairs if len(data.validation_pairs) else data.pairs
        spread = np.linspace(0, len(shown) - 1, config.output.sample_pairs).astype(np.int64)  # many people
        self._sample_batch = data.batch(shown[np.unique(spread)])

    def begin(self) -> None:
        """Take the networks of ``start_from``, where it is told."""
        if self._config.start_from is not None:
            self._state.start_from(_newest(self._config.start_from))

    def inputs(self) -> dict[str, str]:
        """Prepared folder, pair lists, weights of the perceptual network, and what the run starts from."""
        perceptual = self._config.perceptual.path if self._config.feature_layers else None
        named = {} if perceptual is None else {"perceptual": sha256_file(perceptual)}
        if self._config.start_from is not None and checkpoint.latest(self.folder / "checkpoints") is None:
            named["start_from"] = sha256_file(_newest(self._config.start_from).path / "meta.json")
        return self._data.inputs() | named

    def facts(self) -> dict[str, Any]:
        """Image size and the people of the training."""
        people = self._data.people
        return people.training_facts("train") | {"size": list(people.size)}

    def show(self, last: bool) -> None:
        """See RunWriter."""
        if last or self._state.step % self._config.output.sample_every == 0:
            self.samples()

    def samples(self) -> None:
        """Write a grid of the fixed sample pairs, made by the averaged generator."""
        if self._run is None:
            return
        generated = self._generate(self._sample_batch)
        batch = self._sample_batch
        columns = (
            _pictures(batch.source_image),
            [colorize(map_) for map_ in batch.target_parsing.numpy()],
            _pictures(to_uint8(generated)),
            _pictures(batch.target_image),
        )
        grid = draw_grid(list(zip(*columns, strict=True)), SAMPLE_TITLES, scale=2, groups=2)
        self._run.save_sample(f"step_{self._state.step:08d}", grid)
        if self._tracker is not None:
            self._tracker.log_images({"samples": grid[None]}, self._state.step, dataformats="NHWC")

    def validate(self) -> None:
        """Mean absolute error on validation pairs, in [0, 1], of the whole image and of the target person."""
        pairs = self._data.validation_pairs[: self._config.output.validate_pairs]
        if self._run is None or not len(pairs):
            return
        errors: list[Tensor] = []
        for start in range(0, len(pairs), 32):
            batch = self._data.batch(pairs[start : start + 32])
            difference = (self._generate(batch) - to_float(batch.target_image)).abs().mean(1) / 2  # (B, H, W)
            inside = (difference * batch.target_mask).sum((1, 2)) / batch.target_mask.sum((1, 2)).clamp(min=1)
            errors.append(torch.stack([difference.mean((1, 2)), inside], dim=1))
        l1, mask_l1 = torch.cat(errors).double().mean(0).tolist()
        self.write({"validation/l1": l1, "validation/mask_l1": mask_l1})

    @torch.inference_mode()
    def _generate(self, batch: PairBatch) -> Tensor:
        with self._runtime.autocast():
            generated: Tensor = self._state.ema.module(batch.to(self._runtime.device))
        return generated.float().cpu()


def _newest(run: Path) -> checkpoint.Checkpoint:
    """The newest good checkpoint of another run.

    Raises:
        UserError: it has none.
    """
    found = checkpoint.of_run(run)
    if found is None:
        raise UserError(f"start_from={run}: there is no checkpoint", "name the folder of a training run")
    return found


def _pictures(images: Tensor) -> list[Any]:
    """(B, 3, H, W) uint8 -> B arrays (H, W, 3)."""
    return list(images.permute(0, 2, 3, 1).numpy())
