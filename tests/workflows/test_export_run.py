"""A run as a folder to share: it opens as what it is, its card says what it is for, a server gives it."""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import typer
import yaml
from huggingface_hub import HfApi
from tiny_training import TINY_SAN, tiny_config, write_prepared

from reposer.annotation import segmentation_model
from reposer.annotation.parser import open_parser
from reposer.cli import main as cli
from reposer.config import stored_hash
from reposer.data.parsing import LIP_LABELS
from reposer.errors import UserError
from reposer.evaluation.image_sets import ImageQualityReport, MetricInfo, MetricResult
from reposer.evaluation.map_quality import MapQualityReport
from reposer.evaluation.reid_comparison import compare_methods
from reposer.evaluation.reidentification import evaluate_reid
from reposer.generation.pose_transfer import PoseTransfer
from reposer.models.embedding import EmbeddingInfo
from reposer.runtime import setup
from reposer.storage import checkpoint
from reposer.storage.paths import CHECKPOINTS
from reposer.structures import FeatureSet
from reposer.trained.networks import EMBEDDING, GENERATOR, PARSER, PREDICTOR, GeneratorConfig, open_network
from reposer.training.gan.config import ScheduleConfig
from reposer.training.loop import train
from reposer.weights.downloads import DownloadError
from reposer.weights.network_folder import weights_hash
from reposer.workflows import export_run as sharing
from reposer.workflows import import_weights
from reposer.workflows.export_run import export_run, push_to_hub
from reposer.workflows.identity import OWN_POSE, REAL, write_identity

CARD = {"license_text": "research only", "trained_on": "drawn people"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    prepared = write_prepared(folder / "prepared")
    config = tiny_config(prepared, schedule=ScheduleConfig(epochs_const=0.25, epochs_decay=0))
    train(config, folder / "run", device="cpu")
    return folder / "run"


@pytest.fixture
def evaluation(tmp_path) -> Path:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    cell, column = MetricResult(0.1234, count=3), MetricInfo("mean absolute difference", "lower", "none")
    table = pa.table({"method": ["model"] * 3})
    quality = ImageQualityReport({"model": {"l1": cell}}, {"l1": column}, table, {"pairs": 3})
    quality.write(folder)
    MapQualityReport(quality, {"model": dict.fromkeys(LIP_LABELS) | {"dress": 0.4321}}).write(folder)
    query, gallery = people_of(1), people_of(3)
    report = compare_methods(query, gallery, methods=("cosine",))
    report.write(folder)
    results = {name: evaluate_reid(query, gallery) for name in (REAL, OWN_POSE)}
    write_identity(folder, results, EmbeddingInfo(embedding={"backbone": "small"}, trained_on="others"))
    return folder


def people_of(images: int) -> FeatureSet:
    """Images of 16 people, each of whom has one feature; three single images look like person 1."""
    pids = np.repeat(np.arange(1, 17), images)
    features = np.eye(17)[np.where((images == 1) & (pids > 13), 1, pids)]
    names = tuple(f"{images}_{row}.jpg" for row in range(len(pids)))
    return FeatureSet(features.astype(np.float32), pids, np.full(len(pids), images), names)


def test_an_export_opens_as_the_same_network_with_its_card(run, tmp_path, evaluation):
    said = export_run(run, tmp_path / "out", evaluations=[evaluation], **CARD)
    ours, theirs = PoseTransfer.from_pretrained(run), PoseTransfer.from_pretrained(tmp_path / "out")
    assert ours.weights_hash == theirs.weights_hash
    assert theirs.config.trained_on == "drawn people"
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        'license_name: "research only"',
        "Trained on: drawn people",
        "| model | 0.1234 (n = 3) |",
        "| dress | 0.432 |",
        "| real queries | 81.2% |",
        "| generated, own pose | 81.2% |",
        "| cosine | 81.25 [",
        "2 optimizer",
    ):
        assert part in card
    assert theirs.config.weights_sha256 in card
    assert ours.config.identity_hash in card
    digest = said.rpartition("sha256=")[2].strip()
    assert len(digest) == 64
    assert export_run(run, tmp_path / "out", **CARD)  # an export may be written again
    assert "None were given" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "CC BY-NC 4.0: research only #1",
            "a: b: c",
            "# all",
            "- item",
            "[a, b",
            "{a: b}",
            "*a",
            "&a b",
            "!!x",
        ),
        *(
            "'single",
            '"double',
            "back\\slash \\n \\x",
            "%tag",
            "@at",
            "`tick",
            "| block",
            "> folded",
            "? key",
        ),
        *("null", "true", "1.5", "2026-01-01", "~", "", " ", "---", "x\n---\nlicense: mit", "a\ttab\r\nb"),
        *(
            "\u884c\u4eba",
            "\U0001f600",
            "\u06cc\u200c\u0627",
            "\x1b[31m",
            "\x7f\x85\x9f",
            "\ufeff",
            "\u2028x",
        ),
        "x" * 5000,
    ],
)
def test_the_front_matter_of_a_card_is_what_was_said(run, tmp_path, text):
    export_run(run, tmp_path / "out", license_text=text, trained_on=text)
    _, front, _ = (tmp_path / "out" / "README.md").read_text("utf-8").split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "reposer",
        "license": "other",
        "license_name": " ".join(text.split()).rstrip("."),
        "tags": ["person-re-identification"],
    }
    PoseTransfer.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("text", ["\0", "a\udcff", "\ud800"])
