"""Faults made on purpose, counted: `make faults` makes docs/reliability.md, `make test` runs a quick set."""
