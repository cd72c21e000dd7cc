"""The command line as its user meets it: exit codes, one-line errors, help without torch, small jobs."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from reposer.cli import main as cli
from reposer.cli.options import stepping
from reposer.generation.pictures import write_picture
from reposer.images import encode_png
from reposer.jobs.workers import LEASE, RayCluster
from reposer.workflows import verify as verification

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_every_verb_and_loads_no_torch():
    code = (
        "import sys; sys.argv = ['reposer', '--help']\n"
        "from reposer.cli import main as cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "render", "prepare", "train", "generate", "evaluate", "report", "verify", "study"):
        assert f"  {verb} " in done.stdout


OF_PAIRS = ["generate", "shipped", "--data", "d", "--pairs", "p.csv", "--out", "x"]
ONE = ["generate", "shipped", "--source", "a"]
OF_SETS = ["augment", "shipped", "--data", "d", "--out", "x"]
OF_MAPS = ["evaluate", "shipped-predictor", "--data", "d", "--out", "x"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *(
            ([*OF_PAIRS, option, "a"], f"generate of a list of pairs: has no use for {option}: leave")
            for option in ("--source", "--donor", "--target", "--source-parsing", "--donor-parsing")
        ),
        ([*OF_PAIRS, "--source", "a", "--target", "b"], "has no use for --source and --target: leave"),
        (
            ["generate", "shipped", "--source", "a", "--donor", "b", "--pairs", "p.csv", "--out", "x"],
            "generate of --source: has no use for --pairs",
        ),
        (
            ["generate", "shipped", "--source", "a", "--target", "b", "--donor-parsing", "c", "--out", "x"],
            "generate of a pose: has no use for --donor-parsing",
        ),
        (
            ["generate", "shipped", "--source", ".", "--donor", "b", "--source-parsing", "c", "--out", "x"],
            "generate of a folder: has no use for --source-parsing",
        ),
        *(
            ([*ONE, *rest, *given], f"generate of one {what}: has no use for {given[0]}: leave it out")
            for what, rest, each in (
                ("picture", ["--donor", "b", "--out", "x.png"], (["--jpeg"], ["--batch-size", "8"])),
                ("picture", ["--donor", "b", "--data", "d", "--out", "x.jpg"], (["--jpeg"],)),
                ("picture", ["--target", "canonical:front", "--out", "x.png"], (["--jpeg"],)),
                ("image", ["--target", "canonical:all", "--out", "x"], (["--batch-size", "8"],)),
            )
            for given in each
        ),
        *(
            ([*OF_MAPS, *given], f"evaluate of a predictor of label maps: has no use for {given[0]}: leave")
            for given in (
                *(
                    ["--metrics", "ssim"],
                    ["--weights", "w"],
                    ["--backgrounds", "donor"],
                    ["--sources", "1,4"],
                ),
                *(["--reid", "r"], ["--predictor", "m"], ["--keypoint-detector", "keypointrcnn"]),
                ["--accept-license"],
            )
        ),
        *(
            ([*words, *given], f"{given[0]} is of re-ranking: give --rerank too")
            for words in (
                ["reid", "score", "f.npz"],
                ["reid", "evaluate", "m", "--data", "d", "--out", "nothing/here"],
            )
            for given in (
                ["--k1", "5"],
                ["--k2", "1"],
                ["--lambda", "0"],
                ["--lambda", "0.9"],
                ["--variant", "fastreid"],
            )
        ),
        *(
            (
                ["evaluate", "shipped", "--data", "d", "--out", "x", option, text],
                f"{option} {text!r}: names nothing",
            )
            for option, text in (
                ("--backgrounds", ""),
                ("--backgrounds", ","),
                ("--backgrounds", " , "),
                ("--metrics", ","),
            )
        ),
        (["evaluate", "shipped", "--data", "d", "--out", "x", "--sources", ""], "--sources '': is no number"),
        (
            ["evaluate", "shipped", "--data", "d", "--out", "x", "--accept-license"],
            "no --keypoint-detector: has no use for --accept-license: leave it out",
        ),
        *(
            (
                [*OF_SETS, *given, "--accept-license"],
                "no --parser: has no use for --accept-license: leave it out",
            )
            for given in ([], ["--filter", "sharpness"], ["--filter", "identity", "--reid", "r"])
        ),
        *(
            ([*OF_SETS, "--budget-seed", "5", *given], "has no use for --budget-seed: leave it out")
            for given in ([], ["--budget", "1"])
        ),
        *(
            (
                [*OF_SETS, "--filter", chosen, "--filter", f"{name}_quantile={share}"],
                f"--filter {name}_quantile: the filter {name} is not chosen: add --filter {name}",
            )
            for chosen, name, share in (
                ("sharpness", "pose", 0.3),
                ("sharpness", "pose", 0.05),
                ("sharpness", "identity", 0.9),
                ("sharpness", "margin", 0.2),
                ("identity", "sharpness", 0.2),
            )
        ),
        *(
            (["study", name, "--data", "d", "--out", "x", "--accept-license"], "no use for --accept-license")
            for name in ("ablations", "paper_table")
        ),
        (
            ["study", "augmentation", "--data", "d", "--out", "x", "--accept-license"],
            "--accept-license: no parser is named: add --parser, or leave it out",
        ),
        (["study", "No.JSON", "--data", "d", "--out", "x"], "No.JSON: cannot be read"),
        (["study", "augmentation", "--data", "d", "--out", "x", "--arms", ","], "--arms ',': names nothing"),
        (["reid", "score", "f.npz", "--methods", ","], "--methods ',': names nothing"),
        (["report", "/nowhere"], "no such folder"),
        (["verify", "/nowhere"], "no such folder"),
        (["train", "san_markt", "--data", "/nowhere", "--out", "/nowhere"], "did you mean san_market"),
        (["train", "san_demo", "--data", "x", "--out", "y", "--set", "optimizer.lrr=1"], "optimizer.lr"),
        (["render", "out", "--size", "128"], "HEIGHTxWIDTH"),
        (["prepare", "market1501", "/nowhere", "--out", "x"], "/nowhere"),
        (["generate", "shipped", "--out", "x"], "--source and one of --donor and --target"),
        (["study", "augmentatio", "--data", "/nowhere", "--out", "x"], "did you mean augmentation"),
        (["study", "augmentation", "--data", "/nowhere", "--out", "x"], "/nowhere"),
        (["study", "augmentation", "--data", "/nowhere", "--out", "x", "--arms", "x9"], "arm x9: unknown"),
        (["study", "ablations", "--data", "/nowhere", "--out", "x", "--arms", "x9"], "row x9: unknown"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_1(run, arguments, words):
    code, _, err = run(*arguments)
    assert code == 1
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["augment", "annotate", "study"])
def test_options_of_many_workers_are_refused_where_one_works(verb, run, tmp_path):
    (tmp_path / "f").mkdir()
    line = {
        "augment": ("augment", "shipped", "--data", tmp_path, "--out", tmp_path / "o"),
        "annotate": ("annotate", tmp_path / "f"),
        "study": ("study", "augmentation", "--data", tmp_path, "--out", tmp_path / "o"),
    }[verb]
    cases = [
        ((option, value), option) for option, value in (("--cpus", 8), ("--gpus", 0.5), ("--address", "x:1"))
    ]
    others = [((), "--lease", 5), ((), "--shard", "3/7"), (("--step", "plan"), "--shard", "3/7")]
    others += [(("--step", "finish"), "--shard", "0/1"), (("--engine", "ray"), "--shard", "0/1")]
    cases += [] if verb == "study" else [((*step, option, value), option) for step, option, value in others]
    for given, option in cases:
        code, _, err = run(*line, *given)
        assert (code, err.count("\n")) == (1, 1), (given, err)
        assert err.startswith(f"error: {option} {given[-1]}: is for "), (given, err)
        assert f"or leave {option} out" in err


def test_options_of_many_workers_are_taken_where_many_work():
    for step in ("plan", "work", "finish"):
        assert stepping(step=step, lease=5.0).lease == 5
    assert stepping(step="work", shard="3/7").shard == (3, 7)
    ray = stepping(engine="ray", lease=5.0, cpus=8.0, gpus=2.0, address="x:1")
    assert (ray.lease, ray.engine) == (5, RayCluster("x:1", 8.0, 2.0))
    assert stepping().lease == LEASE


def test_wrong_usage_is_exit_code_2(run):
    assert run("trainn")[0] == 2
    assert run("train", "san_demo", "--nope")[0] == 2


def test_interruption_is_exit_code_130(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("reposer.report.write_report", interrupted)
    assert run("report", "x")[0] == 130


def test_the_old_spelling_of_an_option_is_understood(run, tmp_path):
    code, _, shown = run("annotate", str(tmp_path / "none"), "--accept-licence")
    assert code == 1  # no such folder; an unknown option would be 2
    assert "accept" not in shown


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reposer", "report", "/nowhere", "--debug"])
    with pytest.raises(Exception, match="no such folder"):
        cli.main()


def test_one_picture_from_two_files(run, tmp_path):
    """The shipped generator re-poses a rendered person; the picture has the source's own size."""
    assert run("render", tmp_path / "p", "--identities", 2, "--test-identities", 1, "--images", 2)[0] == 0
    first, second = sorted((tmp_path / "p" / "bounding_box_train").glob("*.jpg"))[:2]
    out = tmp_path / "out.png"
    code, said, _ = run("generate", "shipped", "--source", first, "--donor", second, "--out", out)
    assert code == 0
    assert str(out) in said
    picture = np.asarray(Image.open(out))
    assert picture.shape == (128, 64, 3)
    assert picture.std() > 5