@pytest.mark.parametrize("field", CARD)
def test_what_is_no_text_is_refused(run, tmp_path, field, text):
    with pytest.raises(UserError, match=r"--(license|trained-on) .*: is no text"):
        export_run(run, tmp_path / "out", **(CARD | {field: text}))
    assert not (tmp_path / "out").exists()


def test_half_the_size(run, tmp_path):
    export_run(run, tmp_path / "whole", **CARD)
    export_run(run, tmp_path / "half", half=True, **CARD)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert PoseTransfer.from_pretrained(tmp_path / "half").config.weights_dtype == "float16"


def test_what_is_no_run_and_no_evaluation_is_refused(run, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no run of a training"):
        export_run(tmp_path, tmp_path / "out", **CARD)
    with pytest.raises(UserError, match=r"holds no table of an evaluation: one of image_quality\.md"):
        export_run(run, tmp_path / "out", evaluations=[tmp_path], **CARD)
    with pytest.raises(UserError):
        export_run(run, run, **CARD)  # a run's own config.json is not overwritten
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "'rows' is missing"),
        ('{"rows": {}}', "'rows' is missing"),
        ('{"rows": [1]}', "holds a value of the wrong kind"),
        ('{"rows": {"a": {"rank1": 1}}}', "'mAP_step' is missing"),
        ('{"rows": {"a": {"mAP_step": 1}}}', "'rank1' is missing"),
        ('{"rows": {"a": {"values": {"rank1": 1, "mAP_step": 1}}}}', "'rank1' is missing"),
        ('{"rows": {"a": {"rank1": "1", "mAP_step": 1}}}', "holds a value of the wrong kind"),
        ('{"rows": {"a": {"rank1": 1, "mAP_step": null}}}', "holds a value of the wrong kind"),
        ('{"rows": {"a": 1}}', "holds a value of the wrong kind"),
    ],
)
def test_a_damaged_table_of_identities_is_one_line(run, tmp_path, content, told):
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(UserError, match=rf"identity\.json: {told}") as error:
        export_run(run, tmp_path / "out", evaluations=[tmp_path], **CARD)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(run, tmp_path, monkeypatch):
    """An export behind a local server: the folder, its address, the folder of weights."""
    monkeypatch.setenv("REPOSER_WEIGHTS", str(tmp_path / "weights"))
    said = export_run(run, tmp_path / "site" / "net", **CARD)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    mark = said.rpartition("#")[2].strip()
    yield tmp_path / "site" / "net", f"http://127.0.0.1:{server.server_port}/net/config.json#{mark}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_gives_the_network_and_later_no_server_is_needed(run, served):
    folder, address = served
    model = PoseTransfer.from_pretrained(address, setup("cpu", threads=1))
    assert model.weights_hash == PoseTransfer.from_pretrained(run).weights_hash
    shutil.rmtree(folder)
    assert PoseTransfer.from_pretrained(address).weights_hash == model.weights_hash


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_that_was_changed_on_the_server_is_refused(served, file, tmp_path):
    folder, address = served
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(bytes(data))
    with pytest.raises(DownloadError, match="has sha256"):
        PoseTransfer.from_pretrained(address)
    assert not list((tmp_path / "weights").rglob(file))


