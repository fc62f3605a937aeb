"""The head: inventory, sessions, plans, one migration watched."""
