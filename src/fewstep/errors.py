"""The one exception whose text is meant for the person at the terminal."""


class UserError(Exception):
    """What was wrong, what is allowed and what to do, in one line; the command exits with status 2."""
