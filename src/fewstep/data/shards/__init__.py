"""Tar and parquet shards, indexed once, and shards of latents."""
