"""Head profiles that ship with the package, found by model identity; tools/make_bundled_profile.py writes them."""
