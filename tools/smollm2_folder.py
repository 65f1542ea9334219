"""Where the test model lives and how to tell that it is whole; standard library only: it runs before set-up.

`python -m tools.smollm2_folder` prints the folder (`make -s model-path`).
"""

import argparse
import hashlib
import sys
from pathlib import Path

MODEL_NAME = "SmolLM2-135M-Instruct"

# sha256 of each file that tools.convert_smollm2 writes with the versions pinned in requirements/.
CHECKSUMS: dict[str, str] = {
    "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    "config.json": "b2a0c22b5fd8fd5224453024e88f730c3a1e1eeeac30017c6aeea70506a06a19",
    "generation_config.json": "8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "e9f1b9eb29e5f4fc508736f874cc7d1321834fb5610e169fb1acae231472321b",
    "tokenizer_config.json": "78b3e0cc3e57fd04e57f66e0f8bda1dc8a094922b6401832e239667a267f2a99",
}


def default_folder() -> Path:
    """The model's folder when nothing else is asked for: outside the tree, shared by all clones."""
    return Path.home() / ".cache" / "vllm-redknot" / "models" / MODEL_NAME


def sha256(path: Path) -> str:
    """Hex sha256 of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problems(folder: Path) -> list[str]:
    """What is wrong with a converted model folder, one line each; empty when every file is intact."""
    if not folder.is_dir():
        return [f"{folder} does not exist"]
    found: list[str] = []
    for name, expected in CHECKSUMS.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path} is missing")
        elif (actual := sha256(path)) != expected:
            found.append(f"{path} has sha256 {actual}, expected {expected}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-folder", type=Path, default=default_folder(), help="default: %(default)s")
    folder: Path = parser.parse_args().model_folder.expanduser().absolute()
    print(folder)
    if not folder.is_dir():
        print(f"{folder} does not exist yet: run `make setup`", file=sys.stderr)


if __name__ == "__main__":
    main()
