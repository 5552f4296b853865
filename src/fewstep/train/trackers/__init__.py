"""Where a run can be followed beside its folder; each is imported only where a run reports to it."""
