"""Worlds that are drawn on the fly."""
