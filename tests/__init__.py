"""Tests of bullet-qmt. `python -m tests` runs them in a virtual environment of their own."""
