"""`python -m vllm_redknot.cli`, where the console script is not on the PATH."""

from vllm_redknot.cli.main import main

main()
