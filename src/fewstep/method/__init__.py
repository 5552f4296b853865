"""The consistency method: path, landing, distances, weights, the step, multistep sampling (LCM, arXiv 2310.04378)."""
