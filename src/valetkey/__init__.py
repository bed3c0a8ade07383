"""The SDK: log in once to every AI provider, and hand tools a fresh credential."""
