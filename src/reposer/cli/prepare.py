"""``reposer prepare LAYOUT``: index, check and pack a data set. A layout with options of its own
names and forms is one function below; any other key of LAYOUTS is found by its name."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from reposer.cli.options import (
    LARGEST,
    claim_out,
    command_with,
    parameters_of,
    parse_size,
    refuse_useless,
)


class _Layouts(TyperGroup):
    """The commands below, and one for any other key of LAYOUTS."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """As of any group; the options of a layout without a function below are its own keywords."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        from reposer.data.layouts.readers import LAYOUTS, options_of

        if cmd_name not in LAYOUTS:
            return None
        parameters = [p for p in options_of(cmd_name) if p.annotation in (str, int, float, bool, Path)]
        alone = typer.Typer(rich_markup_mode=None, add_completion=False)
        _by_keywords(cmd_name, inspect.getdoc(LAYOUTS[cmd_name]) or "", parameters, alone)
        return typer.main.get_command(alone)


app = typer.Typer(
    cls=_Layouts,
    help="Index, check and pack a data set; the originals are never touched.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ZeroBased = Annotated[
    bool, typer.Option("--zero-based", help="People are counted from 0 (a distractor here): add 1.")
]
Chosen = tuple[str, dict[str, Any]]  # layout and its keywords, see reposer.data.layouts


def _root(
    root: Annotated[str, typer.Argument(help="Folder of the extracted data set; it is only read.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write: manifest, problems, pairs, packed images.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say in seconds what would be taken and what left out, by names alone; write nothing.",
        ),
    ] = False,
) -> None:
    """The parameters before a layout's own."""


def _people(
    holdout: Annotated[
        int,
        typer.Option(
            min=0,
            max=LARGEST,
            help="Hold out so many training people, the highest numbers.",
        ),
    ] = 0,
    pairs: Annotated[
        str,
        typer.Option(help="Who makes a pair: torso (shoulders and hips seen) or parsing (has a label map)."),
    ] = "torso",
    single_camera: Annotated[
        bool,
        typer.Option("--single-camera", help="Of each training person keep the images of one camera."),
    ] = False,
) -> None:
    """The parameters of every layout that has no split and no pairs of its own."""


def _pictures(
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the packed images.")] = "128x64",
    fit: Annotated[str, typer.Option(help="How pictures get that size: resize, pad or crop.")] = "resize",
    parsing: Annotated[
        Path | None, typer.Option(help="Folder of parsing maps inside ROOT; default ROOT/parsing.")
    ] = None,
    label_set: Annotated[
        str,
        typer.Option(help="What the label maps count: lip20, cihp20, atr18; +1 behind it where from 1."),
    ] = "lip20",
    mask: Annotated[
        Path | None, typer.Option(help="Folder of person masks inside ROOT; default ROOT/mask.")
    ] = None,
    keypoints: Annotated[
        list[Path] | None, typer.Option(help="Keypoint CSV; repeatable; default ROOT/keypoints.csv.")
    ] = None,
    mask_source: Annotated[
        str, typer.Option(help="mask (files, else parsing), parsing (only), or union of both.")
    ] = "mask",
    soft_masks: Annotated[
        bool, typer.Option("--soft-masks", help="Cut gray masks at half instead of refusing them.")
    ] = False,
    inverted_masks: Annotated[
        bool, typer.Option("--inverted-masks", help="0 is the person in the masks.")
    ] = False,
) -> None:
    """The parameters of every layout."""


