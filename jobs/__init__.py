"""Commands: each module of this package is one, and its subpackages are their parts."""
