"""What is written about sqlmq; ``docs.reference`` writes the part that is read from the code."""
