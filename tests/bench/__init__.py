"""The benchmark, python -m tests.bench: ours, the raw limits and the peer at the same work in the same run."""
