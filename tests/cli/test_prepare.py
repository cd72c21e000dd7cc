"""`reposer prepare` of every layout by the command line, and the ways on from folders of other layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from reposer.data.keypoints import read_keypoints_csv, write_keypoints_csv
from reposer.data.packed import PackedPeople
from reposer.evaluation.reidentification import evaluate_reid
from reposer.images import encode_png
from reposer.reid.features import extract_features
from reposer.rendered.dataset import write_rendered_dataset
from reposer.trained.networks import EMBEDDING, of_run

COMMANDS = ("market1501", "dukemtmc", "cuhk03", "msmt17", "viper", "folder", "table", "deepfashion")
RNG = np.random.default_rng(0)


@pytest.fixture
def done(run):
    """Run, insist on success, give what was printed."""

    def _done(*arguments):
        code, said, err = run(*arguments)
        assert code == 0, err
        return said

    return _done


@pytest.mark.parametrize("command", COMMANDS)
def test_every_layout_has_one_page_of_help(done, command: str):
    said = done("prepare", command, "--help")
    for words in ("--out", "--size", "--fit", "--parsing", "--mask", "--keypoints", "--mask-source"):
        assert words in said
    assert said.count("\n") < 60
    assert ("--holdout" in said) == (command != "deepfashion")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["viper", "/nowhere"], "/nowhere: no such folder"),
        (["folder", "ROOT", "--fit", "stretch"], "fit stretch: unknown"),
        (["folder", "ROOT", "--mask-source", "sky"], "mask source sky: unknown"),
        (["folder", "ROOT", "--pairs", "all"], "pairs all: unknown"),
        (["folder", "ROOT", "--size", "128"], "HEIGHTxWIDTH"),
        (["folder", "ROOT", "--identity", "("], "no regular expression"),
        (["folder", "ROOT", "--labels", "/nowhere.csv"], "no such file"),
        (["table", "ROOT", "--table", "/nowhere.csv"], "no such file"),
        (["cuhk03", "ROOT", "--protocol", "newest"], "use detected or labeled, new or classic"),
        (["cuhk03", "ROOT", "--split", "3"], "cuhk03 --protocol new: has no use for --split: leave"),
        (["cuhk03", "ROOT", "--protocol", "folders", "--split", "3"], "has no use for --split"),
        (["cuhk03", "ROOT", "--protocol", "folders", "--boxes", "labeled"], "has no use for --boxes"),
        *(
            (
                ["folder", "ROOT", "--mask-source", "parsing", *given],
                f"has no use for {given[0]}: leave it out",
            )
            for given in (["--soft-masks"], ["--inverted-masks"])
        ),
        (["cuhk03", "ROOT"], "cuhk03_new_protocol_config_detected.mat: no such file"),
        (["msmt17", "ROOT"], "holds no folder train or mask_train_v2"),
        (["dukemtmc", "ROOT"], "holds none of bounding_box_train"),
        (["deepfashion", "ROOT"], "neither train.lst nor test.lst"),
    ],
)
def test_what_the_user_can_mend_is_one_line(run, tmp_path: Path, arguments: list[str], words: str):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.txt").write_text("no image")
    arguments = [str(tmp_path / "root") if a == "ROOT" else a for a in arguments]
    code, _, err = run("prepare", *arguments, "--out", tmp_path / "out")
    assert code == 1
    assert words in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_the_layouts_of_data_sets(done, tmp_path: Path):
    """A tiny data set of each layout through its command; the readers' tests say what is read."""
    picture = encode_png(RNG.integers(0, 256, (32, 16, 3), np.uint8))
    sets = {
        "dukemtmc": ["bounding_box_train/0001_c2_f0046182.png", "query/0002_c1_f0044158.png"],
        "viper": ["cam_a/000_0.png", "cam_b/000_90.png", "cam_a/001_0.png", "cam_b/001_90.png"],
        "cuhk03": ["bounding_box_train/0001_c1_1.png", "query/0003_c1_21.png"],
        "table": ["a/1.png", "b.png"],
    }
    more = {"cuhk03": ["--protocol", "folders"], "table": ["--table", tmp_path / "t.csv"]}
    (tmp_path / "t.csv").write_text("path,pid,camid,split\na/1.png,1,1,train\nb.png,2,1,gallery\n")
    for layout, paths in sets.items():
        for path in paths:
            (tmp_path / layout / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / layout / path).write_bytes(picture)
        out = tmp_path / f"{layout}_out"
        said = done("prepare", layout, tmp_path / layout, "--out", out, *more.get(layout, ()))
        assert " training " in said
        assert len(PackedPeople.open(out / "packed")) == len(paths)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered") / "people"
    write_rendered_dataset(root, identities=4, test_identities=1, images_per_identity=4, workers=1)
    return root


