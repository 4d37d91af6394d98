"""The benchmark: ours, the raw limits and the peer at the same work in the same run. Run it by python -m tests.bench."""
