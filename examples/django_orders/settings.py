"""The least Django runs with."""

from __future__ import annotations

import os

from sqlalchemy import make_url

_url = make_url(os.environ["ORDERS_URL"])

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.database,
        "USER": _url.username or "",
        "PASSWORD": _url.password or "",
        "HOST": _url.host or "",
        "PORT": _url.port or "",
    }
}
INSTALLED_APPS = ["examples.django_orders"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "examples.django_orders.views"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
SECRET_KEY = "for this example only"  # noqa: S105 - signs nothing here
USE_TZ = True
