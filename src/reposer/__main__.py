"""``python -m reposer``: the same as the command ``reposer``."""

from reposer.cli import main

main()
