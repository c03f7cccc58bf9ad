"""The one exception a user can cause."""


class UserError(ValueError):
    """Bad input, said in one line: what, the value, what is allowed, what to do. The CLI exits with 2."""
