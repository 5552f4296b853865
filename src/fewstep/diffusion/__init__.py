"""The mathematics of diffusion: schedule, prediction, guidance, solvers, sampling."""
