"""The one exception that a user can cause, and checks that several modules share."""

from collections.abc import Mapping
from typing import Any


class InputError(ValueError):
    """Something the caller gave cannot be used; the message is one sentence that says what and how to mend it.

    The command line prints the sentence and exits with code 2. Numerical failure is never this: it is a `status`.

        try:
            problem = exhume.load_problem("my-photographs")
        except exhume.InputError as error:
            print(error)
    """


def check_seed(seed: int) -> None:
    """Raises `InputError` for a seed that PyTorch cannot take."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be at least 0 and below 2^63, not {seed}.")


def known(name: str, table: Mapping[str, Any], what: str) -> str:
    """The name of a row of `table`; raises `InputError` if there is no such row."""
    if name not in table:
        raise InputError(f"There is no {what} {name!r}; there are {', '.join(table)}.")
    return name
