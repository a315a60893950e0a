"""SQLite, by the standard library's driver.

dialect  `Sqlite`: engines, BEGIN IMMEDIATE, WAL, append and read
cursors  the driver's cursor, and SQLAlchemy's statements where an application sees them
file     whether the path of a connection still leads to its file
errors   the driver's errors, translated
health   the library, the file and its file system
"""