def test_verify_finds_a_changed_file(run, tmp_path):
    run("render", tmp_path / "p", "--identities", 2, "--test-identities", 1, "--images", 3)
    assert run("prepare", "market1501", tmp_path / "p", "--out", tmp_path / "d", "--holdout", 1)[0] == 0
    code, said, _ = run("verify", tmp_path / "d")
    assert (code, "nothing is wrong" in said) == (0, True)
    images = tmp_path / "d" / "packed" / "images.npy"
    data = bytearray(images.read_bytes())
    data[-1] ^= 1
    images.write_bytes(data)
    code, _, err = run("verify", tmp_path / "d")
    assert code == 1
    assert "images.npy" in err or "1 faults" in err


def test_verify_prints_no_control_characters(run, tmp_path, monkeypatch):
    """A name that would rewrite the terminal, and one that is no UTF-8, are escaped; no fault is lost."""
    names = ["a\x1b[2Jb.png", "line\nbreak.png", os.fsdecode(b"\xff.png"), "\u202etxt.png"]
    faults = [f"{name}: differs from its sha256" for name in names]
    monkeypatch.setattr(verification, "verify_folder", lambda folder: ("generated pictures", faults))
    code, said, err = run("verify", tmp_path)
    assert (code, "4 faults" in err) == (1, True)
    assert said.splitlines() == [
        f"{shown}: differs from its sha256"
        for shown in (r"a\x1b[2Jb.png", r"line\nbreak.png", r"\xff.png", r"\u202etxt.png")
    ]
    said.encode("ascii")


