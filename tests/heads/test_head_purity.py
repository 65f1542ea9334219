import subprocess
import sys


def test_head_classes_and_settings_load_without_vllm_and_torch() -> None:
    code = (
        "import sys, vllm_redknot.config, vllm_redknot.heads.resolve, vllm_redknot.heads.tensor_parallel\n"
        "print(sorted({'vllm', 'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
