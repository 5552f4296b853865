"""The one training loop: optimisation, run state and resume, logging."""