def rearranged(rendered: Path, root: Path, name: str) -> list[str]:
    """The training people as ``name`` calls them, by person and number, annotations mirrored beside them."""
    poses, _ = read_keypoints_csv(rendered / "keypoints.csv")
    renamed = {}
    files = sorted((rendered / "bounding_box_train").iterdir())
    for number, file in enumerate(files):
        path = name.format(person="abcd"[int(file.name[:4]) - 1], number=number)
        for source, target in (
            (file, root / f"{path}.jpg"),
            (rendered / "parsing" / f"{file.stem}.png", root / "parsing" / f"{path}.png"),
            (rendered / "mask" / f"{file.stem}.png", root / "mask" / f"{path}.png"),
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        renamed[f"{path}.jpg"] = poses[file.name]
    write_keypoints_csv(root / "keypoints.csv", renamed)
    return list(renamed)


SHORT = ("--set", "schedule.epochs_const=0.0005", "--set", "schedule.epochs_decay=0", "--threads", "1")
SHORT += ("--set", "output.sample_pairs=1", "--set", "output.validate_pairs=1")


@pytest.mark.slow
def test_from_a_folder_of_people_without_cameras_to_reid(done, rendered: Path, tmp_path: Path):
    root, data, model, reid = (tmp_path / n for n in ("root", "data", "san", "reid"))
    rearranged(rendered, root, "{person}/{number:02d}")
    said = done("prepare", "folder", root, "--out", data, "--holdout", 1, "--pairs", "parsing")
    assert "parsing maps  16 of 16 images" in said
    assert "cameras       unknown" in said
    assert "36 for training, 12 for validation" in said
    few = ("--set", "batch_size=2", "--set", "weights.perceptual=0")
    assert "step 1 of 1" in done("train", "san_market_small", "--data", data, "--out", model, *few, *SHORT)
    out = tmp_path / "generated"
    done("generate", model, "--data", data, "--pairs", data / "pairs_val.csv", "--out", out)
    assert len(list((out / "images").iterdir())) == 12
    short = ("--set", "data.images_per_epoch=16", "--set", "schedule.epochs=1", "--set", "batch_size=8")
    done("train", "reid_demo", "--data", data, "--out", reid, "--threads", 1, *short)
    people = PackedPeople.open(data / "packed")
    embedding = of_run(EMBEDDING, reid).network
    held_out = np.flatnonzero(people.splits == "val")
    others = np.flatnonzero(people.splits == "train")[:4]
    query = extract_features(embedding, people, held_out[:1])
    gallery = extract_features(embedding, people, np.concatenate([held_out[1:], others]))
    result = evaluate_reid(query, gallery)
    assert result.counts["valid_matches"] == 3


def test_people_whom_nobody_knows_are_re_posed(done, rendered: Path, tmp_path: Path):
    root, data, out = tmp_path / "root", tmp_path / "data", tmp_path / "generated"
    names = rearranged(rendered, root, "photo{number}")
    said = done("prepare", "folder", root, "--out", data, "--anonymous")
    assert "identities    unknown" in said
    assert "0 for training" in said
    packed = PackedPeople.open(data / "packed").names
    assert len(set(PackedPeople.open(data / "packed").pids.tolist())) == len(names)
    (tmp_path / "pairs.csv").write_text(f"from,to\n{packed[0]},{packed[5]}\n")
    done("generate", "shipped", "--data", data, "--pairs", tmp_path / "pairs.csv", "--out", out)
    assert len(list((out / "images").iterdir())) == 1
    donor = root / names[3]
    done("generate", "shipped", "--source", root, "--donor", donor, "--out", tmp_path / "folder")
    assert len(list((tmp_path / "folder" / "images").iterdir())) == len(names)


@pytest.mark.slow
def test_san_deepfashion_trains_on_a_small_in_shop_folder(done, tmp_path: Path):
    """Rendered people at 256x256 under In-shop names: prepare, a step of the paper's preset, generate."""
    rendered, root, data, model = (tmp_path / n for n in ("rendered", "root", "data", "san"))
    write_rendered_dataset(
        rendered,
        identities=2,
        test_identities=1,
        images_per_identity=3,
        size=(256, 256),
        samples=1,
        workers=1,
    )
    poses, _ = read_keypoints_csv(rendered / "keypoints.csv")
    lists: dict[str, list[str]] = {"train": [], "test": []}
    rows: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    views = ("1_front", "2_side", "3_back")
    files = sorted(rendered.glob("*/*.jpg"), key=lambda file: file.name)
    for number, file in enumerate(files):
        kind = "train" if file.parent.name == "bounding_box_train" else "test"
        path = f"WOMEN/Blouses_Shirts/id_{int(file.name[:4]):08d}/01_{views[number % 3]}"
        (root / "img" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / "img" / f"{path}.jpg")
        flat = f"fashion{path.replace('id_', 'id').replace('/', '')}"
        flat = f"{flat[: -len(views[number % 3])]}{views[number % 3].replace('_', '')}"
        lists[kind].append(f"{flat}.jpg")
        rows[kind][f"{flat}.jpg"] = np.nan_to_num(poses[file.name], nan=20)  # nobody lacks a joint
        for what in ("parsing", "mask"):
            (root / what).mkdir(exist_ok=True)
            shutil.copy(rendered / what / f"{file.stem}.png", root / what / f"{flat}.png")
    for kind, names in lists.items():
        (root / f"{kind}.lst").write_text("\n".join(names))
        write_keypoints_csv(root / f"fasion-annotation-{kind}.csv", rows[kind])
    said = done("prepare", "deepfashion", root, "--out", data)
    assert "6 for validation" in said
    assert "12 for training" in said
    assert "0 of 1 test items" in said
    people = PackedPeople.open(data / "packed")
    assert people.size == (256, 256)
    narrow = ("ngf=4", "blocks=1", "deep_channels=[8,8,8]")
    sets = [f"generator_args.{value}" for value in narrow]
    sets += ['discriminator_args={"ndf":4}', "weights.perceptual=0", "batch_size=2"]
    options = [word for value in sets for word in ("--set", value)]
    said = done("train", "san_deepfashion", "--data", data, "--out", model, *options, *SHORT)
    assert "step 1 of 1" in said
    out = tmp_path / "generated"
    done("generate", model, "--data", data, "--pairs", data / "pairs_val.csv", "--out", out)
    assert len(list((out / "images").iterdir())) == 6


def test_masks_among_the_images_are_none_whatever_masks_are_made_of(run, tmp_path: Path):
    for path in ("1_a.jpg", "2_a.jpg", "drawn/1_a.png", "drawn/2_a.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"not decoded")
    line = ("prepare", "folder", str(tmp_path), "--identity", "([0-9]+)_", "--mask", str(tmp_path / "drawn"))
    code, out, _ = run(*line, "--mask-source", "parsing", "--dry-run")
    assert (code, "training          2 images" in out) == (0, True)


def test_a_dry_run_says_and_writes_nothing(run, tmp_path: Path):
    root = tmp_path / "root"
    for path in ("train/anna/1_c1.jpg", "train/bert/1_c2.jpg", "masks/x.png", "train/notes.txt"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"not decoded")
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run("prepare", "folder", str(root), "--dry-run")
    assert code == 0
    assert "a dry run; no file was decoded" in out
    assert "training          2 images      2 people   2 cameras" in out
    assert "unread-folder: masks" in out
    assert "unread-file: train/notes.txt" in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", ["prepare", "render"])
def test_the_same_command_again_deletes_nothing_of_the_users(run, done, tmp_path: Path, verb: str):
    """Runs, labels and notes that somebody put into the folder are named, and everything stays."""
    few = ("--identities", 2, "--test-identities", 1, "--images", 3)
    made = {"render": tmp_path / "raw", "prepare": tmp_path / "prepared"}
    commands = {
        "render": ("render", made["render"], *few),
        "prepare": ("prepare", "market1501", made["render"], "--out", made["prepare"], "--holdout", 1),
    }
    for command in ("render", "prepare"):
        done(*commands[command])
    done(*commands[verb])  # into its own output: possible
    folder = made[verb]
    mine = ("notes.txt", "runs/a/config.json", {"prepare": "packed/my.npy", "render": "parsing/my.png"}[verb])
    for name in mine:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, _, err = run(*commands[verb])
    assert (code, err.count("\n")) == (1, 1)
    assert all(name.removesuffix("/a/config.json") in err for name in mine), err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    for name in mine:
        (folder / name).unlink()
    (folder / "link").symlink_to(tmp_path)
    code, _, err = run(*commands[verb])
    assert (code, "link" in err) == (1, True)
    assert (folder / "link").is_symlink()
