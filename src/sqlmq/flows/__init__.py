"""Verbs: what one transaction does, as functions of a Connection that somebody else begins and commits."""
