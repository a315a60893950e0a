"""Takes orders, each with its message or not at all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from django.db import IntegrityError, transaction
from django.http import JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

from examples.django_orders.models import Order
from examples.django_orders.publishing import publish

if TYPE_CHECKING:
    from django.http import HttpRequest


@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    try:
        with transaction.atomic():
            order = Order.objects.create(reference=request.POST["reference"], customer=request.POST["customer"])
            value = {"id": order.pk, "reference": order.reference, "customer": order.customer}
            publish("orders", key=order.customer, value=json.dumps(value))
    except IntegrityError:
        # Found by COMMIT, when the message was in the log already: it is gone with the row.
        return JsonResponse({"error": "this order was placed before"}, status=409)
    return JsonResponse({"id": order.pk}, status=201)


urlpatterns = [path("orders", place_order)]
