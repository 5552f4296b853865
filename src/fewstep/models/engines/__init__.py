"""What computes a model in place of torch."""