def _command(
    name: str, *, people: bool = True, size: str = "128x64", group: typer.Typer | None = None
) -> Callable[[Callable[..., Chosen]], None]:
    """Make a command of a function that turns a layout's own parameters into what ``prepare_people`` takes.

    Args:
        name: of the command.
        people: whether ``--holdout`` and ``--pairs`` are offered.
        size: default of ``--size``.
        group: that gets it; default: ``app``.
    """

    def register(own: Callable[..., Chosen]) -> None:
        shared = [
            *parameters_of(_root),
            *(parameters_of(_people) if people else []),
            *parameters_of(_pictures),
        ]
        names = {parameter.name for parameter in shared}

        def run(**values: Any) -> None:
            layout, options = own(**{n: value for n, value in values.items() if n not in names})
            _prepare(layout, options, {n: value for n, value in values.items() if n in names})

        before = len(parameters_of(_root))
        parameters = [*shared[:before], *parameters_of(own), *shared[before:]]
        parameters = [p.replace(default=size) if p.name == "size" else p for p in parameters]
        (group or app).command(name)(command_with(parameters, run, own))

    return register


def _prepare(layout: str, options: dict[str, Any], shared: dict[str, Any]) -> None:
    from reposer.data.preparing.prepare import look_at_people, prepare_people
    from reposer.progress import Stages

    shared["size"] = parse_size(shared["size"])
    if shared["mask_source"] == "parsing":
        # --mask itself is of use: it says of files that lie among the images that they are none
        files = {"--soft-masks": shared["soft_masks"], "--inverted-masks": shared["inverted_masks"]}
        refuse_useless("prepare with --mask-source parsing", files)
    if shared.pop("dry_run"):
        shared.pop("out")
        print(look_at_people(layout, options=options, **shared).summary())
        return
    if shared["out"] is None:
        raise typer.BadParameter("a folder to write is wanted (or --dry-run)", param_hint="'--out'")
    claim_out("prepare", shared["out"])
    report = prepare_people(layout, options=options, on_progress=Stages(), **shared)
    print(report.summary())


def _by_keywords(
    layout: str, text: str, parameters: Sequence[inspect.Parameter] = (), group: typer.Typer | None = None
) -> None:
    """The command of a layout whose options are its own keywords."""

    def own(**options: Any) -> Chosen:
        return layout, options

    own.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    own.__doc__ = text
    _command(layout, group=group)(own)


_WITHOUT_OPTIONS = {
    "market1501": "Market-1501 or any data set in its layout: bounding_box_train/, query/,"
    " bounding_box_test/.",
    "dukemtmc": "DukeMTMC-reID and sets in its names, 0001_c2_f0046182.jpg in Market-1501's folders.",
    "msmt17": "MSMT17, both versions: list_{train,val,query,gallery}.txt beside train/ and test/, or"
    " mask_*_v2/.\n\nOr Market-1501's folders with 0000_c1_0030.jpg, as several programs lay it out.",
    "veri": "VeRi-776 and sets in its names: image_train/, image_query/, image_test/;"
    " 0001_c001_00016450_0.jpg.",
    "ltcc": "LTCC: train/, query/, test/ with PERSON_CLOTHES_cCAMERA_NUMBER.png; outfits are kept.",
    "prcc": "PRCC: rgb/train/PERSON/A_*.jpg and rgb/test/{A,B,C}/PERSON/*.jpg; rgb/val/ is not read."
    "\n\nA of the test folder is the gallery, B and C are the queries. C shows other"
    "\nclothes (outfit 1) than A and B (outfit 0).",
}
for _layout, _text in _WITHOUT_OPTIONS.items():
    _by_keywords(_layout, _text)


@_command("cuhk03")
def _cuhk03(
    protocol: Annotated[
        str, typer.Option(help="new (767/700 people), classic (100 test people), folders (new, as folders).")
    ] = "new",
    boxes: Annotated[str, typer.Option(help="detected or labeled.")] = "detected",
    split: Annotated[int, typer.Option(min=0, max=19, help="Number of the classic split, 0 to 19.")] = 0,
) -> Chosen:
    """CUHK03 from images_detected/ or images_labeled/ and its list of the protocol.

    new: cuhk03_new_protocol_config_{detected,labeled}.mat. classic: splits_classic_{detected,labeled}.json.
    folders: bounding_box_train/, query/, bounding_box_test/ with 0003_c1_21.png; no list is needed.
    """
    refuse_useless(f"prepare cuhk03 --protocol {protocol}", {"--split": split and protocol != "classic"})
    if protocol == "folders":
        refuse_useless("prepare cuhk03 --protocol folders", {"--boxes": boxes != "detected"})
        return "cuhk03_np", {}
    return "cuhk03", {"protocol": protocol, "kind": boxes, "split": split}


