"""pgmq, by the SQL of its extension, which its Python package carries and installs without the extension."""

from __future__ import annotations

import json
import time

import psycopg
from pgmq import get_embedded_install_sql, install_pgmq_sql

from benchmarks.databases import POSTGRES
from benchmarks.workload import check

PACKAGE = "pgmq"
KINDS = (POSTGRES,)
MESSAGES = 100_000
HOW = "send_batch of 1,000, read(1000), delete of those, by psycopg"


def produce_and_drain(target: str, count: int) -> tuple[float, float]:
    with psycopg.connect(target) as connection:
        install_pgmq_sql(get_embedded_install_sql(), conn=connection)
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("SELECT pgmq.create('bench')")
        batch = [json.dumps("v" * 200)] * min(count, 1_000)
        began = time.perf_counter()
        for _ in range(count // len(batch)):
            connection.execute("SELECT * FROM pgmq.send_batch('bench', %s::jsonb[])", [batch]).fetchall()
        produced = time.perf_counter()
        left = count
        while left:
            rows = connection.execute("SELECT msg_id, message FROM pgmq.read('bench', 60, 1000)").fetchall()
            check(bool(rows), f"{left} messages did not come")
            ids = [row[0] for row in rows]
            connection.execute("SELECT * FROM pgmq.delete('bench', %s::bigint[])", [ids]).fetchall()
            left -= len(rows)
        return produced - began, time.perf_counter() - produced
