"""What a user can put right."""


class UserError(Exception):
    """A mistake of the user's: its text is all that is shown."""


class RunError(Exception):
    """Work that began and could not go on: its text is all that is shown, and the exit code is 1."""
