"""Presets of the baselines that are re-built here: the papers' numbers, and small ones for a CPU.

A small one takes data, batch, learning rate, schedule and average of ``san_market_small``, which is given to
it; the terms and their ratios are the model's own, so that a row shows the method.
"""

from __future__ import annotations

from pathlib import Path

from reposer.models.def_gan import def_gan_size
from reposer.models.dpig import dpig_size
from reposer.models.gfla import gfla_size
from reposer.models.intro_flow import intro_flow_size
from reposer.models.pg2 import pg2_size
from reposer.models.vunet import vunet_size
from reposer.training.gan.config import (
    AdversarialConfig,
    DataConfig,
    GanConfig,
    LossWeights,
    OptimizerConfig,
    PerceptualConfig,
    RampConfig,
    ScheduleConfig,
    StageConfig,
    StageWeights,
)

MARKET, DEEPFASHION = Path("prepared/market1501"), Path("prepared/deepfashion")
VGG_LAYERS = ("relu1_2", "relu2_2", "relu3_2", "relu4_2", "relu5_2")


def vunet_market() -> GanConfig:
    """VU-Net on Market-1501, its code's numbers: 100,000 steps of 16, VGG-19 and KL terms, no discriminator.

    The authors' loss over 637.5: their picture is 127.5 times ours and the terms on it have a weight of 5;
    VGG's maps are 57 times larger there. KL grows from step 50,000 to 75,000.
    """
    return GanConfig(
        data=DataConfig(folder=MARKET),
        generator="vunet",
        generator_args=vunet_size("paper"),
        optimizer=OptimizerConfig(lr=1e-3, beta1=0.5, beta2=0.9),
        weights=LossWeights(adversarial=0.0, l1=1.0, perceptual=0.45).changed(kl=1 / 637.5),
        perceptual=PerceptualConfig(layers=VGG_LAYERS, norm="l1"),
        gan=AdversarialConfig(pool=0, discriminator=False),
        schedule=ScheduleConfig(
            epochs_const=4, epochs_decay=396, ramps={"kl": RampConfig(start=1e-6, begin=0.5, end=0.75)}
        ),
        batch_size=16,
    )


def vunet_deepfashion() -> GanConfig:
    """VU-Net on DeepFashion, its code's numbers: 256x256, 100,000 steps of 8."""
    market = vunet_market()
    return market.changed(
        data=DataConfig(folder=DEEPFASHION),
        generator_args=vunet_size("paper_256"),
        schedule=market.schedule.changed(epochs_const=2, epochs_decay=198),
        batch_size=8,
    )


def vunet_market_small(small: GanConfig) -> GanConfig:
    """A small VU-Net for a CPU: its own terms, data, optimizer, schedule, batch and average of ``small``.

    Perceptual layers end at relu3_2, so that the stand-in of ``san_market_small`` serves here too.
    """
    market = vunet_market()
    return small.changed(
        generator=market.generator,
        generator_args=vunet_size("small"),
        discriminator_args={},
        weights=market.weights,
        perceptual=market.perceptual.changed(layers=VGG_LAYERS[:3]),
        gan=market.gan,
        schedule=small.schedule.changed(ramps=market.schedule.ramps),
    )


def pg2_market() -> GanConfig:
    """PG2 on Market-1501, its code's numbers: 22,000 of 60,000 steps of 16 for the coarse network alone."""
    return GanConfig(
        data=DataConfig(folder=MARKET),
        generator="pg2",
        generator_args=pg2_size("paper"),
        discriminator_args={"kind": "dcgan"},
        optimizer=OptimizerConfig(lr=2e-5),
        weights=LossWeights(adversarial=1.0, l1=0.0, perceptual=0.0).changed(masked_l1=10.0),
        gan=AdversarialConfig(pool=0, together=True, source_fake=True),
        schedule=ScheduleConfig(epochs_const=240, epochs_decay=0, stages=_pg2_stages(22, 38)),
        batch_size=16,
    )


