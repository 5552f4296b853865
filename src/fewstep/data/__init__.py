"""Examples and batches: where pictures and captions come from, in which order, with which draws."""
