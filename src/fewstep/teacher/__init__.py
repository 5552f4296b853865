"""How the bundled teacher and its reader were made, from nothing."""
