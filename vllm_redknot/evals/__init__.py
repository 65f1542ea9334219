"""Texts, tasks and scores that tell what an approximation costs."""
