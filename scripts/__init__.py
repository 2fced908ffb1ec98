"""Tools of this repository, for developers; not installed."""
