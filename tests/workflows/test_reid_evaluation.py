"""``reposer reid`` from a prepared folder to the files it writes: rows, kept features, leaks, multi-query."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from reposer.cli.main import app
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED, prepare_market1501, prepare_people
from reposer.data.records import read_manifest
from reposer.errors import UserError
from reposer.evaluation.plots import draw_map, map_points
from reposer.evaluation.reid_comparison import compare_methods
from reposer.evaluation.reidentification import Expansion, Rerank
from reposer.images import decode, encode_png
from reposer.models.embedding import Embedding, EmbeddingInfo
from reposer.reid.features import embed_images, extract_features, write_features
from reposer.rendered.dataset import write_rendered_dataset
from reposer.storage.outputs import write_output
from reposer.structures import FeatureSet
from reposer.workflows import reid_features
from reposer.workflows.reid_evaluation import (
    ReidOptions,
    evaluate_network,
    resolved,
    score_files,
    score_sets,
    score_splits,
)
from reposer.workflows.reid_features import (
    chosen_rows,
    export_embedding,
    kept_features,
    listed_rows,
    training_note,
)
from reposer.workflows.verify import verify_folder


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Rendered people, prepared, and an untrained network in an exported folder."""
    root = tmp_path_factory.mktemp("reid")
    write_rendered_dataset(
        root / "people", identities=5, test_identities=4, images_per_identity=6, size=(64, 32), seed=3
    )
    prepare_market1501(root / "people", root / "prepared", size=(64, 32))
    torch.manual_seed(0)
    embedding = Embedding("small", {"widths": [8, 8, 16]}, size=(64, 32), stripes=2)
    embedding.save_pretrained(root / "network")
    people = PackedPeople.open(root / "prepared" / PACKED)
    return SimpleNamespace(root=root, people=people, prepared=root / "prepared", network=root / "network")


def _evaluate(house, out, *methods, **options):
    lists = {key: options.pop(key) for key in ("query_list", "gallery_list", "crops") if key in options}
    chosen = ReidOptions(methods=methods, **options)
    return evaluate_network(str(house.network), house.prepared, out, chosen, device="cpu", **lists)


def _feature_set(house, rows):
    people = house.people
    features = embed_images(Embedding.from_pretrained(house.network), people.images[rows], 7)
    return FeatureSet(features, people.pids[rows], people.camids[rows], tuple(people.names[i] for i in rows))


def test_the_report_is_that_of_the_features_of_the_splits(house, tmp_path):
    rerank = Rerank(5, 2)
    report = _evaluate(house, tmp_path, "euclidean", "xqda", rerank=rerank, rank_lists="xqda + re-ranking")
    sets = [
        _feature_set(house, np.flatnonzero(house.people.splits == s)) for s in ("query", "gallery", "train")
    ]
    expected = compare_methods(*sets, methods=("euclidean", "xqda"), rerank=rerank)
    for name, result in expected.results.items():
        assert report.results[name].values.mAP_step == pytest.approx(result.values.mAP_step, abs=1e-5)
    saved = json.loads((tmp_path / "reidentification.json").read_text())
    assert saved["settings"]["network"]["embedding"]["backbone"] == "small"
    assert saved["pictures"].keys() >= {"cmc.png", "ranklist_best.png", "ranklist_worst.png"}
    assert all(decode(tmp_path / name).std() > 1 for name in saved["pictures"])
    rows = pq.read_table(tmp_path / "reidentification.parquet").to_pylist()
    for name, result in report.results.items():
        mine = [row for row in rows if row["method"] == name]
        assert len(mine) == len(sets[0])
        assert np.mean([row["ap_step"] for row in mine]) == pytest.approx(result.values.mAP_step)
        assert np.mean([row["first_hit"] == 1 for row in mine]) == pytest.approx(result.values.rank1)


