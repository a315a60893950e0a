"""The business's own table."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """What a customer wants."""

    reference = models.TextField()
    customer = models.TextField()

    class Meta:
        """The reference is the client's, so that it can send an order again; it is checked at the commit."""

        constraints = (
            models.UniqueConstraint(
                fields=["reference"], name="order_reference_is_unique", deferrable=models.Deferrable.DEFERRED
            ),
        )

    def __str__(self) -> str:
        return f"{self.reference} of {self.customer}"
