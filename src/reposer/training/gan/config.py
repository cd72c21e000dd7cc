"""The settings of a GAN training: frozen, typed, saved into the run folder; the defaults are SAN's.

Where the paper can be read in more than one way, an option has each reading (docs/explanation/san.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from reposer.config import Config
from reposer.errors import LARGEST, MOST_AT_ONCE, MOST_SOURCES
from reposer.training.config import EpochsConfig, OutputConfig, learning_rate


class DataConfig(Config):
    """Which prepared folder, which pairs of it, and how many of them make an epoch."""

    later: ClassVar[frozenset[str]] = frozenset({"budget", "budget_seed", "itself"})

    folder: Path  # written by `reposer prepare`
    pairs: str = "pairs_train.csv"  # inside the folder; both images must be of the split "train"
    validation_pairs: str = (
        "pairs_val.csv"  # inside the folder; empty: no validation, samples from training pairs
    )
    max_pairs: int | None = Field(default=None, ge=1)  # use the first N pairs only
    pairs_per_epoch: int = Field(default=4000, ge=1)  # draws that are called an epoch
    flip: bool = False  # mirror half of the pairs, labels and joints swapped
    # images of the source person that a pair has at most, one of them the pair's own; each number as often
    sources: int = Field(default=1, ge=1, le=MOST_SOURCES)
    # share of pairs whose target is the source image itself: a generator that carries pixels learns to leave
    # them alone there
    itself: float = Field(default=0.0, ge=0, le=1)
    budget: float = Field(default=1.0, gt=0, le=1)  # share of each person's images, see data/samplers.py
    budget_seed: int = 0


class OptimizerConfig(Config):
    """Adam, the same for both networks unless ``gan.optimizer`` names another for the discriminator."""

    later: ClassVar[frozenset[str]] = frozenset({"weight_decay"})

    lr: float = Field(default=2e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)  # times the weight, added to its gradient


class LossWeights(Config):
    """Alpha, beta and gamma of eq. 7, and further terms; a term of weight 0 is not computed.

    Any other key of ``losses.image_gan.TERMS`` is a setting too, and any term that a generator owns
    (``models.generators``), 0 where it is not given.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float, Field(ge=0, le=LARGEST)]] = Field(init=False)

    adversarial: float = Field(default=10.0, ge=0)
    l1: float = Field(default=15.0, ge=0)
    perceptual: float = Field(default=5.0, ge=0)
    # Terms of RSA-GAN and its relatives; with these and ``perceptual`` at 0 no perceptual network is loaded.
    content: float = Field(default=0.0, ge=0)  # feature maps of perceptual.style_layers
    style: float = Field(default=0.0, ge=0)  # their Gram matrices
    contextual: float = Field(default=0.0, ge=0)  # of perceptual.contextual_layers
    correspondence: float = Field(default=0.0, ge=0)  # the source image warped by the generator
    parsing: float = Field(default=0.0, ge=0)  # cross-entropy of the generator's parsing head
    identity: float = Field(default=0.0, ge=0)  # features of identity.network, generated against wanted

    @classmethod
    def further_keys(cls) -> list[str]:
        """The terms without a field of their own."""
        from reposer.losses.image_gan import TERMS  # here, because it imports torchvision
        from reposer.models.generators import GENERATORS, extra_terms

        terms = dict.fromkeys([*TERMS, *(term for name in GENERATORS for term in extra_terms(name))])
        return [term for term in terms if term not in cls.model_fields]

    def of_terms(self) -> dict[str, float]:
        """The weight of each term that has one."""
        return {name: weight for name, weight in self.model_dump().items() if weight}


class StageWeights(LossWeights):
    """The terms of a stage: one that is not named has weight 0."""

    adversarial: float = Field(default=0.0, ge=0)
    l1: float = Field(default=0.0, ge=0)
    perceptual: float = Field(default=0.0, ge=0)