def test_an_address_without_its_hash_is_refused_before_anything_is_asked_for(served, tmp_path):
    _, address = served
    bare = address.partition("#")[0]
    for wrong in (bare, f"{bare}#sha256=12", address.replace("config.json", "model.safetensors")):
        with pytest.raises(UserError, match="no address of a network with its hash"):
            PoseTransfer.from_pretrained(wrong)
    assert not (tmp_path / "weights").exists()
    with pytest.raises(DownloadError):
        PoseTransfer.from_pretrained(address.replace("/net/", "/absent/"))


def test_the_command(run, tmp_path, capsys, monkeypatch):
    command = f"reposer export-run {run} --out {tmp_path / 'out'} --trained-on drawn --license".split()
    monkeypatch.setattr("sys.argv", [*command, "research only"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "once served: https://PLACE/config.json#sha256=" in capsys.readouterr().out
    assert torch.isfinite(next(PoseTransfer.from_pretrained(tmp_path / "out").generator.parameters())).all()


# ---- the command of a card

IN_A_RUN = {  # of each kind of training: its settings, and its group of tensors
    "generator": ({"generator": "san", "generator_args": TINY_SAN}, GENERATOR),
    "predictor": ({"predictor": "parsing_predictor", "predictor_args": {"width": 4}}, PREDICTOR),
    "parser": ({"parser": {}}, PARSER),
    "guided parser": ({"parser": {}, "guided": {"widths": [4, 4, 4, 4]}}, PARSER),
    "embedding": ({"embedding": {"backbone": "small"}}, EMBEDDING),
}


def exported(kind: str, folder: Path) -> Path:
    """The export of a run of that kind, of a network that learned nothing."""
    settings, of = IN_A_RUN[kind]
    settings = settings | {"data": {"folder": "people", "splits": ["train"]}}
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(settings))
    meta = {"identity_hash": "", "size": [32, 16], "config_hash": stored_hash(folder / "run" / "config.json")}
    info = of.info_of_run(settings, SimpleNamespace(meta=meta, step=1))
    tensors = {of.prefix + name: tensor for name, tensor in of.build(info).state_dict().items()}
    checkpoint.save(folder / "run" / CHECKPOINTS, 1, {of.group: tensors}, meta)
    export_run(folder / "run", folder / "out", **CARD)
    return folder / "out"


def command_of(card: Path) -> list[str]:
    """The words of the one command that a card shows, after ``reposer``."""
    (line,) = [line for line in card.read_text().split("\n") if line.startswith("    reposer ")]
    return shlex.split(line)[1:]


def parsed(words: list[str]) -> tuple[str, dict[str, object]]:
    """Path and parameters of a command line, as the real parser sees them; nothing is run."""
    command, path = typer.main.get_command(cli.app), []
    while hasattr(command, "commands"):
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    return " ".join(path), command.make_context(path[-1], list(words)).params


@pytest.mark.parametrize(
    ("kind", "command", "place"),
    [
        ("generator", "generate", "model"),
        ("predictor", "generate", "predictor"),
        ("parser", "export-parser", "run"),
        ("guided parser", "annotate", "parser"),
        ("embedding", "reid evaluate", "model"),
    ],
)
def test_a_card_shows_a_command_that_takes_the_export(tmp_path, kind, command, place, monkeypatch):
    out = exported(kind, tmp_path)
    path, given = parsed(command_of(out / "README.md"))
    assert (path, str(given[place])) == (command, "this folder")
    of = IN_A_RUN[kind][1]
    assert open_network(of, out).info.step == 1
    if kind == "parser":
        written = []
        monkeypatch.setattr(segmentation_model, "export_module", lambda *parts: written.append(parts))
        segmentation_model.export_parser(out, tmp_path / "my.onnx")
        assert weights_hash(written[0][0]) == open_network(of, out).weights_hash
    if kind == "guided parser":
        assert open_parser(out).info.sha256 == open_network(of, out).weights_hash


def test_the_card_of_imported_weights_shows_a_command_that_takes_them(tmp_path):
    origin = SimpleNamespace(non_commercial=False, license="none", project="theirs")
    config = GeneratorConfig(generator="patn", size=(128, 64))
    card = tmp_path / "README.md"
    card.write_text(import_weights._card(origin, SimpleNamespace(norm="batch"), "net.pth", "0", config))
    path, given = parsed(command_of(card))
    assert (path, given["model"]) == ("generate", "this folder")


# ---- on a hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for; ``server.committed``: path -> content."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, self.headers.get("authorization")))
        if self.server.refuses:
            self.reply({"error": "You don't have the rights to create a model"}, 403)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            here = f"http://127.0.0.1:{self.server.server_port}/me/net"
            self.reply({"url": here, "id": "me/net", "name": "me/net"})
        elif self.path == "/api/validate-yaml":  # of the card
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.reply(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply(
                {
                    "commitUrl": "https://huggingface.co/me/net/commit/1",
                    "commitOid": "1" * 40,
                    "success": True,
                }
            )
        else:
            self.reply({"error": self.path}, 404)

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("authorization")))
        if self.server.refuses:
            self.reply({"error": "Repository not found"}, 404)
        else:
            self.reply({"id": "me/net", "sha": "0" * 40, "siblings": []})

    def reply(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.made, server.committed, server.refuses = [], [], {}, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(sharing, "HfApi", partial(HfApi, endpoint=address, token="hf_secret"))
    yield server
    server.shutdown()
    server.server_close()


def test_an_export_is_sent_to_a_hub_whole_and_nothing_else(run, tmp_path, hub):
    out = tmp_path / "out"
    export_run(run, out, **CARD)
    (out / "notes.txt").write_text("mine")
    said = push_to_hub(out, "me/net", private=True)
    assert "hub:me/net" in said
    assert hub.committed.keys() == {"model.safetensors", "config.json", "README.md", "seal.json"}
    assert all(hub.committed[name] == (out / name).read_bytes() for name in hub.committed)
    assert hub.made[0].get("private") or hub.made[0].get("visibility") == "private"
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}


