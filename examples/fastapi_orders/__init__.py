"""Orders in FastAPI: a service that publishes in its ``AsyncSession``, and three groups that each read all of it.

From the top of the checkout, on Postgres:

    export ORDERS_URL=postgresql+psycopg://user@host/name
    alembic --config examples/fastapi_orders/alembic.ini upgrade head     makes our tables and the queue's
    uvicorn examples.fastapi_orders.service:app
    python -m examples.fastapi_orders.groups mail search analytics        in a second terminal; or each in one of its own
    curl http://127.0.0.1:8000/orders --json '{"customer": "Ada", "item": "green tea", "cents": 450}'

To read everything again, start a group with a new name: it begins with the oldest message. Here it fills a new search
index beside the old one, which stays in use until the new one is complete:

    python -m examples.fastapi_orders.groups search-2

There is no command yet that moves an existing group back.

tables.py    what the database holds of ours
service.py   takes orders
groups.py    mail, search and analytics
migrations/  one Alembic chain for both
"""
