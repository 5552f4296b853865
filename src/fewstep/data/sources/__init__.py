"""Captioned pictures of one's own: folders and shards, opened by what is there, filtered and counted."""