def pg2_deepfashion() -> GanConfig:
    """PG2 on DeepFashion, its code's numbers: 256x256, 22,000 of 80,000 steps of one pair."""
    market = pg2_market()
    return market.changed(
        data=DataConfig(folder=DEEPFASHION),
        generator_args=pg2_size("paper_256"),
        discriminator_args={"kind": "dcgan", "size": (256, 256), "widths": (64, 128, 256, 512, 512)},
        weights=market.weights.changed(masked_l1=50.0),
        schedule=ScheduleConfig(epochs_const=20, epochs_decay=0, stages=_pg2_stages(22, 58)),
        batch_size=1,
    )


def pg2_market_small(small: GanConfig) -> GanConfig:
    """A small PG2 for a CPU, at half the learning rate of ``small``: without a norm it bears no more."""
    market = pg2_market()
    return small.changed(
        generator=market.generator,
        generator_args=pg2_size("small"),
        discriminator_args={"kind": "dcgan", "widths": (16, 32, 64, 128)},
        optimizer=small.optimizer.changed(lr=small.optimizer.lr / 2),
        weights=market.weights,
        gan=market.gan,
        schedule=small.schedule.changed(stages=market.schedule.stages),
    )


def _pg2_stages(coarse: float, fine: float) -> tuple[StageConfig, ...]:
    alone = StageConfig(
        name="coarse", share=coarse, weights=StageWeights().changed(masked_l1=1.0), discriminator=False
    )
    return alone, StageConfig(name="fine", share=fine)


def dpig_market() -> GanConfig:
    """DPIG's pose transfer on Market-1501, its code's numbers: 120,000 steps of 16, halved every 50,000."""
    return GanConfig(
        data=DataConfig(folder=MARKET),
        generator="dpig",
        generator_args=dpig_size("paper"),
        discriminator_args={"kind": "dcgan"},
        optimizer=OptimizerConfig(lr=2e-5),
        weights=LossWeights(adversarial=1.0, l1=20.0, perceptual=0.0),
        gan=AdversarialConfig(pool=0),
        schedule=ScheduleConfig(epochs_const=480, epochs_decay=0, halve_every=200),
        batch_size=16,
    )


def dpig_deepfashion() -> GanConfig:
    """The same on DeepFashion: 256x256, parts alone, the discriminator sees real and generated together."""
    market = dpig_market()
    return market.changed(
        data=DataConfig(folder=DEEPFASHION),
        generator_args=dpig_size("paper_256"),
        discriminator_args={"kind": "dcgan", "size": (256, 256), "widths": (64, 128, 256, 512, 512)},
        gan=market.gan.changed(together=True),
    )


def dpig_market_small(small: GanConfig) -> GanConfig:
    """A small DPIG for a CPU, at half the learning rate of ``small``: without a norm it bears no more."""
    market = dpig_market()
    return small.changed(
        generator=market.generator,
        generator_args=dpig_size("small"),
        discriminator_args={"kind": "dcgan", "widths": (16, 32, 64, 128)},
        optimizer=small.optimizer.changed(lr=small.optimizer.lr / 2),
        weights=market.weights,
        gan=market.gan,
    )


# ---- Those that warp (docs/explanation/warping.md).


def def_gan_market() -> GanConfig:
    """Def-GAN on Market-1501, the paper's numbers: 128x64, batch 4, 90,000 steps; no L1.

    The nearest-neighbor term has 0.01 times Keras's scale (VGG-19 on 0 to 255, a sum over channels), which is
    37 of the mean over channels on our scale. Deviations: every pair, where the paper leaves out people
    without a shoulder or hip; both networks learn from one batch; the borders of the discriminator's first
    convolution are padded.
    """
    return GanConfig(
        data=DataConfig(folder=MARKET),
        generator="def_gan",
        generator_args=def_gan_size("paper"),
        discriminator_args={
            "kind": "patch",
            "pairing": "poses",
            "strides": [2, 2, 2, 2, 2],
            "norm": "layer",
        },
        weights=LossWeights(adversarial=1.0, l1=0.0, perceptual=0.0).changed(nearest=37.0),
        gan=AdversarialConfig(pool=0, loss_scale=1.0),
        schedule=ScheduleConfig(epochs_const=90, epochs_decay=0),
        batch_size=4,
    )


