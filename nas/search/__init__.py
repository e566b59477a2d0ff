"""A search: its state, its loop, and the collaborators that propose and schedule candidates."""
