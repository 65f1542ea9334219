"""Which distributions are installed, without importing them."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(name: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
