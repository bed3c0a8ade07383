"""What was done with the accounts, in one chain that shows when it was changed: `Audit` in recorder.py writes it."""
