"""Measurements on real vLLM servers and engines; results are JSON with hardware, versions, arguments, raw samples."""
