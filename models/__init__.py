"""Architectures, a file per family, and the accounting of their parameters, multiply-accumulates and FLOPs."""
