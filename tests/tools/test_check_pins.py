"""Pinned distributions are checked file by file."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.check_pins import fault, pins


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions with `pinned-thing` 1.0+cpu in it."""
    info = tmp_path / "pinned_thing-1.0+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: pinned-thing\nVersion: 1.0+cpu\n")
    (info / "RECORD").write_text("pinned_thing.py,,\n__pycache__/pinned_thing.pyc,,\n")
    (tmp_path / "pinned_thing.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("installed")
def test_a_whole_distribution_passes_without_byte_code_and_with_a_local_version() -> None:
    assert fault(Requirement("Pinned_Thing==1.0")) is None


def test_a_lost_file_is_named(installed: Path) -> None:
    (installed / "pinned_thing.py").unlink()
    assert fault(Requirement("pinned-thing==1.0")) == "1 files are missing, pinned_thing.py first"


def test_a_lost_file_list_is_a_fault(installed: Path) -> None:
    (installed / "pinned_thing-1.0+cpu.dist-info" / "RECORD").unlink()
    assert fault(Requirement("pinned-thing==1.0")) == "installed without a list of files"


@pytest.mark.usefixtures("installed")
def test_another_version_is_a_fault() -> None:
    assert fault(Requirement("pinned-thing==1.1")) == "version 1.0+cpu is installed"


def test_an_absent_distribution_is_a_fault() -> None:
    assert fault(Requirement("no-such-distribution==1.0")) == "not installed"


def test_every_requirement_is_an_exact_pin(repo_root: Path) -> None:
    wanted = [pin for name in ("cpu", "dev") for pin in pins(repo_root / "requirements" / f"{name}.txt")]
    assert len(wanted) > 100
    assert [str(pin) for pin in wanted if [one.operator for one in pin.specifier] != ["=="]] == []
    names = [pin.name for pin in wanted]
    assert len(names) == len(set(names))
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(names)
