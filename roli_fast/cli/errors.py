"""What a user can put right."""


class UserError(Exception):
    """A mistake of the user's: its text is all that is shown."""
