"""Training of the bundled teacher and its reader from scratch."""
