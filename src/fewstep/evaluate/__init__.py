"""Scores, baselines, tables and grids."""
