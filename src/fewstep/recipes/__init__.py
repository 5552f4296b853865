"""Named, typed run configurations, and what each command does with one."""
