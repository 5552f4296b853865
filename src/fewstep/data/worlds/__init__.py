"""Worlds of synthetic pictures that are drawn on the fly."""
