"""Stopwatch, live bytes, work and memory of an update."""
