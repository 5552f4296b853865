"""The shell around a training: its folder, its pictures, what it shows along the way."""