def test_what_a_hub_does_not_take_is_one_line(run, tmp_path, hub):
    out = tmp_path / "out"
    export_run(run, out, **CARD)
    for name in ("net", "me/net/more", "../net", "me/ne t"):
        with pytest.raises(UserError, match="OWNER/NAME"):
            push_to_hub(out, name)
    with pytest.raises(UserError):
        push_to_hub(run, "me/net")  # a run is no export
    hub.refuses = True
    with pytest.raises(UserError, match="me/net: the hub did not take it") as told:
        push_to_hub(out, "me/net")
    assert "\n" not in str(told.value)
    assert "hf_secret" not in str(told.value)
    hub.refuses = False
    (out / "README.md").write_text("another card")
    before = len(hub.asked)
    with pytest.raises(UserError, match=r"README\.md"):
        push_to_hub(out, "me/net")
    assert len(hub.asked) == before
    assert hub.committed == {}


@pytest.mark.parametrize("name", ["parser_rendered", "predictor_rendered", "transport_rendered"])
def test_an_export_of_any_kind_is_sent(tmp_path, hub, name):
    out = shutil.copytree(str(files("reposer.assets") / name), tmp_path / name)
    assert "hub:me/net" in push_to_hub(out, "me/net")
    assert hub.committed["model.safetensors"] == (Path(out) / "model.safetensors").read_bytes()
