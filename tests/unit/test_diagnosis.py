from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import MemberDescription, PartitionLag
from sqlmq.reports.diagnosis import GroupEvidence, OpenClaimTransaction, PartitionBarrier, find_problems

if TYPE_CHECKING:
    from sqlmq import Problem

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(minutes=10)
BEHIND = PartitionLag("orders", "billing", 0, 7, 9, 600.0, "me", LONG_AGO, 0, 0)
MEMBER = MemberDescription("me", LONG_AGO, 1.0, 10.0, is_live=True, wants_partitions=False, partitions=(0,))


def look(lag: PartitionLag = BEHIND, **seen: Any) -> list[Problem]:
    everything: dict[str, Any] = {"members": [MEMBER], "starts": {0: 0}} | dict.fromkeys(
        ("in_place", "blocked", "barriers", "claim_holders"), ()
    )
    return find_problems(GroupEvidence([lag], now=NOW, **(everything | seen)), 30.0)


def codes(found: list[Problem]) -> list[str]:
    return [one.code for one in found]


def test_an_owner_that_has_not_been_heard_of_for_half_its_lease_is_told_before_what_it_does_not_do() -> None:
    (found,) = look(members=[replace(MEMBER, heartbeat_seconds=6.0)])

    assert found.code == "silent-owner"
    assert "6.0 s ago" in found.summary


def test_what_retention_has_taken_is_told_with_the_command_that_goes_on() -> None:
    (found,) = look(starts={0: 8})

    assert found.code == "evicted"
    assert "sqlmq groups reset billing --topic orders --partition 0 --to-earliest --execute" in found.remedy


def test_a_transaction_that_holds_claims_for_long_is_told_if_the_group_stands_still() -> None:
    holder = OpenClaimTransaction(4711, "psql", "idle in transaction", 300.0)

    assert codes(look(claim_holders=[holder])) == ["held-claim", "no-progress"]
    assert "pg_terminate_backend(4711)" in look(claim_holders=[holder])[0].remedy
    assert codes(look(claim_holders=[holder._replace(seconds=3.0)])) == ["no-progress"]
    assert look(replace(BEHIND, committed_at=NOW), claim_holders=[holder]) == []


@pytest.mark.parametrize(("ago", "expected"), [(5, []), (15, ["no-members"])])
def test_consumers_that_are_no_members_show_by_what_they_have_just_committed(ago: int, expected: list[str]) -> None:
    lag = replace(BEHIND, owner=None, committed_at=NOW - timedelta(seconds=ago))

    assert codes(look(lag, members=[])) == expected


def test_a_member_that_has_died_is_told_of_where_nobody_reads() -> None:
    dead = replace(MEMBER, is_live=False, heartbeat_seconds=7_300.0)

    (found,) = look(replace(BEHIND, owner=None), members=[dead])

    assert found.code == "no-members"
    assert "last heartbeat was 2 h ago" in found.summary


def test_names_are_quoted_in_commands() -> None:
    (found,) = look(replace(BEHIND, group="a:b"), starts={0: 8})

    assert "sqlmq groups reset a:b " in found.remedy


@pytest.mark.parametrize("lag", [replace(BEHIND, position=9, lag_seconds=0.0), replace(BEHIND, lag_seconds=3.0)])
def test_a_group_that_gets_on_has_no_findings(lag: PartitionLag) -> None:
    assert look(lag) == []


def test_a_partition_that_is_not_to_be_read_yet_is_told_what_it_waits_for() -> None:
    (finding,) = look(replace(BEHIND, owner=None), barriers=[PartitionBarrier(0, 3, 17)])

    assert finding.code == "partition-barrier"
    assert "partition 3" in finding.summary
    assert "offset 17" in finding.summary
