"""Questions to models: conversations, lists of models, and asking."""
