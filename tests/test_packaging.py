"""What a user installs is whole: wheel, source distribution and editable installation."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest

import vllm_redknot

pytestmark = pytest.mark.slow

PACKAGE_FOLDERS = {
    "vllm_redknot": "vllm_redknot",
    "kernels": "vllm_redknot/kernels",
    "patches": "vllm_redknot/patches",
}
PACKAGED_SUFFIXES = {".py", ".cpp", ".h", ".json", ".jinja", ".css", ".typed"}

# vLLM is made unimportable: the package has to load without it.
IMPORTS = """
import sys
sys.modules["vllm"] = None
import vllm_redknot, vllm_redknot.patches, vllm_redknot.kernels.segpaged_attention.reference as reference
from importlib.metadata import distribution
(entry,) = distribution("vllm-redknot").entry_points.select(group="vllm.general_plugins")
assert callable(entry.load()), entry
print(distribution("vllm-redknot").version, vllm_redknot.__file__, reference.__file__, sep="\\n")
"""


@pytest.fixture(scope="module")
def source(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the packages are built from, free of earlier build products."""
    copy = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for folder in PACKAGE_FOLDERS:
        shutil.copytree(repo_root / folder, copy / folder, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo_root / name, copy / name)
    return copy


def build(source: Path, kind: str, target: Path) -> Path:
    """Build `kind` ("wheel" or "sdist") of a source folder through its build backend."""
    target.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    command = [sys.executable, "-c", code, str(target)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "sdist", tmp_path_factory.mktemp("dist") / "sdist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution as package indexes have it."""
    folder = tmp_path_factory.mktemp("from-sdist")
    with tarfile.open(sdist) as archive:
        # Python before 3.11.4 has no filters; the archive is our own.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = folder.iterdir()
    return build(unpacked, "wheel", folder / "wheel")


@pytest.fixture
def clean_python(tmp_path: Path) -> Path:
    """Interpreter of a new environment that sees this one's libraries but none of its path hooks."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    # A path named in a .pth file is not searched for .pth files, so this environment's editable install stays out.
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "python"


def install(python: Path, *arguments: str) -> None:
    """`pip install` into another environment, from local files only."""
    pip = [str(python), "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    result = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]


def imported_files(python: Path, folder: Path) -> list[Path]:
    """Where the package and its oracle kernel come from in that environment, after importing everything."""
    result = subprocess.run(
        [str(python), "-c", IMPORTS], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    version, *files = result.stdout.splitlines()
    assert version == vllm_redknot.__version__
    return [Path(file) for file in files]


def expected_files(source: Path) -> set[str]:
    """What a wheel of this tree has to contain, as installed paths."""
    return {
        str(PurePosixPath(target) / path.relative_to(source / folder))
        for folder, target in PACKAGE_FOLDERS.items()
        for path in (source / folder).rglob("*")
        if path.suffix in PACKAGED_SUFFIXES or path.name == "py.typed"
    }


def package_files(names: Iterable[str]) -> set[str]:
    """The files among an archive's members that belong to the import package."""
    return {name for name in names if name.startswith("vllm_redknot/") and not name.endswith("/")}


def test_the_wheel_holds_every_module_kernel_source_and_profile(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert package_files(names) == expected_files(source)
    assert any(name.endswith(".cpp") for name in names)
    assert "vllm_redknot/py.typed" in names
    assert f"vllm_redknot-{vllm_redknot.__version__}.dist-info/licenses/LICENSE" in names


def test_the_wheel_brings_nothing_but_its_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"vllm_redknot", f"vllm_redknot-{vllm_redknot.__version__}.dist-info"}


def test_an_installed_wheel_imports_without_vllm(wheel: Path, clean_python: Path, tmp_path: Path) -> None:
    install(clean_python, str(wheel))
    for file in imported_files(clean_python, tmp_path):
        assert file.is_relative_to(clean_python.parent.parent)


def test_an_editable_installation_imports_from_the_tree(
    source: Path, clean_python: Path, tmp_path: Path
) -> None:
    install(clean_python, "--editable", str(source))
    package, oracle = imported_files(clean_python, tmp_path)
    assert package == source / "vllm_redknot" / "__init__.py"
    assert oracle == source / "kernels" / "segpaged_attention" / "reference.py"


def test_the_metadata_package_gives_vllm_a_cpu_version_and_no_module(repo_root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(repo_root / "tools" / "vllm_metadata" / "pyproject.toml", source)
    wheel = build(source, "wheel", tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert wheel.name == "vllm-0.32.0+cpu-py3-none-any.whl"
    assert {name.split("/")[0] for name in names} == {"vllm-0.32.0+cpu.dist-info"}
