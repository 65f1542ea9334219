"""Package map of vllm-redknot: kernels/ and patches/ live at the top level and install inside the package."""

from pathlib import Path

from setuptools import find_packages, setup

ROOTS = {"vllm_redknot": "vllm_redknot", "vllm_redknot.kernels": "kernels", "vllm_redknot.patches": "patches"}


def packages() -> list[str]:
    names: list[str] = []
    for package, folder in ROOTS.items():
        names.append(package)
        names += [f"{package}.{sub}" for sub in find_packages(folder)]
    return names


setup(
    packages=packages(),
    package_dir={package: str(Path(folder)) for package, folder in ROOTS.items()},
    package_data={"": ["*.cpp", "*.h", "*.json", "templates/*", "py.typed"]},
)
