"""Everything that changes during a Re-ID training, in one object; a checkpoint holds exactly this."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reposer.losses.identity import center_step
from reposer.models.embedding import Embedding
from reposer.models.reid_network import ReidNetwork
from reposer.runtime import Runtime
from reposer.structures import ReidBatch
from reposer.training.network_state import NetworkState
from reposer.training.reid_config import ReidConfig
from reposer.training.reid_optimizer import build_optimizer
from reposer.training.running_means import RunningMeans


def build_network(config: ReidConfig, people: int) -> ReidNetwork:
    """The network of a training on so many people, with new weights."""
    embedding, head = Embedding(**config.embedding.model_dump()), config.head
    verification = head.verification if config.loss.verification else None
    classes = people + (config.generated.label == "extra_class")
    network = ReidNetwork(
        *(embedding, classes, head.dropout, head.bias, verification), centers=config.loss.center > 0
    )
    if network.verifier is not None and head.verifier_std is not None:
        nn.init.normal_(network.verifier.weight, std=head.verifier_std)
        nn.init.zeros_(network.verifier.bias)
    return network


class ReidState(NetworkState):
    """Network, optimizer, unlogged means, random generators, and the step.

    The step is also the position of the schedule, the sampler and the augmentation, which are functions of
    it.

    Args:
        config: sizes, seeds, learning rates.
        runtime: device and process group.
        people: number of training people.
    """

    network: ReidNetwork

    def __init__(self, config: ReidConfig, runtime: Runtime, people: int) -> None:
        network: nn.Module = build_network(config, people)
        if runtime.world_size > 1 and runtime.device.type == "cuda":  # there is none for CPUs
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        assert isinstance(network, ReidNetwork)
        self.network = network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.network, config.optimizer)
        self.means = RunningMeans()
        self.step = 0  # optimizer steps done
        torch.manual_seed(config.seed + runtime.rank)  # processes draw different dropout masks

    def move_centers(self, pooled: Tensor, batch: ReidBatch, rate: float, accelerator: Accelerator) -> None:
        """A step of the class centers, where there are some, by the features (B, D) that their loss saw."""
        centers = self.network.centers
        if centers is not None:
            step = center_step(pooled.detach(), batch.label, batch.weight * batch.known, centers)
            centers.add_(accelerator.reduce(step, "mean"), alpha=rate)
