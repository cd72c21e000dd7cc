"""The command line: ``reposer VERB``. Torch and the rooms are imported inside the commands: help is instant.

Exit codes: 0 done, 1 something the user can mend, 2 wrong usage, 130 interrupted, 143 stopped by a scheduler.
"""

import errno
import io
import sys
from typing import Annotated

import typer

from reposer.cli import folders, generators, looking, prepare, reid
from reposer.errors import NOT_ON_WINDOWS, UserError
from reposer.storage.paths import printable_lines

OLD_SPELLINGS = {"--accept-licence": "--accept-license"}  # still understood, and shown nowhere

app = typer.Typer(
    name="reposer",
    help="Re-pose people to train better person re-identification.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (folders, looking, generators):
    app.add_typer(part.app)
app.add_typer(prepare.app, name="prepare")
app.add_typer(reid.app, name="reid")


def main() -> None:
    """Run the command line and turn errors into one clear line and an exit code."""
    if sys.platform == "win32":
        print(f"error: {NOT_ON_WINDOWS}", file=sys.stderr)
        sys.exit(1)
    arguments = [OLD_SPELLINGS.get(a, a) for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):  # a name that is no text must not cost the lines beside it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(args=arguments, prog_name="reposer", standalone_mode=False)
    except UserError as error:
        if debug:
            raise
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        code = 1
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        if debug:
            raise
        from reposer.config import refusal

        if said := refusal(error):
            print(f"error: {printable_lines(said)}", file=sys.stderr)
            code = 1
        elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            print(
                f"error: {printable_lines(str(error.filename)[:60])}...: no name is as long: give another",
                file=sys.stderr,
            )
            code = 1
        elif hasattr(error, "show") and hasattr(
            error, "exit_code"
        ):  # a usage error knows how to print itself
            error.show()
            code = error.exit_code
        else:
            said = printable_lines(f"{type(error).__name__}: {error}")
            print(f"error: {said} (a fault of ours; --debug shows where)", file=sys.stderr)
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


@app.callback()
def _common(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Options of every verb (``--debug`` is taken out of the line before this is read)."""
