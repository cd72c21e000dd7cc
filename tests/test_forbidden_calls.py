"""What must not be in the program: calls that run code from a file, and switches that weaken Pillow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))

NAMES = {"eval", "exec"}
METHODS = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("marshal.load", "marshal.loads", "dill.load", "joblib.load", "os.system", "os.popen", "torch.hub.load"),
}
ANYWHERE = {"extractall", "LOAD_TRUNCATED_IMAGES"}  # as a name, attribute or keyword
KEYWORDS = {"trust_remote_code": None, "shell": True, "weights_only": False, "allow_pickle": True}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def forbidden(source: str) -> list[str]:
    """What the source holds of the lists above; an empty list is good."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in NAMES or called in METHODS:
                found.append(called)
            if called == "torch.load" and "weights_only" not in {k.arg for k in node.keywords}:
                found.append("torch.load without weights_only")
            for keyword in node.keywords:
                if keyword.arg in KEYWORDS and not _harmless(keyword):
                    found.append(f"{keyword.arg}={ast.unparse(keyword.value)}")
        elif isinstance(node, ast.Attribute) and node.attr in ANYWHERE:
            found.append(node.attr)
        elif (
            isinstance(node, ast.Name | ast.alias)
            and getattr(node, "id", getattr(node, "name", "")) in ANYWHERE
        ):
            found.append("LOAD_TRUNCATED_IMAGES or extractall")
        elif isinstance(node, ast.Assign) and any(
            dotted(t).endswith("MAX_IMAGE_PIXELS") for t in node.targets
        ):
            found.append("MAX_IMAGE_PIXELS")
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "dill", "cloudpickle"):
            found.append(f"from {node.module}")
    return found


def _harmless(keyword: ast.keyword) -> bool:
    """True for a constant that is not the forbidden one: shell=False, weights_only=True."""
    dangerous = KEYWORDS[str(keyword.arg)]
    if dangerous is None or not isinstance(keyword.value, ast.Constant):
        return False
    return bool(keyword.value.value) is not dangerous


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_source_is_clean(path: Path):
    assert forbidden(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)",
        "from pickle import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=safe)",
        "yaml.load(f)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=False)",
        "archive.extractall(folder)",
        "np.load(f, allow_pickle=True)",
        "Image.MAX_IMAGE_PIXELS = None",
        "ImageFile.LOAD_TRUNCATED_IMAGES = True",
        "from PIL.ImageFile import LOAD_TRUNCATED_IMAGES",
    ],
)
def test_the_test_finds(line: str):
    assert forbidden(line)


def test_the_test_accepts_the_safe_forms():
    assert not forbidden("torch.load(f, weights_only=True); np.load(f, allow_pickle=False); network.eval()")
