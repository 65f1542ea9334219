"""Kernels: one folder per operation, each with a plain-torch reference. Nothing here knows an engine."""
