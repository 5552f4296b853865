"""What ends a command with words that are meant for the person at the terminal."""


class UserError(Exception):
    """What was wrong, what is allowed and what to do, in one line; the command exits with status 2."""


class StoppedError(Exception):
    """A run was asked to stop, has saved its state and ends early."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after update {step}, which is saved: the same command goes on from there")
        self.number = number
        """Of the signal."""


def is_short_of_memory(error: Exception) -> bool:
    """Whether torch, or Python, found too little memory."""
    import torch  # not for --help

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