class StageConfig(Config):
    """A part of the run in which some sub-networks of the generator learn and the others stand still.

    Those are frozen, and in eval mode: BatchNorm keeps its statistics, dropout drops nothing.
    """

    name: str  # a key of the generator's ``stages``, which says what learns
    share: float = Field(gt=0)  # of the steps, beside the shares of the other stages
    weights: StageWeights | None = None  # of the terms; none: those of the run
    discriminator: bool = True  # whether it plays; false: it rests, and there is no adversarial term
    lr: float = Field(default=1.0, gt=0)  # factor of the learning rate


class RampConfig(Config):
    """How the weight of a term grows: a straight line, as a factor of the weight."""

    start: float = Field(default=0.0, ge=0, le=1)  # the factor until ``begin``
    begin: float = Field(default=0.0, ge=0, lt=1)  # where the line begins, a share of the run
    end: float = Field(gt=0, le=1)  # where the factor is 1, and stays 1

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin {self.begin:g} must lie before end {self.end:g}")
        return self

    def factor(self, share: float) -> float:
        """The factor once so much of the run is done."""
        done = (share - self.begin) / (self.end - self.begin)
        return self.start + (1 - self.start) * min(max(done, 0.0), 1.0)


class ScheduleConfig(Config):
    """Constant learning rate, then a straight line to zero; what else changes with the step."""

    later: ClassVar[frozenset[str]] = frozenset({"stages", "ramps", "halve_every"})

    epochs_const: float = Field(default=300, ge=0)
    epochs_decay: float = Field(default=200, ge=0)
    stages: tuple[StageConfig, ...] = Field(default=(), max_length=16)  # none: everything learns all the time
    ramps: dict[str, RampConfig] = Field(default_factory=dict)  # loss term -> how its weight grows
    halve_every: float = Field(
        default=0, ge=0
    )  # epochs after which the rate is halved, again and again; 0: never


class PerceptualConfig(Config):
    """The network phi of eq. 6; its outside weights must be on this machine or be named by ``path``.

    A file that ends early (VGG-16 to relu3_3) wants the layers named that it has.
    """

    later: ClassVar[frozenset[str]] = frozenset({"nearest_window", "flow_layers", "normalize"})

    network: str = "vgg19"
    layers: tuple[str, ...] = ("relu1_2",)  # of the terms perceptual and nearest
    # places along each side in which nearest looks for a like feature
    nearest_window: Literal[1, 3, 5, 7, 9] = 3
    norm: Literal["l1", "l2"] = "l2"  # squared error as in eq. 6, or the absolute one of the prose
    style_layers: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    contextual_layers: tuple[str, ...] = ("relu3_2", "relu4_2")
    flow_layers: tuple[str, ...] = ("relu3_1",)  # of correctness: one for each flow, at its size
    path: Path | None = None  # weight file; default: where torchvision keeps it
    normalize: bool = True  # to ImageNet's mean and deviation; false: it sees [-1, 1] as it is (GFLA)


class IdentityConfig(Config):
    """The Re-ID network of the identity term: frozen, and trained on the training people alone.

    It must not be the network that judges the generator or filters its pictures.
    """

    later: ClassVar[frozenset[str]] = frozenset({"wanted"})

    network: Path | None = None  # run of `reposer reid train`, or an exported folder
    # whose feature is wanted: the target image's, or halfway between it and the source image's, since either
    # alone has a camera and a side of its own
    wanted: Literal["target", "both"] = "target"
    maps: float = Field(default=0.0, ge=0)  # weight of its last maps beside that of its feature

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        if self.network is None and self.model_dump(exclude_defaults=True):
            raise ValueError("settings are given but no network, so nothing would read them")
        return self


class AdversarialConfig(Config):
    """The game between the two networks (eq. 4)."""

    later: ClassVar[frozenset[str]] = frozenset({"discriminator", "optimizer", "together", "source_fake"})

    mode: Literal["bce", "lsgan"] = "bce"
    real_label: float = Field(default=1.0, gt=0, le=1)  # 0.9 is the "soft label" reading
    pool: int = Field(default=50, ge=0)  # earlier fakes shown again to the discriminator
    loss_scale: float = Field(default=0.5, gt=0)  # of the discriminator's loss
    discriminator: bool = True  # false: there is none, and weights.adversarial is 0
    # of the discriminator, whose learning rate keeps its ratio to the generator's; none: the generator's
    optimizer: OptimizerConfig | None = None
    # the discriminator judges real and generated images in one pass: BatchNorm has the statistics of both
    together: bool = False
    source_fake: bool = False  # the discriminator takes the source image for generated, too


