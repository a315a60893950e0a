"""Nouns: the SQL, one module per family of tables.

Functions of a Connection and a Dialect. None begins, ends or waits for anything but the rows' own locks.
"""
