"""Readers of head-class formats that other projects publish, one a file."""
