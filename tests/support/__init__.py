"""What tests of several folders share: servers and databases, ways to drive a queue, and a look at its tables.

- Databases: ``postgres_server``, ``postgres_databases``, ``postgres_pair``, ``pgbouncer`` and ``sqlite_files`` start and lend
  them, ``engines`` and ``application`` open them for an application, which may use asyncio, ``statements`` compiles each
  statement once for all engines.
- A queue in use: ``processes`` and ``journal`` for processes that may be killed, ``traffic`` for threads that continue through
  faults, ``blocking`` for an ``AsyncMQ`` that a synchronous test calls, ``shop`` for an application with transactions,
  ``handlers``, ``failing`` and ``stepped_worker`` for what ``run`` calls, ``injections`` for hostile input.
- What a test controls: ``clock``, ``delayed``, ``retention``, ``poller``, ``awaits``; what it waits for: ``waiting``.
- What it looks at: ``queue_state`` and ``telemetry``. ``fixtures`` has the fixtures for all of these.
"""
