"""Training of a Re-ID embedding: forward, classification + triplets + centers + verification, update.

The recipes are presets in workflows/train.py. With several processes, triplets and BatchNorm statistics on
CPUs are those of each process's own images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reposer.config import load_config
from reposer.errors import UserError
from reposer.images import resize
from reposer.losses.embedding import (
    center_loss,
    center_step,
    identity_loss,
    pairwise_distance,
    teacher_loss,
    triplet_loss,
    uniform_loss,
    verification_loss,
)
from reposer.models.embedding import Embedding, ReidNetwork, ReidOutput, load_pretrained
from reposer.runtime import Runtime
from reposer.storage.files import sha256_file
from reposer.structures import ReidBatch
from reposer.trained.networks import EMBEDDING, newest_checkpoint
from reposer.training.config import check_budget, same_people
from reposer.training.reid.config import (
    GeneratedConfig,
    ReidConfig,
    ReidDataConfig,
    ReidLossConfig,
    ReidOptimizerConfig,
)
from reposer.training.reid.data import ReidData
from reposer.training.state import TrainingState, load_into, place, wrap

_VALIDATION_BATCH, _VALIDATION_IMAGES = 64, 2000

# ---- The task.


class ReidTask:
    """A Task of :mod:`reposer.training.loop`: an embedding of people.

    Args:
        config: everything that the result depends on.
        runtime: device and process group.

    Raises:
        UserError: data, weights, teacher or configuration are not in order; names what.
    """

    counted = "images"
    wrote = "checkpoints/, metrics.jsonl, config.json, environment.json"

    def __init__(self, config: ReidConfig, runtime: Runtime) -> None:
        self.config, self.total_steps = config, config.total_steps
        self._runtime, self._accelerator = runtime, runtime.accelerator
        self._data = ReidData(config, runtime.rank, runtime.world_size)
        network = place(build_network(config, len(self._data.pids)), runtime)
        assert isinstance(network, ReidNetwork)
        self._bare = network
        self.state = TrainingState(
            {"network": network}, {"optimizer": build_optimizer(network, config.optimizer)}
        )
        torch.manual_seed(config.seed + runtime.rank)  # processes draw different dropout masks
        initial = self._load_initial()
        taught_by = config.generated.teacher
        self._teacher = None if taught_by is None else Teacher(taught_by, self._data, config.data, runtime)
        teacher = {} if self._teacher is None else {"teacher": self._teacher.content_hash}
        self._inputs = self._data.inputs() | initial | teacher
        # without the term of identity the classifier gets no gradient
        self._network = wrap(network, runtime, config.compile, unused=not config.loss.identity)
        self._network.train()

    def _load_initial(self) -> dict[str, str]:
        """ImageNet weights where asked for; the hash of their file."""
        self.notes: dict[str, Any] = {"initial": "random weights", **self._data.notes()}
        if self.config.initial == "random":
            return {}
        file = load_pretrained(self._bare.embedding, self.config.initial_path)
        self.notes["initial"] = f"ImageNet weights {file.name}"
        return {"initial": sha256_file(file)}

    def fetch(self, step: int) -> tuple[ReidBatch, tuple[str, ...]]:
        """See Task: images with labels on the device, and their names."""
        batch, names = self._data.batch(step)
        return batch.to(self._runtime.device, non_blocking=True), names

    def step(self, batch: tuple[ReidBatch, tuple[str, ...]]) -> None:
        """See Task: the network by its losses, then the centers by the features that their loss saw."""
        images, names = batch
        config, centers = self.config, self._bare.centers
        with self._runtime.autocast():
            output = self._network(images.image)
            opinion = None if self._teacher is None else self._teacher.logits(images)
        loss, parts = reid_loss(output, images, config.loss, centers, config.generated, opinion)
        self._accelerator.backward(loss)
        self.state.means.add(parts)
        self.state.update("reid", "network", parts, names)
        if centers is not None:
            weight = images.weight * images.known
            moved = center_step(output.pooled.detach(), images.label, weight, centers)
            centers.add_(self._accelerator.reduce(moved, "mean"), alpha=config.loss.center_rate)

    def validate(self) -> dict[str, float]:
        """See Task: a quick figure, from held-out people unless ``output.held_out`` is false.

        CMC and mAP come from ``reposer reid evaluate``.
        """
        rows = self._data.validation[:_VALIDATION_IMAGES]
        if not len(rows) or not self.config.output.held_out:
            return {}
        embedding = self._bare.embedding.eval()
        people, chunks = self._data.people, []
        with torch.inference_mode(), self._runtime.autocast():
            for start in range(0, len(rows), _VALIDATION_BATCH):
                images = torch.from_numpy(people.images[rows[start : start + _VALIDATION_BATCH]])
                chunks.append(embedding(images.permute(0, 3, 1, 2).to(self._runtime.device)).cpu())
        embedding.train()
        pids, camids = torch.from_numpy(people.pids[rows]), torch.from_numpy(people.camids[rows])
        share = nearest_is_same(torch.cat(chunks).float(), pids, camids)
        return {} if share is None else {"validation/nearest_is_same": share}

    def show(self, last: bool) -> None:
        """See Task: there is nothing to see."""

    def begin(self) -> None:
        """See Task."""

    def inputs(self, new: bool) -> dict[str, str]:
        """See Task: prepared folder, first weights, generated set and teacher."""
        return self._inputs

    def facts(self) -> dict[str, Any]:
        """See Task: the people of the training."""
        splits = self.config.data.splits
        facts = {"pids": self._data.pids.tolist(), "splits": list(splits)}
        return facts | self._data.people.training_facts(*splits)


def nearest_is_same(features: Tensor, pids: Tensor, camids: Tensor) -> float | None:
    """Share of images whose nearest image of another camera shows the same person.

    Over the images whose person was seen by another camera too; None where there are none.

    Args:
        features: (N, D).
        pids: (N,).
        camids: (N,).
    """
    other = camids[:, None] != camids[None, :]
    same = (pids[:, None] == pids[None, :]) & other
    nearest = pairwise_distance(features).masked_fill(~other, torch.inf).argmin(1)
    hits = same.gather(1, nearest[:, None])[:, 0][same.any(1)]
    return float(hits.double().mean()) if len(hits) else None


# ---- The objective.

Parts = dict[str, Tensor]  # name -> detached scalar, for the log
REAL_ONLY = GeneratedConfig()


def reid_loss(
    output: ReidOutput,
    batch: ReidBatch,
    weights: ReidLossConfig,
    centers: Tensor | None = None,
    generated: GeneratedConfig = REAL_ONLY,
    teacher: Tensor | None = None,
) -> tuple[Tensor, Parts]:
    """What the network minimizes.

    Every term is one mean over all B images, each times its weight. Generated images whose label does not
    say who they show (uniform, teacher, extra_class) take part in the classification only.

    Args:
        output: of the network for the batch.
        batch: B images with labels; where a verification loss is asked for, two halves that are pairs.
        weights: a term of weight 0 is neither computed nor logged. With 1 and 1, identification and
            verification are Zheng et al.'s 0.5 id_a + 0.5 id_b + verification.
        centers: (K, D) of the classes, where a center loss is asked for.
        generated: what the generated images among the B are to teach.
        teacher: (B, K) logits, where that is the teacher's opinion.

    Returns:
        the loss, a scalar, and its unweighted terms with the share of images (pairs) classified correctly.
    """
    identity = triplet = center = verification = zero = output.pooled.new_zeros((), dtype=torch.float32)
    parts: Parts = {}
    if weights.identity:
        identity = _classification(output.logits, batch, weights.smoothing, generated, teacher)
        parts["accuracy"] = _accuracy(output.logits, batch)
    if generated.folder is not None:
        parts["generated_share"] = batch.generated.float().mean()
    if weights.triplet:
        triplet = triplet_loss(output.pooled, batch.label, batch.weight, weights.margin, batch.known)
    if weights.center and centers is not None:
        center = center_loss(output.pooled, batch.label, batch.weight * batch.known, centers)
    if weights.verification and output.pair_logits is not None:
        first, second = batch.label.chunk(2)
        weight = torch.minimum(*(batch.weight * batch.known).chunk(2))
        verification = verification_loss(output.pair_logits, first == second, weight)
        parts["pair_accuracy"] = ((output.pair_logits.argmax(1) == 1) == (first == second)).float().mean()
    total = weights.identity * identity + weights.triplet * triplet + weights.center * center
    total = total + weights.verification * verification
    terms = {"loss": total, "identity": identity, "triplet": triplet, "center": center}
    terms["verification"] = verification
    parts = {name: term for name, term in terms.items() if term is not zero} | parts
    return total, {f"reid/{name}": part.detach() for name, part in parts.items()}


def _classification(
    logits: Tensor, batch: ReidBatch, smoothing: float, generated: GeneratedConfig, teacher: Tensor | None
) -> Tensor:
    """The recipe's cross-entropy for real images, the label policy's loss for generated ones."""
    if generated.label in ("source", "extra_class"):  # the policy is in the labels
        return identity_loss(logits, batch.label, batch.weight, smoothing)
    weight = batch.weight * batch.generated
    real = identity_loss(logits, batch.label, batch.weight * ~batch.generated, smoothing)
    if generated.label == "smoothed":
        return real + identity_loss(logits, batch.label, weight, generated.smoothing)
    if generated.label == "uniform":
        return real + uniform_loss(logits, weight)
    if teacher is None:
        raise ValueError("label=teacher needs the teacher's logits")
    return real + teacher_loss(logits, teacher, weight)


def _accuracy(logits: Tensor, batch: ReidBatch) -> Tensor:
    """Share of the real images that are classified correctly; 0 where the batch has none."""
    hits = (logits.argmax(1) == batch.label).float()
    real = (~batch.generated).float()
    return (hits * real).sum() / real.sum().clamp(min=1)


# ---- The network, and its optimizer: groups of parameters with their factors.


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


def build_optimizer(network: ReidNetwork, config: ReidOptimizerConfig) -> torch.optim.Optimizer:
    """SGD or Adam over four groups: backbone and heads, weights and (biases, norms) or the classifier's bias.

    Each group carries its "factor": its rate is the schedule's times that.
    """
    groups = []
    alone = id(network.classifier.bias)
    backbone = {id(p) for p in network.embedding.backbone.parameters()}
    for in_backbone in (True, False):
        for small in (False, True):  # vectors are biases and norms
            own_rate = (
                (lambda p: id(p) == alone) if config.biases == "classifier" else (lambda p: p.dim() < 2)
            )
            chosen = [
                p
                for p in network.parameters()
                if p.requires_grad and (id(p) in backbone) == in_backbone and own_rate(p) == small
            ]
            factor = (config.backbone_factor if in_backbone else 1.0) * (config.bias_factor if small else 1.0)
            decay = config.weight_decay if config.bias_decay or not small else 0.0
            if chosen:
                groups.append({"params": chosen, "factor": factor, "weight_decay": decay})
    if config.kind == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


# ---- A finished Re-ID training as the teacher of another: its opinion on who a generated image shows.


class Teacher:
    """The network of a run's newest checkpoint, frozen, in eval mode.

    Args:
        run_dir: of a Re-ID training of the same people, without an extra class.
        data: of the training that it teaches.
        own: which of the images it sees.
        runtime: device.

    Raises:
        UserError: no run, no checkpoint, an extra class, other people, or images beyond the share.
    """

    def __init__(self, run_dir: Path, data: ReidData, own: ReidDataConfig, runtime: Runtime) -> None:
        config = load_config(ReidConfig, run_dir / "config.json")
        found = newest_checkpoint(run_dir, "teacher")
        seen = EMBEDDING.info_of_run(config.model_dump(mode="json"), found)
        facts = data.people.training_facts(*own.splits)
        theirs = found.meta.get("pids", [])
        if theirs != data.pids.tolist():
            raise UserError(
                f"{run_dir}: knows {len(theirs)} people, not the same {len(data.pids)} that are trained on",
                "choose a teacher trained on the same people",
            )
        if not same_people(seen, facts):
            raise UserError(
                f"{run_dir}: was trained on other images, or on other people of the same numbers",
                f"train a teacher on {own.folder}",
            )
        check_budget(f"generated.teacher={run_dir}", seen, own, facts)
        if config.generated.label == "extra_class":
            raise UserError(f"{run_dir}: has an extra class for generated images", "choose another teacher")
        network = build_network(config, len(theirs))
        load_into(network, found.groups["network"])
        self._network = network.to(runtime.device).eval().requires_grad_(False)
        self._size = config.augment.crop
        self.content_hash = sha256_file(found.path / "network.safetensors")

    def logits(self, batch: ReidBatch) -> Tensor:
        """(B, K) for a batch on the device: of generated images what the teacher says, of real ones 0."""
        result = torch.zeros((len(batch), self._network.classifier.out_features), device=batch.image.device)
        if batch.generated.any():
            with torch.no_grad():
                images = resize(batch.image[batch.generated], self._size)
                feature = self._network.embedding.features(images).feature
                result[batch.generated] = self._network.classifier(feature).float()
        return result
