"""Sparse-training methods: a file per family, on shared parts (masks, allocation, schedules)."""
