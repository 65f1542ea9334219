"""One HTML page of what was measured, from JSON documents that may come from anywhere."""
