"""All mutations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.mutations import groups, handling, log, outbox, trimming

if TYPE_CHECKING:
    from tests.mutations.mutation import Mutation

MUTATIONS: dict[str, Mutation] = {
    one.name: one
    for one in (*log.MUTATIONS, *outbox.MUTATIONS, *groups.MUTATIONS, *handling.MUTATIONS, *trimming.MUTATIONS)
}
"""All mutations, by name."""