def test_features_are_extracted_once_and_again_for_another_network(house, tmp_path, monkeypatch):
    extracted, real = [], reid_features._extract
    monkeypatch.setattr(
        reid_features, "_extract", lambda e, p, rows, name: extracted.append(name) or real(e, p, rows, name)
    )
    network, rows = Embedding.from_pretrained(house.network), chosen_rows(house.people)
    tested = {name: rows[name] for name in ("query", "gallery")}
    first = kept_features(network, house.people, tested, tmp_path)
    assert extracted == ["query", "gallery"]
    second = kept_features(network, house.people, rows, tmp_path)
    assert extracted == ["query", "gallery", "train"]
    for name, features in first.items():
        np.testing.assert_array_equal(second[name].features, features.features)
        np.testing.assert_array_equal(features.features, _feature_set(house, rows[name]).features)

    data = bytearray((tmp_path / "features.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "features.npz").write_bytes(data)
    kept_features(network, house.people, tested, tmp_path)
    assert extracted[3:] == ["query", "gallery"]  # a damaged file is not believed
    with torch.no_grad():
        network.neck.weight.mul_(torch.linspace(0.5, 2, 32))
    kept_features(network, house.people, tested, tmp_path)
    assert extracted[5:] == ["query", "gallery"]
    kept_features(network, house.people, tested | {"query": rows["query"][::-1]}, tmp_path)
    assert extracted[7:] == ["query"]


def test_kept_features_are_a_feature_file_with_the_same_scores(house, tmp_path):
    report = _evaluate(house, tmp_path / "a", "euclidean", "kissme")
    out = tmp_path / "b"
    again = score_files([tmp_path / "a" / "features.npz"], out, ReidOptions(methods=("euclidean", "kissme")))
    for name, result in report.results.items():
        assert again.results[name].values == result.values
    assert not (out / "ranklist_best.png").exists()  # no pictures were given
    folders = [house.root / "people" / name for name in ("query", "bounding_box_test")]
    score_files([tmp_path / "a" / "features.npz"], out, ReidOptions(methods=("euclidean",)), images=folders)
    assert (out / "ranklist_best.png").exists()
    with pytest.raises(UserError, match=r"\.jpg: no such image in .*bounding_box_test: give the folders"):
        score_files([tmp_path / "a" / "features.npz"], out, ReidOptions(), images=folders[1:])


def test_name_lists_choose_query_and_gallery(house, tmp_path):
    tested = np.flatnonzero(np.isin(house.people.splits, ["query", "gallery"]))[::-1]
    for name, rows in (("q", tested[::2]), ("g", tested[1::2])):
        (tmp_path / name).write_text("\n".join(house.people.names[i] for i in rows) + "\n\n")
    rows = chosen_rows(house.people, tmp_path / "q", tmp_path / "g")
    np.testing.assert_array_equal(rows["query"], tested[::2])
    np.testing.assert_array_equal(rows["gallery"], tested[1::2])
    with pytest.raises(UserError, match="--query-list and --gallery-list"):
        chosen_rows(house.people, tmp_path / "q")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "names no image"), ("nobody.jpg", ":1: nobody.jpg: the prepared"), ("{0}\n{0}", ":2: .* line 1")],
)
def test_bad_lists_are_named_by_line(house, tmp_path, text, message):
    (tmp_path / "list").write_text(text.format(house.people.names[0]))
    with pytest.raises(UserError, match=message):
        listed_rows(house.people, tmp_path / "list")


def test_people_the_network_has_seen_are_refused(house):
    people = house.people
    rows = {name: np.flatnonzero(people.splits == name) for name in ("query", "gallery")}
    info = EmbeddingInfo(identity_hash=people.identity_hash("train"), trained_on="x")
    assert "nobody of it is tested" in training_note(info, people, rows)
    unknown = info.changed(identity_hash="0" * 64)
    assert "not known" in training_note(unknown, people, rows)


@pytest.fixture(scope="module")
def with_held_out(house):
    """The same people, prepared with two of the training people held out."""
    prepare_market1501(house.root / "people", house.root / "held_out", size=(64, 32), holdout=2)
    return PackedPeople.open(house.root / "held_out" / PACKED)


