"""Sources of a user's own captioned pictures: folders and shards, filtered and counted."""
