"""One small folder of every kind that a command writes, made by the commands themselves, for tests of what
commands do with damaged ones."""

from __future__ import annotations

from pathlib import Path

import typer
from tiny_study import ARMS, tiny

from reposer.rendered.dataset import write_rendered_dataset
from reposer.studies.config import StudyConfig, StudyRecipe
from reposer.studies.study import run_study

SIZE = (64, 32)
ONE_STEP = ("--set", "schedule.epochs_const=0.001", "--set", "schedule.epochs_decay=0")
SMALL_SAN = (
    "generator_args={ngf: 4, enc_strides: [2, 2, 1], blocks: 1, n_convs: 1, deep_channels: [8]}",
    *("discriminator_args={ndf: 4, blocks: 1}", "batch_size=2"),
)
SMALL_MAPS = ("optimizer.epochs=0.02", "predictor_args={width: 4}", "batch_size=2", "data.pairs_per_epoch=60")
SMALL_REID = (
    *("augment.resize=[64,32]", "augment.crop=[64,32]", "embedding.size=[64,32]", "embedding.stripes=1"),
    *("embedding.backbone_args={widths: [4, 6, 8]}", "data.images_per_person=2", "batch_size=4"),
    *("schedule.epochs=0.01",),
)


def command(*arguments: object) -> None:
    """The command line in this process.

    Raises:
        UserError, click's usage errors: as the command.
    """
    from reposer.cli.main import app

    typer.main.get_command(app).main([str(argument) for argument in arguments], standalone_mode=False)


def settings(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def write_zoo(root: Path, *, few: bool = False) -> dict[str, Path]:
    """Folders and files by kind; ``few``: those that others are made of, in a third of the time."""
    zoo = {name: root / name for name in ("people", "prepared", "generator", "embedding", "crops")}
    write_rendered_dataset(
        zoo["people"],
        identities=4,
        test_identities=2,
        images_per_identity=4,
        size=SIZE,
        samples=1,
        workers=1,
    )
    data, one = ("--data", zoo["prepared"]), ("--threads", 1)
    size = ("--size", "64x32", "--holdout", 1)
    command("prepare", "market1501", zoo["people"], "--out", zoo["prepared"], *size)
    command("train", "san_demo", *data, "--out", zoo["generator"], *ONE_STEP, *settings(SMALL_SAN), *one)
    command("reid", "train", "reid_demo", *data, "--out", zoo["embedding"], *settings(SMALL_REID), *one)

    def out(name: str) -> tuple[str, Path]:
        zoo[name] = root / name
        return "--out", zoo[name]

    filters = ("--filter", "margin", "--reid", zoo["embedding"], "--images", zoo["people"])
    command("augment", zoo["generator"], *data, *filters, *out("augmented"), *one, "--device", "cpu")
    (zoo["crops"] / "mask").mkdir(parents=True)
    for number, path in enumerate(sorted((zoo["people"] / "bounding_box_train").iterdir())[:3]):
        mask = zoo["people"] / "mask" / f"{path.stem}.png"
        (zoo["crops"] / f"{number}.jpg").write_bytes(path.read_bytes())
        (zoo["crops"] / "mask" / f"{number}.png").write_bytes(mask.read_bytes())
    given = ("--parser", "none", "--keypoints", "none", "--mask", zoo["crops"] / "mask")
    command("annotate", zoo["crops"], *given, *out("annotated"), *one)
    if few:
        return zoo
    command("train", "predictor_demo", *data, *out("predictor"), *settings(SMALL_MAPS), *one)
    words = ("--license", "research only", "--trained-on", "rendered people")
    command("export-run", zoo["generator"], *words, *out("exported_generator"))
    command("reid", "export", zoo["embedding"], *out("exported_embedding"))
    command("evaluate", zoo["generator"], *data, *out("evaluation"), "--metrics", "l1,ssim", *one)
    scores = ("--methods", "euclidean", *one)
    command("reid", "evaluate", zoo["embedding"], *data, *out("reid_evaluation"), *scores)
    command("reid", "score", zoo["reid_evaluation"] / "features.npz", *out("scores"), *scores)
    pairs = zoo["prepared"] / "pairs_val.csv"
    command("generate", zoo["generator"], *data, "--pairs", pairs, *out("generated"), *one)
    command("export-set", zoo["augmented"], *out("exported_set"))
    zoo["study"] = run_study(small_study(zoo), root / "study")
    command("report", zoo["study"])
    return zoo


def small_study(zoo: dict[str, Path]) -> StudyConfig:
    """Three arms of two steps."""
    recipe = StudyRecipe(preset="reid_demo", methods=("euclidean",), settings=SMALL_REID[:-1])
    return tiny(
        zoo["prepared"],
        generator=str(zoo["generator"]),
        arms=ARMS[:3],
        recipes=(recipe,),
        seeds=(0,),
        settings=(),
    )
