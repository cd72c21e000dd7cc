"""Everything that changes during a GAN training, in one object; a checkpoint holds exactly this."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reposer.checkpoint import Checkpoint, Groups
from reposer.losses.adversarial import ImagePool
from reposer.models.discriminators import build_discriminator
from reposer.models.generators import build_generator
from reposer.runtime import Runtime
from reposer.state import load_into, pack_optimizer, rng_state, set_rng_state, unpack_optimizer
from reposer.training.ema import build_ema
from reposer.training.gan_config import GanConfig
from reposer.training.optimizers import build_adam
from reposer.training.process_state import below, differences, gather, match_layout
from reposer.training.running_means import RunningMeans


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

    def pack(self, accelerator: Accelerator) -> tuple[Groups, dict[str, Any]]:
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
