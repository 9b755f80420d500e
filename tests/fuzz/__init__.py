"""Bytes from anywhere: what reads them gives a value or its declared error, and keeps its promises about both.

`targets` has a function for each reader, from bytes. Three drivers call them: `test_targets` with what Hypothesis makes
and with the cases that were found once (tests/data/corpus), in every test run; `make fuzz` with what atheris finds by
the branches it takes.
"""
