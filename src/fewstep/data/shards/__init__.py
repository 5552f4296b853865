"""Tar and parquet shards of pictures, which are indexed once, and shards of latents."""
