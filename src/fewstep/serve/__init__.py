"""A few-step model behind a page and an API: `fewstep serve`."""
