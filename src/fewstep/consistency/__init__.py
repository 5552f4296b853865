"""The method: boundary, path, loss, multistep sampling (LCM, arXiv 2310.04378)."""
