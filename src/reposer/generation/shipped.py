"""What the package ships: generators and a predictor of maps for the built-in rendered people."""

from __future__ import annotations

from importlib.resources import as_file
from importlib.resources import files as resources

from torch import nn

from reposer.errors import UserError
from reposer.generation.export import GeneratorConfig, load_generator

# What a user calls it -> its folder in reposer.assets.
GENERATORS = {"shipped": "san_rendered", "shipped-rsa": "rsa_gan_rendered"}
PREDICTOR, _PREDICTOR_FOLDER = "shipped-predictor", "predictor_rendered"


def load_shipped(name: str) -> tuple[nn.Module, GeneratorConfig]:
    """The generator of that name, a key of GENERATORS, with its configuration.

    Raises:
        UserError: this installation has none.
    """
    return _load(GENERATORS[name])


def load_shipped_predictor() -> tuple[nn.Module, GeneratorConfig]:
    """The predictor of target maps, with its configuration.

    Raises:
        UserError: this installation has none.
    """
    return _load(_PREDICTOR_FOLDER)


def _load(name: str) -> tuple[nn.Module, GeneratorConfig]:
    folder = resources("reposer.assets") / name
    if not (folder / "config.json").is_file():
        raise UserError(f"this installation lacks its own {name}", "install it again, or name a folder")
    with as_file(folder) as path:
        return load_generator(path)
