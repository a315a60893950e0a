"""What tests of several folders share: servers and databases, ways to drive a queue, and a look at its tables.

Databases: ``postgres_server``, ``postgres_databases``, ``postgres_pair`` and ``pgbouncer`` start and share them, ``engines``
opens them for an application, and ``statements`` compiles each statement once for all of these. A queue in use: ``processes``
and ``journal`` for those that may be killed, ``traffic`` for threads that go on through faults, ``blocking`` for an
``AsyncMQ`` that a synchronous test calls, ``shop`` for an application with transactions, ``handlers``, ``failing`` and
``stepped_worker`` for what ``run`` calls. What a test controls or awaits: ``clock``, ``waiting``, ``delayed``, ``retention``.
What it looks at: ``queue_state`` and ``telemetry``.
"""