@_command("viper")
def _viper(
    split: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Number of the random half; results: means of ten.")
    ] = 0,
) -> Chosen:
    """VIPeR: cam_a/ and cam_b/ with 000_45.bmp; a random half of the people trains, the other is tested."""
    return "viper", {"split": split}


@_command("folder")
def _folder(
    identity: Annotated[
        str | None,
        typer.Option(
            help="Regular expression; its first group is the person. With a / it is looked for in the path,"
            " else in the file name."
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV or Parquet with columns path, pid and perhaps camid, split.")
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Nobody is known: every image is a person of its own.")
    ] = False,
    camera: Annotated[
        str, typer.Option(help="The same for the camera: a number, or a letter (A is 1).")
    ] = "_c([0-9]{1,3})",
    zero_based: ZeroBased = False,
) -> Chosen:
    """Any folder of crops of people. Who they are: ROOT/PERSON/*.jpg, or --identity, --labels, --anonymous.

    ROOT/{train,val,query,gallery}/ are the splits where there are such folders (valid/, probe/, and test/
    beside query/ too); else all people train.
    Maps, masks and keypoints (as `reposer annotate` writes them) are found in ROOT/parsing/, ROOT/mask/ and
    ROOT/keypoints.csv by the image's path: a/b.jpg has parsing/a/b.png or parsing/a_b.png.
    Without cameras every image has camera 0, and Re-ID is scored without the same-camera rule.
    """
    table = None if labels is None else str(labels.absolute())
    options = {"camera": camera, "identity": identity, "labels": table, "anonymous": anonymous}
    return "folders", options | ({"zero_based": True} if zero_based else {})


@_command("table")
def _table(
    table: Annotated[Path, typer.Option(help="CSV (UTF-8, with a header) or Parquet.")],
    zero_based: ZeroBased = False,
    split: Annotated[
        str | None, typer.Option(help="Of all rows, of a table without this column: train, val, ...")
    ] = None,
) -> Chosen:
    """A table with the columns path (relative to ROOT), pid, camid and split (train, val, query, gallery).

    pid -1 is junk, 0 a distractor; other columns are ignored. Bad rows are listed and left out.
    """
    later = ({"zero_based": True} if zero_based else {}) | ({"split": split} if split else {})
    return "table", {"table": str(table.absolute())} | later


@_command("packed")
def _packed(
    split: Annotated[str, typer.Option(help="Of all images: train, val, query or gallery.")] = "train",
) -> Chosen:
    """A packed set of `reposer export-set` (webdataset or parquet): its folder, or s3://bucket/place.

    Every image is held against its sha256. The files lie beside --out while they are read, and go again; a
    dry run fetches all of them, too.
    """
    return "packed", {"split": split}


@_command("deepfashion", people=False, size="256x256")
def _deepfashion(
    images: Annotated[
        str | None, typer.Option(help="Folder of the images inside ROOT; default img, img_highres, ROOT.")
    ] = None,
    lists: Annotated[
        Path | None, typer.Option(help="Folder of train.lst, test.lst, keypoint and pair lists.")
    ] = None,
    frame: Annotated[
        str, typer.Option(help="Of the keypoints: auto (by file name), image, 256x176 or HEIGHTxWIDTH.")
    ] = "auto",
) -> Chosen:
    """DeepFashion In-shop, as downloaded (img/WOMEN/...) or renamed (fashionWOMEN....jpg), both mixed too.

    train.lst and test.lst say which image is which. Identities are garments (item and variant); what the two
    lists share is reported. Test pairs are the 8,570 published ones, made from the keypoints where the list
    is not there.
    """
    place = None if lists is None else str(lists.absolute())
    return "deepfashion", {"images": images, "lists": place, "frame": frame}