@pytest.mark.parametrize("verb", ["verify", "report", "info", "study", "generate", "augment", "forget"])
@pytest.mark.parametrize("name", ["nope\x1b[31m", "\u202etxt", "a\x9bb", "\x07", os.fsdecode(b"\xff\x1b[2J")])
def test_no_message_colors_or_clears_the_terminal(run, tmp_path, verb, name):
    code, said, err = run(verb, tmp_path / name)
    assert code
    assert not {c for c in said + err if not c.isprintable()} - {"\n"}
    (tmp_path / name).mkdir()
    code, said, err = run(verb, tmp_path / name)
    assert code
    assert not {c for c in said + err if not c.isprintable()} - {"\n"}


def test_reid_verbs_from_features_to_a_page(run, tmp_path):
    """Two people, two cameras, planted: the table, the files and the page of `reid score`."""
    rng = np.random.default_rng(0)
    pid = np.tile([1, 2], 20)
    np.savez(
        tmp_path / "f.npz",
        features=(np.eye(6)[pid] + 0.05 * rng.normal(size=(40, 6))).astype(np.float32),
        pid=pid,
        camid=np.repeat([1, 2], 20),
        split=np.where(np.arange(40) < 6, "query", "gallery"),
    )
    out = tmp_path / "out"
    code, said, _ = run("reid", "score", tmp_path / "f.npz", "--rerank", "--k1", 4, "--k2", 2, "--out", out)
    assert code == 0
    assert "| euclidean | 100.00" in said
    assert "| euclidean + re-ranking | 100.00" in said
    assert "6 queries of 2 people, 6 with a valid match" in said
    assert "k1 = 4, k2 = 2, lambda = 0.3" in said
    assert run("report", out)[0] == 0
    shots = ("--protocol", "single_shot", "--trials", 3, "--roc", "--expand", 1, "--methods", "cosine")
    code, said, _ = run("reid", "score", tmp_path / "f.npz", *shots, "--out", tmp_path / "shots")
    assert code == 0
    assert all(words in said for words in ("Single-shot", "mean over 3 trials", "query expansion", "EER"))
    assert "rank20" in (tmp_path / "shots" / "reidentification.json").read_text()
    plain = ("--raw", "--no-match", "zero", "--keep-same-camera", "--methods", "cosine")
    code, said, _ = run("reid", "score", tmp_path / "f.npz", *plain)
    assert code == 0
    assert all(words in said for words in ("features as they are", "counted as 0", "kept (not the published"))
    both = (tmp_path / "f.npz", tmp_path / "f.npz", "--each-file", "--methods", "cosine")
    assert "Means over 2 files" in run("reid", "score", *both, "--out", tmp_path / "each")[1]
    for outside in (("--expand", -1), ("--alpha", "nan"), ("--folds", 0), ("--seed", -1), ("--trials", 0)):
        code, _, err = run("reid", "score", tmp_path / "f.npz", *outside)
        assert (code, outside[0] in err) == (2, True), (outside, err)
    for wrong in (
        ("--trials", 3),
        ("--variant", "fastreid"),
        ("--no-match", "half"),
        ("--protocol", "sysu"),
        ("--train-people", 1),
    ):
        code, _, err = run("reid", "score", tmp_path / "f.npz", *wrong)
        assert (code, len(err.strip().splitlines())) == (1, 1), (wrong, err)
    assert "Re-identification" in (out / "report.html").read_text()
    code, _, err = run("reid", "score", tmp_path / "f.npz", "--methods", "xqda")
    assert (code, "learned distances need features of training people" in err) == (1, True)
    code, _, err = run("reid", "train", "reid_smal", "--data", "x", "--out", "y")
    assert (code, "did you mean reid_small" in err) == (1, True)
    code, _, err = run("reid", "evaluate", tmp_path / "no", "--data", tmp_path, "--out", out)
    assert (code, err.count("\n")) == (1, 1)


