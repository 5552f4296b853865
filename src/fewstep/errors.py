"""Exceptions that end a command with a message for the user."""


class UserError(Exception):
    """Says in one line what was wrong, what is allowed and what to do; the command exits with status 2."""


class StoppedError(Exception):
    """Ends a run that was asked to stop and has saved its state."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after update {step}, which is saved: the same command goes on from there")
        self.number = number
        """The signal that stopped it."""


def is_short_of_memory(error: Exception) -> bool:
    """Tells whether torch or Python ran out of memory."""
    import torch  # slow, and not needed for --help

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