def def_gan_deepfashion() -> GanConfig:
    """Def-GAN on DeepFashion, the paper's numbers: 256x256, batch 2, 90,000 steps, a window of 5x5."""
    market = def_gan_market()
    return market.changed(
        data=DataConfig(folder=DEEPFASHION, pairs_per_epoch=2000),
        generator_args=def_gan_size("deepfashion"),
        perceptual=PerceptualConfig(nearest_window=5),
        batch_size=2,
    )


def def_gan_market_small(small: GanConfig) -> GanConfig:
    """A small Def-GAN with its own terms; optimizer, schedule, average and batch of ``san_market_small``."""
    large = def_gan_market()
    return small.changed(
        generator=large.generator,
        generator_args=def_gan_size("small"),
        discriminator_args={**large.discriminator_args, "widths": [16, 32, 64, 128]},
        weights=large.weights,
        gan=large.gan,
    )


def gfla_market() -> GanConfig:
    """GFLA on Market-1501, its code's weights and optimizers; the numbers of steps are ours.

    Its code gives 5,000,000 steps for either stage, which nobody ran, and says nothing of its published
    models: here half a million of 8 pairs each. The sum over four layers of style stands as a mean (4 x 500).
    VGG-19 sees [-1, 1] as it is. Deviation: pairs are not turned and scaled.
    """
    flow = StageWeights().changed(correctness=20.0, flow_regularity=0.01)
    return GanConfig(
        data=DataConfig(folder=MARKET),
        generator="gfla",
        generator_args=gfla_size("paper"),
        discriminator_args={"kind": "residual", "spectral": True},
        optimizer=OptimizerConfig(lr=1e-4, beta1=0.0),
        weights=LossWeights(adversarial=2.0, l1=5.0, perceptual=0.5, style=2000.0).changed(
            correctness=5.0, flow_regularity=0.0025
        ),
        perceptual=PerceptualConfig(
            layers=("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
            style_layers=("relu2_2", "relu3_4", "relu4_4", "relu5_2"),
            norm="l1",
            normalize=False,
        ),
        gan=AdversarialConfig(mode="lsgan", pool=0, optimizer=OptimizerConfig(lr=1e-5, beta1=0.0)),
        schedule=ScheduleConfig(
            epochs_const=2000,
            epochs_decay=0,
            stages=(
                StageConfig(name="flow", share=1, weights=flow, discriminator=False),
                StageConfig(name="all", share=1),
            ),
        ),
        batch_size=8,
    )


def gfla_deepfashion() -> GanConfig:
    """GFLA on DeepFashion, 256x256: a second flow and attention at 1/8, of kernel 3; 5 at 1/4."""
    market = gfla_market()
    return market.changed(
        data=DataConfig(folder=DEEPFASHION),
        generator_args=gfla_size("deepfashion"),
        discriminator_args={**market.discriminator_args, "widths": [32, 64, 128, 128]},
        perceptual=market.perceptual.changed(flow_layers=("relu3_1", "relu4_1")),
    )


def gfla_market_small(small: GanConfig) -> GanConfig:
    """A small GFLA with its own terms; schedule, average and batch of ``san_market_small``.

    A third of the steps trains the flow, and towards the flow of the part warps as well, then and later:
    correctness alone takes millions of steps, and a flow that nothing holds is unlearned. For the same reason
    the weights start larger, with Adam's usual momentum: from 0.02 and without it a thousand steps paint
    nobody. Perceptual layers end at relu3_3, so that the stand-in of ``san_market_small`` serves here too;
    each layer of style keeps its weight. The optimizers keep the ratio of their learning rates.
    """
    large = gfla_market()
    flow = StageWeights().changed(correctness=20.0, flow_regularity=0.01, part_flow=1.0)
    return small.changed(
        generator=large.generator,
        generator_args={**gfla_size("small"), "part_flow": True},
        discriminator_args={**large.discriminator_args, "widths": [16, 32, 64]},
        weights=large.weights.changed(style=1000.0, part_flow=1.0),
        perceptual=large.perceptual.changed(
            layers=("relu1_1", "relu2_1", "relu3_1"), style_layers=("relu2_2", "relu3_3")
        ),
        gan=large.gan.changed(optimizer=small.optimizer.changed(lr=small.optimizer.lr / 10)),
        schedule=small.schedule.changed(
            stages=(
                StageConfig(name="flow", share=1, weights=flow, discriminator=False),
                StageConfig(name="all", share=2),
            )
        ),
    )


def intro_flow_keypoints_market() -> GanConfig:
    """Intro-Flow with key-point flow (not SMPL) on Market-1501: its code's terms, G's optimizers, batch 8.

    Each net sees all pairs 30 times, those of PATN's list; the discriminator plays from G's sixth epoch on.
    Deviations: one Adam for all nets (F's has betas (0.9, 0.999) and weight decay, and halves its rate); the
    discriminator sees poses as Gaussians and plays on through the last stage; pairs are not shifted.
    """
    flow = StageWeights().changed(flow_error=1.0, visibility=1.0, flow_in_parts=5.0)
    return GanConfig(
        data=DataConfig(folder=MARKET, pairs_per_epoch=263_632),
        generator="intro_flow_keypoints",
        generator_args=intro_flow_size("paper"),
        discriminator_args={"kind": "patch", "pairing": "source_pose"},
        weights=LossWeights(adversarial=0.01, l1=1.0, perceptual=0.125),
        perceptual=PerceptualConfig(
            layers=("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"), norm="l1"
        ),
        gan=AdversarialConfig(
            pool=0, loss_scale=0.005, optimizer=OptimizerConfig(lr=2e-5, weight_decay=4e-4)
        ),
        schedule=ScheduleConfig(
            epochs_const=90,
            epochs_decay=0,
            stages=(
                StageConfig(name="flow", share=30, weights=flow, discriminator=False, lr=0.5),
                StageConfig(name="features", share=5, discriminator=False),
                StageConfig(name="features_gan", share=25),
                StageConfig(name="blend", share=30),
            ),
        ),
        batch_size=8,
    )


def intro_flow_keypoints_deepfashion() -> GanConfig:
    """The same on DeepFashion, 256x256: discs of 8 pixels, seven levels, five of them warped."""
    return intro_flow_keypoints_market().changed(
        data=DataConfig(folder=DEEPFASHION, pairs_per_epoch=101_966),
        generator_args=intro_flow_size("deepfashion"),
    )


def intro_flow_keypoints_market_small(small: GanConfig) -> GanConfig:
    """A small Intro-Flow with key-point flow; schedule, average and batch of ``san_market_small``.

    The flow net has 30 % of the steps, G 50, the last net 20. Perceptual layers end at relu3_1, so that the
    stand-in of ``san_market_small`` serves here too; the discriminator is narrow.
    """
    large = intro_flow_keypoints_market()
    flow, features, features_gan, blend = large.schedule.stages
    stages = (
        flow.changed(share=30),
        features.changed(share=10),
        features_gan.changed(share=40),
        blend.changed(share=20),
    )
    return small.changed(
        generator=large.generator,
        generator_args=intro_flow_size("small"),
        discriminator_args={**large.discriminator_args, "widths": [16, 32, 64, 128]},
        weights=large.weights,
        perceptual=large.perceptual.changed(layers=("relu1_1", "relu2_1", "relu3_1")),
        gan=large.gan.changed(optimizer=OptimizerConfig(lr=small.optimizer.lr / 10, weight_decay=4e-4)),
        schedule=small.schedule.changed(stages=stages),
    )
