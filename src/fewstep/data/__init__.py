"""Where pictures and captions come from, in which order they are used, and the random draws of a run."""