def test_a_shell_completes_commands_and_options():
    """As bash asks: the script that `reposer --show-completion bash` prints calls the program like this."""
    for words, wanted in (
        ("reposer ann", "annotate"),
        ("reposer reid ev", "evaluate"),
        ("reposer serve --po", "--port"),
    ):
        asked = {
            "_REPOSER_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = subprocess.run(
            [sys.executable, "-m", "reposer"],
            env=os.environ | asked,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert wanted in done.stdout.split(), done.stderr


def test_windows_is_refused_in_a_sentence(run, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    code, _, err = run("--help")
    assert (code, err.count("\n"), "WSL 2" in err) == (1, 1, True)


# ---- every option that a text names is one


def _commands() -> dict[str, set[str]]:
    """ "reid evaluate" -> its options, of every command."""
    found: dict[str, set[str]] = {}

    def walk(command, name: str) -> None:
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}
        found[name] = options | {"--help", "--debug"}
        for verb, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {verb}".strip())

    walk(typer.main.get_command(cli.app), "")
    return found


@functools.cache
def _texts() -> dict[str, str]:
    """What users read: the pages, and every string of the source."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = {str(page.relative_to(ROOT)): page.read_text() for page in pages}
    for file in sorted((ROOT / "src").rglob("*.py")):
        nodes = ast.walk(ast.parse(file.read_text()))
        strings = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        texts[str(file.relative_to(ROOT))] = "\n".join(strings)
    return texts


OTHERS = {  # options of OpenPose, git, torchrun, sha256sum, pip, SLURM and Ray that the texts name
    *("--keypoint_scale", "--error-unmatch", "--porcelain", "--nproc-per-node", "--check"),
    *("--no-deps", "--require-hashes", "--only-binary", "--platform", "--python-version"),
    *("--implementation", "--abi", "--no-cache-dir", "--no-input", "--progress-bar"),
    *("--disable-pip-version-check", "--timeout", "--retries", "--dest", "--hash"),
    *("--partition", "--time", "--mem", "--requeue", "--me", "--parsable", "--wrap", "--job-name"),
    *("--dependency", "--kill-on-invalid-dep", "--head"),
    *("--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf", "--max-restarts"),
}


def test_every_option_that_a_page_or_a_message_names_exists():
    known = set().union(*_commands().values()) | OTHERS | set(cli.OLD_SPELLINGS)
    for script in (ROOT / "benchmarks").rglob("*.py"):
        known |= set(re.findall(r"add_argument\(\s*\"(--[a-z][\w-]*)", script.read_text()))
    wrong = [
        f"{place}: {option}"
        for place, text in _texts().items()
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)
        if option not in known
    ]
    assert not wrong


def test_every_command_line_that_a_page_or_a_message_shows_takes_its_options():
    commands = _commands()
    wrong, seen = [], 0
    for place, text in _texts().items():
        for line in re.findall(r"(?:^ {4}|`|-m )reposer ([a-z][^`\n]*)", text, re.MULTILINE):
            words = line.split("#")[0].rstrip(" .,;:").split()
            verb = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in commands), None)
            if verb == "prepare":  # prepare LAYOUT, whichever
                assert words[1:2] in ([], ["LAYOUT"])
                verb = "prepare folder"
            if verb is None:
                wrong.append(f"{place}: reposer {line}")
                continue
            seen += 1
            options = re.findall(r"(?<![\w-])--[a-z][\w-]*", " ".join(words))
            if verb == "slurm":  # takes the words of another command
                verb, options = words[1], [o for o in options if o not in commands["slurm"]]
            wrong += [f"{place}: reposer {verb} {o}" for o in options if o not in commands[verb]]
    assert not wrong
    assert seen > 50


def test_an_output_over_an_input_is_refused_before_the_network_is_opened(run, tmp_path, monkeypatch):
    """The same file by another name, and the folder that holds it; a generated picture is an input too."""
    from reposer.generation import pose_transfer

    def opened(*args, **kwargs):
        raise AssertionError("the network was opened")

    monkeypatch.setattr(pose_transfer.PoseTransfer, "from_pretrained", opened)
    photos, model = tmp_path / "photos", tmp_path / "model"
    photos.mkdir()
    model.mkdir()
    write_picture(photos / "a.png", np.zeros((8, 4, 3), np.uint8))
    write_picture(photos / "b.png", np.full((8, 4, 3), 9, np.uint8))
    (tmp_path / "other.png").hardlink_to(photos / "a.png")
    (tmp_path / "way").symlink_to(photos)
    before = {path: path.read_bytes() for path in photos.iterdir()}
    one = ("generate", model, "--source", photos / "a.png", "--donor", photos / "b.png", "--out")
    many = ("generate", model, "--source", photos, "--donor", photos / "b.png", "--out")
    cases = [
        *((*one, out) for out in (photos / "a.png", photos / "b.png", tmp_path / "other.png")),
        *((*many, out) for out in (photos, tmp_path / "way", tmp_path, model)),
        ("evaluate", model, "--data", photos, "--out", photos),
        ("evaluate", model, "--data", photos, "--out", model),
        ("augment", model, "--data", photos, "--out", tmp_path, "--real", "none"),
        ("reid", "evaluate", model, "--data", photos, "--out", tmp_path / "way"),
        ("reid", "score", photos / "a.png", "--out", photos),
        ("reid", "export", model, "--out", model),
        ("export-set", photos, "--out", tmp_path),
    ]
    for arguments in cases:
        code, _, error = run(*arguments)
        assert code == 1, arguments
        assert "which this command reads: choose another --out" in error, (arguments, error)
    assert {path: path.read_bytes() for path in photos.iterdir()} == before


_NAMES = ["", "=", "none=", "schp_lip=", "schp_lip=/nowhere", "a=b=c", "x\ny", "none\n", "\x1b[31m", "../.."]
_NAMES += ["/dev/zero", "/dev/zero.onnx", "/proc/self/mem", "x" * 5000, "NONE", "openpose:", "openpose:a\nb"]
_NAMES += ["colon:/dev/zero", "alphapose:/nowhere", "maskrcnn=/dev/null", "\u00e9\udcff", "hub:a/b"]


@pytest.mark.parametrize("option", ["parser", "keypoints", "mask", "detect"])
def test_a_name_that_annotates_nothing_is_one_line(option, run, tmp_path):
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((16, 8, 3), np.uint8)))
    for name in _NAMES:
        if option == "mask" and name == "../..":
            continue  # a folder
        given = {"parser": "none", "keypoints": "none", "mask": "none"} | {option: name}
        code, _, error = run("annotate", tmp_path, *(x for key in given for x in (f"--{key}", given[key])))
        assert code == 1, name
        assert "fault of ours" not in error, name
        assert error.count("\n") == 1, name
        assert len(error) < 600, name
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
