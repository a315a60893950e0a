"""Orders in Flask: a service that writes each order and the message about it in one transaction, and a consumer.

From the top of the checkout, on Postgres (leave ORDERS_URL out, and the first line, for SQLite in the current directory):

    sqlmq db upgrade --url postgresql://user@host/name
    export ORDERS_URL=postgresql://user@host/name
    flask --app examples.flask_orders.service run
    python -m examples.flask_orders.shipping            in a second terminal; as many as you like
    curl http://127.0.0.1:5000/orders --data customer=Ada --data cents=1250

tables.py    what the database holds of ours
service.py   takes orders
shipping.py  a consumer group that makes a shipment of each order
"""
