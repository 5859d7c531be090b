"""Other people's training loops: one foreign framework a file, imported by its own name; nothing of ours imports it."""
