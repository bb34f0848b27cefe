"""Datasets, code only: a file per dataset, small images as one tensor on the device."""
