"""Distil a latent diffusion model into one that paints in 1 to 8 steps."""
