"""The one exception that a user can cause."""


class InputError(ValueError):
    """Something the caller gave cannot be used; the message is one sentence that says what and how to mend it.

    The command line prints the sentence and exits with code 2. Numerical failure is never this: it is a `status`.
    """
