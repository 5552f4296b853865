"""Several processes: those of one run, which exchange tensors, and workers, which share independent jobs."""
