"""Orders in Django: the order and the message about it in one ``transaction.atomic()``, on Django's own connection.

Django does not speak SQLAlchemy, so the message is published by the SQL function, on Postgres. From the top of the
checkout:

    export ORDERS_URL=postgresql://user@host/name
    export DJANGO_SETTINGS_MODULE=examples.django_orders.settings
    python -m django migrate                               makes our tables too, see migrations/0002_queue.py
    sqlmq topics create orders --url $ORDERS_URL
    python -m django runserver
    curl http://127.0.0.1:8000/orders --data reference=r-1 --data customer=Ada
    sqlmq consume orders --group mail --url $ORDERS_URL    or `mq.consumer("orders", "mail")` in any program

settings.py    the least Django runs with
models.py      the business's own table
publishing.py  the one call to the queue
views.py       takes orders
migrations/    its table, and the queue's
"""
