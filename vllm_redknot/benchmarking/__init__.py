"""Stock vLLM and REDKNOT as real servers in turns, timed by vLLM's own client. Needs vLLM only once servers start."""
