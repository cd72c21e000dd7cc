"""``python -m reposer``: the same as the command ``reposer``."""

from reposer.cli.main import main

main()
