"""Head profiles that ship with the package, found by model identity; `redknot profile` makes them."""
