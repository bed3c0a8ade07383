"""Acme as a provider of Valetkey: acme.toml, which is found by the entry point in pyproject.toml."""
