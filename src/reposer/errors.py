"""Errors a user can cause: one clear line that names the file, row and field and says what to do."""

from __future__ import annotations

# a number beyond these is wrong wherever a user or a file gives it
LARGEST, LARGEST_SEED = 2**31 - 1, 2**63 - 1  # of a count or a weight; of a seed
MOST_SIDE_BY_SIDE = 1024  # threads or processes
MOST_AT_ONCE = 65_536  # pictures of a batch


class UserError(Exception):
    """Something the user can mend; the command line prints its text without a traceback and exits with 1.

    Args:
        problem: what is wrong, naming file, row and field.
        advice: what to do about it, an imperative sentence without a final full stop; may be empty.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem}: {advice}" if advice else problem)
        self.problem = problem
        self.advice = advice


class NonFiniteError(UserError):
    """A number that must be finite is NaN or infinite; nothing was updated or saved."""


class MissingWeightsError(UserError):
    """Weights of a named network are not on this machine; nothing is ever put in their place."""
