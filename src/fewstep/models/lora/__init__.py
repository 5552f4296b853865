"""LoRA: files in the spellings people have, adapters on networks, and their sums."""