@pytest.mark.parametrize("query", ["val", "query"])
@pytest.mark.parametrize(
    "trained", [("train",), ("val",), ("train", "val"), ("val", "train"), ("train", "val", "gallery")]
)
def test_people_of_any_split_that_the_network_has_seen_are_refused(with_held_out, query, trained):
    people = with_held_out
    rows = {
        "query": np.flatnonzero(people.splits == query),
        "gallery": np.flatnonzero(people.splits == "gallery"),
    }
    info = EmbeddingInfo(splits=trained, trained_on="x", **people.training_facts(*trained))
    tested, learned = (people.pids[np.isin(people.splits, names)] for names in ((query, "gallery"), trained))
    both = set(tested[tested > 0].tolist()) & set(learned.tolist())
    if both:
        with pytest.raises(UserError, match=rf"\({len(both)} people\), .* whom the network was trained on"):
            training_note(info, people, rows)
    else:
        said = (
            f"The network was trained on the data set x, split {', '.join(trained)}; nobody of it is tested."
        )
        assert training_note(info, people, rows) == said


def test_people_the_network_has_seen_in_other_images_are_refused(house, tmp_path):
    """Every third image of the training people is held out: none is trained on, every person is."""
    raw = house.root / "people" / "bounding_box_train"
    for number, path in enumerate(sorted(raw.iterdir())):
        split = "train" if number % 3 else "val"
        place = tmp_path / "in" / split / path.name[:4] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    report = prepare_people("folders", tmp_path / "in", tmp_path / "out", size=(64, 32))
    assert report.problems["person-train-test"] == 5
    people = PackedPeople.open(tmp_path / "out" / PACKED)
    rows = chosen_rows(people)
    info = EmbeddingInfo(identity_hash=people.identity_hash("train"), trained_on="x")
    with pytest.raises(UserError, match=r"10 test images \(5 people\), .* whom the network was trained on"):
        training_note(info, people, rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("place", ["{}", "query/{}", "./{}", "C:\\data\\query\\{}", "/data/query/{}"])
def test_lists_of_other_tools_name_the_same_images(house, tmp_path, encoding, place):
    names = house.people.names[:3]
    text = "".join(place.format(name) + "\r\n" for name in names)
    (tmp_path / "list").write_bytes(text.encode(encoding))
    np.testing.assert_array_equal(listed_rows(house.people, tmp_path / "list"), [0, 1, 2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A data set of folders, prepared: three people whose files have the same names, but for one of each."""
    root, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for split in ("train", "query", "gallery"):
        for pid in range(3):
            for name in ("0_0.png", f"{split}{pid}_1.png", "größe.png"):
                place = root / "in" / split / f"{pid + 1}" / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(encode_png(rng.integers(0, 256, (64, 32, 3), np.uint8)))
    prepare_people("folders", root / "in", root / "out", size=(64, 32))
    return PackedPeople.open(root / "out" / PACKED)


def _paths_of(people):
    """Path in the data set -> row."""
    records = read_manifest(people.folder.parent / "manifest.parquet")
    return {record.path: people.index(record.name) for record in records}


@pytest.mark.parametrize(
    "place",
    ["{}", "./{}", "/data/in/{}", "in/{}", ".\\{}", "C:\\in\\{}", "//server/{}", "decomposed"],
)
def test_lists_name_images_by_their_paths_in_the_data_set(folders, tmp_path, place):
    paths = _paths_of(folders)
    assert len(paths) == 27
    assert not set(paths) & set(folders.names)
    order = sorted(paths, reverse=True)
    if place == "decomposed":
        lines = [unicodedata.normalize("NFD", path) for path in order]
    else:
        lines = [place.format(path.replace("/", "\\") if "\\" in place else path) for path in order]
    (tmp_path / "list").write_text("\n".join(lines), encoding="utf-8")
    np.testing.assert_array_equal(listed_rows(folders, tmp_path / "list"), [paths[path] for path in order])


def test_lists_name_images_by_the_end_of_their_paths_and_by_file_names_of_one(folders, tmp_path):
    paths = _paths_of(folders)
    lines = {"query/2/0_0.png": "query/2/0_0.png", "gallery1_1.png": "gallery/2/gallery1_1.png"}
    lines |= {"elsewhere/query0_1.png": "query/1/query0_1.png", "1/train0_1.png": "train/1/train0_1.png"}
    lines[folders.names[paths["query/3/0_0.png"]]] = "query/3/0_0.png"
    lines[f"x/{folders.names[paths['train/3/0_0.png']]}"] = "train/3/0_0.png"
    (tmp_path / "list").write_text("\n".join(lines))
    np.testing.assert_array_equal(
        listed_rows(folders, tmp_path / "list"), [paths[path] for path in lines.values()]
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("0_0.png", r"0_0\.png: is one of 9 images, .*/0_0\.png and .*/0_0\.png: name it by its path"),
        ("2/0_0.png", r"2/0_0\.png: is one of 3 images, "),
        ("elsewhere/0_0.png", r"elsewhere/0_0\.png: is one of 9 images, "),
        ("nobody.png", r"no such image: list images by name in the prepared folder, as \S+\.png, or by path"),
        (
            "query/9/none.png",
            r"no such image: .* as \S+\.png, or by path in the data set, as \w+/\d/\S+\.png",
        ),
        ("../..", "no such image"),
        ("/", "no such image"),
    ],
)
def test_lines_that_name_no_image_or_one_of_several_are_refused(folders, tmp_path, line, told):
    (tmp_path / "list").write_text(f"query/1/0_0.png\n{line}\n")
    with pytest.raises(UserError, match=rf"list:2: .*{told}"):
        listed_rows(folders, tmp_path / "list")


def test_the_same_image_by_name_and_by_path_is_there_twice(folders, tmp_path):
    name = folders.names[_paths_of(folders)["query/1/0_0.png"]]
    (tmp_path / "list").write_text(f"{name}\nquery/1/0_0.png\n")
    with pytest.raises(UserError, match=r"list:2: query/1/0_0\.png stands in line 1 already"):
        listed_rows(folders, tmp_path / "list")


def test_multi_query_pools_the_crops_of_a_person_and_camera(house, tmp_path):
    """Crops that are the query itself, mirrored and not, change nothing of what a hand-made mean says."""
    people, crops = house.people, tmp_path / "crops"
    crops.mkdir()
    query = np.flatnonzero(people.splits == "query")
    for i in query[1:]:
        stem = people.names[i].removesuffix(".jpg")
        for box, pixels in (("90", people.images[i]), ("91", people.images[i][:, ::-1])):
            Image.fromarray(pixels).save(crops / f"{stem[:-2]}{box}.png")
    report = _evaluate(house, tmp_path / "out", "euclidean", multi_query="mean", crops=crops)
    straight, network = _feature_set(house, query), Embedding.from_pretrained(house.network)
    mirrored = embed_images(network, np.ascontiguousarray(people.images[query][:, :, ::-1]))
    pooled = straight.features + mirrored
    pooled[0] = straight.features[0]  # the first has no crop
    keys = list(zip(straight.pids.tolist(), straight.camids.tolist(), strict=True))
    assert len(set(keys)) == len(keys)  # one query a person and camera
    gallery = _feature_set(house, np.flatnonzero(people.splits == "gallery"))
    hand = FeatureSet(pooled, straight.pids, straight.camids, straight.names)
    expected = compare_methods(hand, gallery, methods=("euclidean",)).results["euclidean"]
    assert report.results["euclidean"].values.mAP_step == pytest.approx(expected.values.mAP_step, abs=1e-5)
    assert any("1 queries have no crop" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multi_query": "mean"}, "--multi-query and --crops"),
        ({"rank_lists": "kissme"}, "row for rank lists kissme: unknown: .*known: euclidean"),
        (
            {"rank_lists": "euclidean + query expansion", "expand": Expansion(2)},
            "lists of 'euclidean . query expansion' cannot be drawn: choose 'euclidean'",
        ),
        ({"feature_map": "pca"}, "feature map pca: unknown: .*known: tsne, umap"),
    ],
)
def test_wrong_options_fail_before_anything_is_extracted(house, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        _evaluate(house, tmp_path / "out", "euclidean", **options)
    assert not (tmp_path / "out").exists()


def test_a_report_without_rank_lists_says_why_and_keeps_none_of_an_earlier_one(house, tmp_path):
    drawn = _evaluate(house, tmp_path, "euclidean", expand=Expansion(2))
    assert list(tmp_path.glob("ranklist_*.png"))
    assert not any("rank lists" in note for note in drawn.notes)
    report = _evaluate(house, tmp_path, "euclidean", exclude_same_camera=False)
    told = "No rank lists are drawn: they follow Market-1501's rules, these scores do not."
    assert told in report.notes
    assert told in (tmp_path / "reidentification.md").read_text()
    assert not list(tmp_path.glob("ranklist_*.png"))


def _drawn_sets(seed: int = 0) -> dict[str, FeatureSet]:
    rng = np.random.default_rng(seed)

    def of(camera: int, count: int) -> FeatureSet:
        names = tuple(f"{camera}_{row}.jpg" for row in range(count))
        features = rng.normal(size=(count, 8)).astype(np.float32)
        return FeatureSet(features, np.arange(count) % 5 + 1, np.full(count, camera), names)

    return {"query": of(1, 10), "gallery": of(2, 20)}


def _pictures_of(out: Path) -> set[str]:
    return {path.name for path in out.glob("*.png")}


@pytest.fixture
def told_in_full(tmp_path):
    """A report with every picture: rank lists of all kinds and, as an earlier version drew it, two maps."""
    options = ReidOptions(methods=("euclidean",), feature_map="tsne")
    score_sets(_drawn_sets(), tmp_path, resolved(options, False), picture=_gray)
    lists = {f"ranklist_{kind}.png" for kind in ("best", "worst", "failed")}
    assert _pictures_of(tmp_path) == {"cmc.png", "map_tsne.png", *lists}
    write_output(tmp_path / "map_umap.png", b"an earlier map")
    return tmp_path


def _gray(_: str) -> np.ndarray:
    return np.zeros((16, 8, 3), np.uint8)


@pytest.mark.parametrize("picture", [_gray, None])
@pytest.mark.parametrize("feature_map", ["tsne", ""])
def test_a_report_has_its_own_pictures_beside_it_and_none_of_an_earlier_one(
    told_in_full, feature_map, picture
):
    options = ReidOptions(methods=("euclidean",), feature_map=feature_map)
    report = score_sets(_drawn_sets(1), told_in_full, resolved(options, False), picture=picture)
    assert _pictures_of(told_in_full) == set(report.pictures)
    assert ("ranklist_best.png" in report.pictures) == (picture is not None)
    assert ("map_tsne.png" in report.pictures) == bool(feature_map)


def test_means_over_splits_leave_no_picture_of_a_single_one(told_in_full):
    sets = _drawn_sets()
    for name in ("a", "b"):
        write_features(told_in_full / f"{name}.npz", sets)
    files = [told_in_full / "a.npz", told_in_full / "b.npz"]
    report = score_splits(files, told_in_full, ReidOptions(methods=("euclidean",)))
    assert _pictures_of(told_in_full) == set(report.pictures) == {"cmc.png"}


def test_a_picture_that_is_not_the_reports_own_stays(told_in_full):
    (told_in_full / "map_tsne.png").write_bytes(b"mine")  # changed since
    (told_in_full / "map_umap_large.png").write_bytes(b"mine")
    score_sets(_drawn_sets(), told_in_full, resolved(ReidOptions(methods=("euclidean",)), False))
    assert _pictures_of(told_in_full) == {"cmc.png", "map_tsne.png", "map_umap_large.png"}
    assert (told_in_full / "map_tsne.png").read_bytes() == b"mine"


def test_feature_files_need_query_and_gallery_once(house, tmp_path):
    sets = {"query": _feature_set(house, np.arange(3)), "gallry": _feature_set(house, np.arange(3))}
    write_features(tmp_path / "a.npz", sets)
    with pytest.raises(UserError, match="split gallry: unknown: did you mean gallery"):
        score_files([tmp_path / "a.npz"], None, ReidOptions())
    write_features(tmp_path / "a.npz", {"query": sets["query"]})
    with pytest.raises(UserError, match=r"no split gallery \(found: query\)"):
        score_files([tmp_path / "a.npz"], None, ReidOptions())
    with pytest.raises(UserError, match="a second set query"):
        score_files([tmp_path / "a.npz", tmp_path / "a.npz"], None, ReidOptions())


def test_maps_keep_neighborhoods():
    """Five tight groups stay groups: the nearest place of each point belongs to its own group."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(5), 12)
    features = (np.eye(16)[group] + 0.02 * rng.normal(size=(60, 16))).astype(np.float32)
    places = map_points(features, "tsne")
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(1)] == group).all()
    np.testing.assert_array_equal(places, map_points(features, "tsne"))
    labels = np.where(group == 4, 0, group + 1)  # distractors are left out
    picture = draw_map(FeatureSet(features, labels, labels, tuple(map(str, range(60)))), "tsne")
    assert picture.startswith(b"\x89PNG")
    with pytest.raises(UserError, match="a map of 3 features"):
        map_points(features[:3], "tsne")


def test_a_map_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("reposer.evaluation.plots.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"umap-learn, not installed here: pip install reposer\[maps\]"):
        map_points(np.ones((9, 4)), "umap")


def test_an_exported_network_gives_the_same_features(house, tmp_path):
    said = export_embedding(str(house.network), tmp_path / "e")
    assert "model.safetensors" in said
    a, b = (Embedding.from_pretrained(folder) for folder in (house.network, tmp_path / "e"))
    np.testing.assert_array_equal(*(embed_images(e, house.people.images[:4]) for e in (a, b)))
    assert verify_folder(tmp_path / "e") == ("exported Re-ID network, hash, names and shapes", [])
    data = bytearray((tmp_path / "e" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "e" / "model.safetensors").write_bytes(data)
    (fault,) = verify_folder(tmp_path / "e")[1]
    assert "differs from the sha256" in fault


@pytest.mark.parametrize("cameras", ["absent", "one", "unknown", "none"])
def test_a_feature_file_of_one_camera_is_scored_with_the_note(tmp_path, cameras):
    """Four people far apart, three images each: every query's person comes first, whatever the camera."""
    pids = np.repeat(np.arange(1, 5), 3)
    features = 10.0 * np.eye(4)[pids - 1] + np.random.default_rng(0).random((12, 4))
    split = np.where(np.arange(12) % 3 == 0, "query", "gallery")
    columns = {"features": features, "pid": pids, "split": split}
    if cameras != "absent":
        columns["camid"] = np.full(12, {"one": 1, "unknown": -1, "none": 0}[cameras])
    np.savez(tmp_path / "features.npz", **columns)
    told = CliRunner().invoke(app, ["reid", "score", str(tmp_path / "features.npz")])
    assert told.exit_code == 0, told.output
    assert "| euclidean | 100.00 [100.0, 100.0] |" in told.output
    assert "No camera is known: every image counts as a camera of its own." in told.output


def test_a_folder_of_one_camera_is_evaluated_with_the_note(house, tmp_path):
    people = house.people
    rows = chosen_rows(people)
    for number in (0, 5):
        cameras = np.full(len(people.camids), number)
        one = SimpleNamespace(images=people.images, pids=people.pids, camids=cameras, names=people.names)
        one.clothes = people.clothes
        network = Embedding.from_pretrained(house.network)
        sets = {name: extract_features(network, one, chosen) for name, chosen in rows.items()}
        write_features(tmp_path / f"{number}.npz", sets)
        report = score_sets(sets, tmp_path / "out", resolved(ReidOptions(methods=("euclidean",)), True))
        again = score_files([tmp_path / f"{number}.npz"], None, ReidOptions(methods=("euclidean",)))
        kept = compare_methods(
            sets["query"], sets["gallery"], methods=("euclidean",), exclude_same_camera=False
        )
        for told in (report, again):
            assert told.results["euclidean"].values == kept.results["euclidean"].values
            assert told.notes[0].startswith("No camera is known: every image counts as a camera of its own.")
