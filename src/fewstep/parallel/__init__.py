"""The processes of a run and the workers of an evaluation, and what they tell one another."""
