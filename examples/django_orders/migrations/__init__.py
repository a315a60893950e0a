"""The tables: the business's, then the queue's."""
