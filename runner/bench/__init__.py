"""What everything costs, measured side by side: `scripts/bench.py`."""
