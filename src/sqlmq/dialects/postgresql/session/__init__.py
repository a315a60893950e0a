"""One session of the server, and its connection.

conventions  encodings and isolation: set on ours, checked on an application's
login        why the server refused a login, in any language
pooler       a pooler such as PgBouncer: detected, and nothing prepared
socket       how long the connection's socket has been silent; shutting it down
"""
