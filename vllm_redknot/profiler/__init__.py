"""Finds which KV heads must stay global, and what window each of the others needs."""
