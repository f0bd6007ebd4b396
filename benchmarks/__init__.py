"""Benchmarks of gatedrnn: python -m benchmarks.run --help, and README.md for the method."""
