"""One command a file: its options, and how it prints. What it computes is in the modules beside this folder."""
