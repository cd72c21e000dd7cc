"""The command line in this process."""

from __future__ import annotations

import sys

import pytest

from reposer.cli import main as cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; gives exit code, standard output, standard error."""

    def _run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reposer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return _run
