"""The business's own table, as `makemigrations` writes it."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Makes the orders."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("reference", models.TextField()),
                ("customer", models.TextField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=["reference"], name="order_reference_is_unique", deferrable=models.Deferrable.DEFERRED
                    )
                ],
            },
        ),
    )
