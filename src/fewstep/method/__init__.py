"""The consistency method: the step and its seams, and multistep sampling (LCM, arXiv 2310.04378)."""
