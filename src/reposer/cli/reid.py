"""``reposer reid VERB``: Re-ID networks and features, from training to rank lists."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reposer.cli.generators import training
from reposer.cli.options import (
    LARGEST,
    LARGEST_SEED,
    Data,
    Device,
    Threads,
    claim_out,
    finite,
    parse_some,
    set_threads,
    with_parameters,
)
from reposer.errors import UserError, known

app = typer.Typer(
    help="Train, evaluate, score and export person re-identification networks.", no_args_is_help=True
)


Methods = Annotated[
    str,
    typer.Option(
        help="euclidean, cosine, xqda, kissme, xqda_reference, kissme_reference; comma-separated. Default:"
        " euclidean, and with training people xqda and kissme.",
    ),
]
Reranked = Annotated[bool, typer.Option("--rerank", help="Every method once more, k-reciprocally re-ranked.")]
K1 = Annotated[int, typer.Option("--k1", min=1, max=LARGEST, help="Re-ranking: size of neighborhoods.")]
K2 = Annotated[int, typer.Option("--k2", min=1, max=LARGEST, help="Re-ranking: neighbors that are averaged.")]
Lambda = Annotated[
    float,
    typer.Option("--lambda", min=0, max=1, callback=finite, help="Re-ranking: weight of the distance."),
]
MultiQuery = Annotated[str, typer.Option(help="mean or max over all crops of a query's person and camera.")]
RankLists = Annotated[
    str, typer.Option(help="Row whose rank lists are drawn, as 'xqda + re-ranking'. Default: the first.")
]
Map = Annotated[
    str, typer.Option("--map", help="Draw the features in the plane: tsne, or umap (extra `maps`).")
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=LARGEST_SEED, help="Of the bootstrap, of trials, folds, sampled pairs and the map."
    ),
]
Variant = Annotated[
    str,
    typer.Option(
        help="Re-ranking of other code: zhong (the paper), fourth_power, fastreid; docs/explanation/reid.md."
    ),
]
Protocol = Annotated[
    str,
    typer.Option(
        help="market1501, single_shot, sysu_all, sysu_indoor, ltcc_standard, ltcc_cloth_changing,"
        " prcc_same_clothes, prcc_cross_clothes."
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        min=1, max=LARGEST, help="Gallery images of each person in a trial of a sampling protocol; default 1."
    ),
]
Trials = Annotated[
    int | None, typer.Option(min=1, max=LARGEST, help="Random galleries of a sampling protocol; default 10.")
]
Expand = Annotated[
    int,
    typer.Option(
        min=0,
        max=LARGEST,
        help="Every method once more, each query summed with so many nearest gallery images.",
    ),
]
Alpha = Annotated[
    float,
    typer.Option(
        min=0,
        max=LARGEST,
        callback=finite,
        help="Query expansion: power of the similarity as weight; 0: plain average.",
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="Take features as they are, not at length 1 (LOMO + XQDA).")]
NoMatchOption = Annotated[
    str, typer.Option("--no-match", help="Queries without a valid match: skip, or zero (the MATLAB code).")
]
KeepOwn = Annotated[
    bool, typer.Option("--keep-same-camera", help="Do not leave out a person's images of the query's camera.")
]
Roc = Annotated[bool, typer.Option("--roc", help="Also score pairs one to one: TPR at FPR, AUC, EER.")]


def _scoring(
    methods: Methods = "",
    rerank: Reranked = False,
    k1: K1 = 20,
    k2: K2 = 6,
    weight: Lambda = 0.3,
    multi_query: MultiQuery = "",
    rank_lists: RankLists = "",
    feature_map: Map = "",
    protocol: Protocol = "market1501",
    shots: Shots = None,
    trials: Trials = None,
    variant: Variant = "zhong",
    expand: Expand = 0,
    alpha: Alpha = 0.0,
    raw: Raw = False,
    no_match: NoMatchOption = "skip",
    keep_same_camera: KeepOwn = False,
    roc: Roc = False,
    seed: Seed = 0,
) -> Any:  # ReidOptions
    """The parameters of every command that scores."""
    from reposer.evaluation.reid_protocols import find_protocol
    from reposer.evaluation.reidentification import Expansion, Rerank
    from reposer.reid.rerank import known_variant
    from reposer.workflows.reid_evaluation import ReidOptions

    pooling: tuple[Literal["mean", "max"], ...] = ("mean", "max")
    if expand < 0 or not 0 <= alpha < float("inf"):
        raise UserError(f"--expand {expand} --alpha {alpha}", "choose numbers from 0 on")
    if alpha and not expand:
        raise UserError("--alpha weighs the neighbors of --expand", "give --expand too")
    if seed < 0:
        raise UserError(f"--seed {seed}", "choose a whole number from 0 on")
    rule = known_variant(variant)
    usual = Rerank()
    of_rerank = {"--k1": k1 != usual.k1, "--k2": k2 != usual.k2, "--lambda": weight != usual.weight}
    for option, given in (of_rerank | {"--variant": rule != usual.variant}).items():
        if given and not rerank:
            raise UserError(f"{option} is of re-ranking", "give --rerank too")
    return ReidOptions(
        methods=tuple(parse_some("--methods", methods)) if methods else (),
        rerank=Rerank(k1, k2, weight, rule) if rerank else None,
        multi_query=known("--multi-query", multi_query, pooling) if multi_query else None,
        expand=Expansion(expand, alpha) if expand else None,
        protocol=find_protocol(protocol, shots, trials),
        unit=not raw,
        no_match=known("--no-match", no_match, ("skip", "zero")),
        exclude_same_camera=not keep_same_camera,
        roc=roc,
        rank_lists=rank_lists,
        feature_map=feature_map,
        seed=seed,
    )


@app.command("train")
@with_parameters(training, "how")
def reid_train(
    preset: Annotated[
        str | None, typer.Argument(help="ide2016, siamese2017, bot, reid_small, reid_demo, ...")
    ] = None,
    *,
    how: Callable[..., object],
) -> None:
    """Train a Re-ID network; Ctrl-C saves first. The same as `reposer train`, for Re-ID presets only."""
    from reposer.workflows.train import find_reid_preset

    if preset is not None:
        find_reid_preset(preset)
    print(how(preset, kind="ReidConfig"))


@app.command("evaluate")
@with_parameters(_scoring, "options")
def reid_evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, exported folder or hub id.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for table, curves, rank lists and kept features.")],
    query_list: Annotated[Path | None, typer.Option(help="Text file of query names, one a line.")] = None,
    gallery_list: Annotated[Path | None, typer.Option(help="Text file of gallery names.")] = None,
    crops: Annotated[Path | None, typer.Option(help="Folder of multi-query crops, as gt_bbox.")] = None,
    *,
    options: Any,  # ReidOptions
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Score a network on held-out people: CMC, both mAPs, mINP, with intervals; learned and re-ranked too.

    Features are extracted once and kept in --out; the next call with other methods starts from them.
    """
    claim_out("reid evaluate", out, model, data, query_list, gallery_list, crops)
    from reposer.workflows.reid_evaluation import evaluate_network

    report = evaluate_network(
        model,
        data,
        out,
        options,
        query_list=query_list,
        gallery_list=gallery_list,
        crops=crops,
        device=device,
        threads=threads,
    )
    print(report.to_markdown())
    print(
        f"{out}: reidentification.json, .md, .parquet (per query), features.npz, {', '.join(report.pictures)}"
    )


