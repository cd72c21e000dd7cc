"""A run as a folder to share, here or on a hub: weights, configuration, and a card of what it is for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from reposer.config import Config, foreign_values, read_json
from reposer.errors import UserError
from reposer.evaluation import image_sets, map_quality, reid_comparison
from reposer.storage.files import sha256_file
from reposer.storage.outputs import SEAL, seal_faults
from reposer.storage.paths import contained, printable, read_regular
from reposer.trained.networks import (
    EMBEDDING,
    GENERATOR,
    PARSER,
    PREDICTOR,
    Kind,
    deviations,
    load_exported,
    of_run,
)
from reposer.weights.network_folder import CARD, CONFIG, WEIGHTS, save_network
from reposer.workflows.identity import IDENTITY, identity_table

_KINDS: tuple[tuple[Kind[Any, Any], str, str], ...] = (  # by the setting that such runs alone have
    (
        GENERATOR,
        "a person image in another pose",
        'generate "this folder" --source PERSON.jpg --donor DONOR.jpg --out NEW.png',
    ),
    (
        PREDICTOR,
        "label maps of a person in another pose",
        'generate MODEL --predictor "this folder" --source PEOPLE --target canonical:front --out NEW',
    ),
    (PARSER, "a parser of person images", 'annotate IMAGES --parser "this folder"'),
    (EMBEDDING, "an embedding of person images", 'reid evaluate "this folder" --data PREPARED --out SCORES'),
)
_OF_IMAGES_ALONE = 'export-parser "this folder" PARSER.onnx'  # a parser that `annotate` reads as this file
FIGURES = (  # tables that evaluations write
    *(image_sets.TABLE_FILE, map_quality.TABLE_FILE),
    *(IDENTITY, reid_comparison.TABLE_FILE),
)
_MOST_BYTES = 200_000


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    license_text: str,
    trained_on: str,
    evaluations: Sequence[Path] = (),
    half: bool = False,
) -> str:
    """Write model.safetensors, config.json and README.md of the newest good checkpoint of a run.

    Args:
        run: folder of a training of a generator, predictor, parser or Re-ID network.
        out: new, or an earlier export.
        license_text: what others may do with the weights, in words: it follows from the data, and nothing
            here knows it.
        trained_on: the training data in words.
        evaluations: folders that ``evaluate`` or ``reid evaluate`` wrote about this run; their tables go into
            the card.
        half: float16 weights.

    Returns:
        What was written where, and the address to name it by once it is served.

    Raises:
        UserError: no such run, a text that is none, an evaluation without a table, or ``out`` holds something
            else.
    """
    for option, text in (("--license", license_text), ("--trained-on", trained_on)):
        if re.search("[\0\ud800-\udfff]", text):
            raise UserError(f"{option} {printable(text[:80])}: is no text", "write it in UTF-8")
    kind, what, use = _kind_of(Path(run))
    found = of_run(kind, run)
    tables = [_tables(folder) for folder in evaluations]
    info = found.info.changed(trained_on=trained_on)
    if half and kind is EMBEDDING:
        raise UserError("--half: a Re-ID network is kept as float32", "leave --half away")
    if half:
        info = info.changed(weights_dtype="float16")
    if getattr(info, "generator", "") == "parsing_network":
        use = _OF_IMAGES_ALONE
    out = Path(out)

    def card(config: Config) -> str:
        return _card(kind.word, what, use, config, license_text, trained_on, tables)

    save_network(out, found.network, info, card, half=half)
    digest = sha256_file(out / CONFIG)
    return (
        f"{out}: model.safetensors, {CONFIG}, README.md, from {found.origin}\n"
        f"once served: https://PLACE/{CONFIG}#sha256={digest}"
    )


def _kind_of(run: Path) -> tuple[Kind[Any, Any], str, str]:
    settings = read_json(run / CONFIG)
    for row in _KINDS:
        if row[0].setting in settings:
            return row
    raise UserError(f"{printable(run)}: is no run of a training", "give the folder of reposer train")


def _tables(folder: Path) -> str:
    """What an evaluation found, as Markdown."""
    parts = []
    for name in FIGURES:
        path = contained(folder, name)
        if not path.is_file():
            continue
        if name == IDENTITY:
            parts.append(_identity(path))
        else:
            parts.append(read_regular(path, max_bytes=_MOST_BYTES, root=folder).decode("utf-8", "replace"))
    if not parts:
        raise UserError(
            f"{printable(folder)}: holds no table of an evaluation", f"one of {', '.join(FIGURES)} is wanted"
        )
    return "\n\n".join(part.strip() for part in parts)


def _identity(path: Path) -> str:
    """The scores of an identity.json, as Markdown."""
    with foreign_values(path):
        rows = read_json(path)["rows"]
        if not rows:
            raise KeyError("rows")
        top = next(iter(rows.values()))["rank1"]  # of all real queries, in older files
        scores = {
            row: (found["rank1"], found["mAP_step"], found.get("real_rank1", top))
            for row, found in rows.items()
        }
        return "\n".join(identity_table(scores))


def _card(
    word: str, what: str, use: str, config: Any, license_text: str, trained_on: str, tables: Sequence[str]
) -> str:
    figures = "\n\n".join(tables) if tables else "None were given when this was exported."
    return f"""---
