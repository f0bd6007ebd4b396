"""Hourly electricity demand with a GRU and an LSTM: run `python -m examples.energy --help`."""
