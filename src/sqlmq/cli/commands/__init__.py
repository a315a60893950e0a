"""The commands of `sqlmq`, each in a file of its own name."""