library_name: reposer
license: other
license_name: {_quoted(_one_line(license_text))}
tags: [person-re-identification]
---

# {word.capitalize()}: {what}

{config.step:,} optimizer steps. Trained on: {_one_line(trained_on)}.
Training people (hash of their ids): `{config.identity_hash or "not recorded"}`.
{deviations(getattr(config, "generator", ""))}
## License and limits

{_one_line(license_text)}. The weights carry what they learned about people who may not have consented one by
one. Meant for research on person re-identification; not for surveillance, for decisions about people, or for
pictures that pass for photographs. A generated picture of a real person is personal data of that person.

## Figures

{figures}

## Use

    reposer {use}

## Files

`model.safetensors` (sha256 `{config.weights_sha256}`), `config.json`. Nothing here is executable.
"""


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _quoted(text: str) -> str:
    """A text of a user's as a value of YAML, whatever is in it."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


# ---- ``reposer push-to-hub``: an exported folder on the Hugging Face hub.

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SHARED = (WEIGHTS, CONFIG, CARD, SEAL)  # what is sent; nothing else of the folder is
_HUB_ERRORS: tuple[type[Exception], ...] = (  # HTTPError is httpx's or httpx2's, as the hub's version has it
    *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
    *(LocalTokenNotFoundError, RuntimeError, ValueError),  # ValueError: of a name or an address
)


def push_to_hub(folder: str | Path, name: str, *, private: bool = False, message: str = "") -> str:
    """Send a folder of :func:`export_run` to the hub, under the login of ``hf auth login`` or $HF_TOKEN.

    Args:
        folder: whole, as ``reposer verify`` finds it.
        name: OWNER/NAME; made where it is missing.
        private: make it for its owner alone.
        message: of the commit.

    Returns:
        Where it is, and by which name it is used.

    Raises:
        UserError: no export or a damaged one, no such name, no login, or the hub refuses or is not reached.
    """
    folder = Path(folder)
    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"{printable(name)[:80]}: is no name on a hub", "write OWNER/NAME")
    load_exported(folder)
    if faults := seal_faults(folder, None):
        raise UserError(f"{faults[0]}", "export the run again")
    if not (folder / CARD).is_file():
        raise UserError(f"{printable(folder)}: has no {CARD}, which says what it is", "export the run again")
    hub = HfApi(library_name="reposer")
    try:
        made = hub.create_repo(name, private=private or None, exist_ok=True)
        hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=list(_SHARED),
            commit_message=message or "Add a network of reposer",
        )
    except _HUB_ERRORS as error:
        reason = printable(next((line for line in str(error).splitlines() if line.strip()), ""))[:200]
        advice = "log in with `hf auth login`, and check the name and the network"
        raise UserError(
            f"{name}: the hub did not take it: {reason or type(error).__name__}", advice
        ) from error
    return f"{made}\nuse it as hub:{made.repo_id}"
