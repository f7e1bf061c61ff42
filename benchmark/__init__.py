"""Benchmarks: clients of the public surface. Each module's docstring says how to run it."""