@app.command("score")
@with_parameters(_scoring, "options")
def reid_score(
    features: Annotated[
        list[Path],
        typer.Argument(
            help=".npz, .parquet, .mat, .pt, or .npy and its labels; see docs/how-to/score-features.md."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for table, curves and rank lists.")] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="Folder of the named images, for rank lists; repeatable.")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each-file", help="Every file is a split of its own: means over them.")
    ] = False,
    folds: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST, help="Random splits of all people in two: means over them."),
    ] = None,
    train_people: Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="Of each fold; default: half.")
    ] = None,
    *,
    options: Any,  # ReidOptions
    threads: Threads = None,
) -> None:
    """Score features of any tool: splits query, gallery, train (for learned methods), multi_query (crops)."""
    if out is not None:
        claim_out("reid score", out, *features, *(images or ()))
    from reposer.workflows.reid_evaluation import score_files, score_splits

    set_threads(threads)
    if train_people is not None and folds is None:
        raise UserError("--train-people is of --folds", "give both, or neither")
    if folds is None and not each:
        report = score_files(features, out, options, images=images or ())
    elif each and folds is not None:
        raise UserError("--each-file and --folds are two ways to split", "choose one")
    elif images:
        raise UserError("rank lists are of one split", "leave --images out")
    else:
        report = score_splits(features, out, options, folds=folds, train_people=train_people)
    print(report.to_markdown())
    if out is not None:
        print(f"{out}: reidentification.json, .md, .parquet (per query), {', '.join(report.pictures)}")


@app.command("export")
def reid_export(
    model: Annotated[str, typer.Argument(help="Run folder, or an exported folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write: model.safetensors, config.json, README.md.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also embedding.onnx, checked against PyTorch.")
    ] = False,
) -> None:
    """Export a network for others: Embedding.from_pretrained reads the folder, onnxruntime the ONNX file."""
    claim_out("reid export", out, model)
    from reposer.workflows.reid_features import export_embedding

    print(export_embedding(model, out, onnx=onnx))
