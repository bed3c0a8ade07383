"""The tests: contract/ (what every one of a kind promises), unit/ (one file a module), e2e/ (the real thing)."""
