"""Errors that are shown without a stack."""


class UserError(Exception):
    """A user's mistake: only its text is shown, and the exit code is 2."""


class RunError(Exception):
    """A run that began and could not go on: only its text is shown, and the exit code is 1."""
