"""SQLite, by the standard library's driver.

dialect  `Sqlite`: engines, BEGIN IMMEDIATE, WAL, append and read
cursors  the driver's cursor, and SQLAlchemy's statements where an application sees them
health   the library, the file, and where it lies
"""
