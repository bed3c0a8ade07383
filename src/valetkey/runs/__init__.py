"""Runs: a command in a sandbox that holds no credential, from its start to what is kept of it."""