class GanOutputConfig(OutputConfig):
    """What is written how often; every figure counts optimizer steps."""

    sample_every: int = Field(default=500, ge=1)
    sample_pairs: int = Field(default=8, ge=1, le=1024)  # rows of a sample grid
    validate_pairs: int = Field(default=256, ge=1)  # the first N validation pairs


class GanConfig(EpochsConfig):
    """Everything that the numbers of a run depend on."""

    data: DataConfig
    generator: str = "san"  # a key of models.generators.GENERATORS
    generator_args: dict[str, Any] = Field(default_factory=dict)  # keywords of its constructor
    # run, exported folder, hub:owner/name or shipped generator that a run begins with; None: random weights
    start_from: Path | None = None
    discriminator_args: dict[str, Any] = Field(default_factory=dict)  # keywords of build_discriminator
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    weights: LossWeights = LossWeights()
    perceptual: PerceptualConfig = PerceptualConfig()
    identity: IdentityConfig = IdentityConfig()
    gan: AdversarialConfig = AdversarialConfig()
    output: GanOutputConfig = GanOutputConfig()
    # pairs of one optimizer step, over all processes and accumulated parts
    batch_size: int = Field(default=32, ge=1, le=MOST_AT_ONCE)
    # parts in which a process works a batch off, one after the other
    accumulate: int = Field(default=1, ge=1)
    channels_last: bool = True
    compile: bool = False  # torch.compile of both networks; minutes of start-up, see docs/results
    # of the averaged generator, which is the one that is used
    ema_decay: float = Field(default=0.999, ge=0, lt=1)

    @property
    def epoch(self) -> int:
        """Pairs that are drawn in an epoch."""
        return self.data.pairs_per_epoch

    @property
    def epochs(self) -> float:
        """Epochs of the whole schedule."""
        return self.schedule.epochs_const + self.schedule.epochs_decay

    def rate(self, step: int, total: int) -> float:
        """Learning rate of the generator in the update that follows ``step`` completed ones."""
        schedule, stage = self.schedule, self.stage(step)
        const, decay = self.steps_of(schedule.epochs_const), self.steps_of(schedule.epochs_decay)
        rate = learning_rate(step, self.optimizer.lr, const, decay)
        if schedule.halve_every:
            rate *= 0.5 ** (step // self.steps_of(schedule.halve_every))
        return rate if stage is None else rate * stage.lr

    def stretched(self, images: float) -> Self:
        """The same schedule over so many drawn pairs."""
        schedule, share = self.schedule, images / self.data.pairs_per_epoch / self.epochs
        const, decay = schedule.epochs_const * share, schedule.epochs_decay * share
        halve = schedule.halve_every * share
        changed = schedule.changed(epochs_const=const, epochs_decay=decay, halve_every=halve)
        return self.changed(schedule=changed)

    def stage(self, step: int) -> StageConfig | None:
        """The stage of the update that follows ``step`` completed ones; None where the run has no stages."""
        stages, total = self.schedule.stages, self.total_steps
        whole, end = sum(stage.share for stage in stages), 0.0
        for number, stage in enumerate(stages, start=1):
            end += stage.share
            # each has a step at least
            last = min(max(round(total * end / whole), number), total - len(stages) + number)
            if step < last or number == len(stages):
                return stage
        return None

    def plays(self, stage: StageConfig | None) -> bool:
        """Whether the discriminator does."""
        return self.gan.discriminator and (stage is None or stage.discriminator)

    def weights_at(self, step: int) -> dict[str, float]:
        """The weight of each term in the update that follows ``step`` completed ones."""
        stage = self.stage(step)
        weights = self._weights_of(stage)
        for term, ramp in self.schedule.ramps.items():
            if term in weights:
                weights[term] *= ramp.factor(step / self.total_steps)
        return weights

    def _weights_of(self, stage: StageConfig | None) -> dict[str, float]:
        if stage is None:
            return self.weights.of_terms()
        weights = (stage.weights or self.weights).of_terms()
        if not stage.discriminator:
            weights.pop("adversarial", None)
        return weights

    @property
    def terms(self) -> dict[str, float]:
        """The loss terms in use, in any stage, each with its largest weight."""
        used: dict[str, float] = {}
        for stage in self.schedule.stages or (None,):
            for term, weight in self._weights_of(stage).items():
                used[term] = max(weight, used.get(term, 0.0))
        return used

    @property
    def feature_layers(self) -> dict[str, tuple[str, ...]]:
        """Layers of the perceptual network by loss term, of the terms in use."""
        phi = self.perceptual
        layers = {
            "perceptual": phi.layers,
            "nearest": phi.layers,
            "content": phi.style_layers,
            "style": phi.style_layers,
            "contextual": phi.contextual_layers,
            "correctness": phi.flow_layers,
        }
        return {term: names for term, names in layers.items() if term in self.terms}

    @property
    def extra_terms(self) -> list[str]:
        """The terms in use that look at the generator's second result."""
        from reposer.models.generators import extra_terms

        return [term for term in extra_terms(self.generator) if term in self.terms]

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        from reposer.models.generators import stage_of, stages_of

        names, offered = [stage.name for stage in self.schedule.stages], stages_of(self.generator)
        for stage in self.schedule.stages:
            if stage.name not in offered:
                raise ValueError(
                    f"schedule.stages: {self.generator} has no stage {stage.name};"
                    f" it has {', '.join(offered) or 'none'}"
                )
            if not stage.discriminator and stage.weights is not None and stage.weights.adversarial:
                raise ValueError(f"schedule.stages: {stage.name} has an adversarial term, no discriminator")
            for term in self._weights_of(stage):
                if (only := stage_of(self.generator, term)) not in ("", stage.name):
                    raise ValueError(
                        f"schedule.stages: {stage.name} has no term {term}, which {only} has:"
                        f" give {stage.name} weights of its own"
                    )
            if not self._weights_of(stage):
                raise ValueError(f"schedule.stages: {stage.name} has no term with a weight above 0")
        if len(set(names)) < len(names):
            raise ValueError("schedule.stages: each stage comes once")
        if 0 < self.total_steps < len(names):
            raise ValueError(f"schedule: {self.total_steps} steps are too few for {len(names)} stages")
        for term in self.schedule.ramps:
            if term not in self.terms:
                raise ValueError(f"schedule.ramps: weights.{term} is not above 0")
        if "adversarial" in self.terms and not self.gan.discriminator:
            raise ValueError("weights.adversarial above 0 needs gan.discriminator=true")
        return self

    @model_validator(mode="after")
    def _terms_have_a_generator(self) -> Self:
        from reposer.models.generators import GENERATORS, extra_terms, option_is_on

        for term in self.terms:
            offering = [name for name in GENERATORS if term in extra_terms(name)]
            if not offering:
                continue  # a term on the image, which every generator has
            name = self.generator if self.generator in offering else offering[0]
            option = extra_terms(name)[term]
            if name != self.generator or not option_is_on(name, option, self.generator_args):
                raise ValueError(f"weights.{term} needs generator={name} with {option}=true")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if bool({"identity", "lent"} & self.terms.keys()) != (self.identity.network is not None):
            raise ValueError(
                "weights.identity (or weights.lent) above 0 and identity.network=RUN belong together"
            )
        if self.gan.pool and self.discriminator_args.get("pairing") == "carried":
            raise ValueError("the pairing carried needs gan.pool=0: a pool keeps no further sources")
        if self.gan.together and self.discriminator_args.get("pairing") in ("carried", "as_printed"):
            raise ValueError("gan.together does not go with the pairings carried and as_printed")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        if self.total_steps < 1:
            raise ValueError("schedule: epochs_const + epochs_decay must be above 0")
        return self
