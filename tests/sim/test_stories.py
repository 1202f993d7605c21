"""Scenarios with real time: the original ends as spec/algorithms.md 15 says, ours holds.

15.1, 15.3, 15.8 and 15.9 do not depend on real time; tests/scenarios has them.
"""

from __future__ import annotations

from paxoslease.timing import Timing
from tests.sim import adoption_stories, stories
from tests.sim.stories import ORIGINAL, OURS

SETTLE_S = 6  # polling, settling and the renewal after which the record stood still


def test_original_restarted_under_its_name_has_two_users() -> None:
    """15.2: the original's lease is taken seconds after its daemon was restarted."""
    end = stories.restarted_daemon(ORIGINAL)
    assert end.clashes
    assert end.taken_after_s < Timing(2, 60).fail_us / 1e6


def test_ours_restarted_under_its_name_waits_for_the_watchdog() -> None:
    """15.2: a name proves nothing to ours (M1), so nobody takes over before the reset."""
    end = stories.restarted_daemon(OURS)
    assert end.clashes == ()
    dead_s = Timing(2, 60).dead_us / 1e6
    assert dead_s < end.taken_after_s < dead_s + SETTLE_S


def test_original_takes_over_by_its_own_io_timeout() -> None:
    """15.4: without a host table the original waits by its own io_timeout, too short."""
    end = stories.longer_io_timeout_of_the_owner(ORIGINAL)
    assert end.clashes
    assert end.taken_after_s < Timing(5, 60).dead_us / 1e6


def test_ours_takes_over_by_the_owners_io_timeout() -> None:
    """15.4: ours waits by the io_timeout in the owner's record (M9)."""
    end = stories.longer_io_timeout_of_the_owner(OURS)
    assert end.clashes == ()
    dead_s = Timing(5, 60).dead_us / 1e6
    assert dead_s < end.taken_after_s < dead_s + SETTLE_S + 2


def test_original_gives_one_host_id_to_two() -> None:
    """15.4: a settle wait by the formatter's small io_timeout gives one id and generation twice."""
    end = stories.race_for_a_host_id(ORIGINAL)
    assert end.both_s > 10
    assert end.generations == (1, 1)


def test_ours_gives_a_host_id_to_one() -> None:
    """15.4: ours gives up when a write took longer than what the record lets others wait (M9)."""
    end = stories.race_for_a_host_id(OURS)
    assert end.both_s == 0
    assert "HostIdBusy" in end.ends


def test_a_sharer_is_judged_by_its_delta_lease() -> None:
    """15.4: a table that could not be fed makes a live sharer look dead; ours reads (M10)."""
    end = stories.stalled_renewals_of_the_taker()
    assert not end.original_believes_alive
    assert end.ours == "LeaseShared"


def test_original_leaves_a_lease_that_nobody_gets() -> None:
    """15.5: committed by another host and released without RELEASED, the lease looks owned."""
    end = stories.committed_by_another(ORIGINAL)
    assert end.second == "the original returns -243"


def test_ours_frees_a_lease_whoever_wrote_its_leader() -> None:
    """15.5: on the same schedule the other host gets the lease (M8, M21, M23)."""
    assert stories.committed_by_another(OURS).second == "owner"


def test_original_never_ends_behind_a_newer_block() -> None:
    """15.5: a block with an lver above leader.lver + 1 makes the original's acquire loop."""
    assert stories.newer_block_than_the_leader(ORIGINAL) == ("still busy", 0)


def test_ours_goes_on_from_the_newest_version() -> None:
    """15.5: ours joins the newest version that any block shows (M12)."""
    end, lver = stories.newer_block_than_the_leader(OURS)
    assert end == "owner"
    assert lver > 3


def test_original_cannot_release_with_too_small_num_hosts() -> None:
    """15.5: with num_hosts below its id the original cannot release, and nobody gets the lease."""
    end = stories.num_hosts_below_the_own_id(ORIGINAL)
    assert "-228" in end.release
    assert end.other in ("the original returns -243", "the original returns -247")


def test_ours_refuses_num_hosts_below_an_id() -> None:
    """15.5: ours refuses such a value and leaves the lease to others (M16)."""
    end = stories.num_hosts_below_the_own_id(OURS)
    assert end.acquire == "LeaseUnsupported"
    assert end.other == "owner"


def test_an_expired_member_gets_no_lease() -> None:
    """Rule M2: the clock ends a membership, also while its renewal hangs in a write."""
    assert stories.expired_membership() == "LockspaceFailed"


def test_a_membership_counts_from_what_it_wrote() -> None:
    """Rule M2: a renewal that was acknowledged late does not make the host live longer."""
    end = stories.late_acknowledgement()
    assert end.clashes == ()
    assert end.taken_after_s > Timing(1, 10).dead_us / 1e6


def test_a_successors_record_is_not_freed() -> None:
    """Rule M13: who slept for too long does not free the host id of another."""
    assert stories.leave_after_a_long_sleep() == ("RenewalRefused", True)


def test_a_stale_lvb_is_not_written() -> None:
    """A decision has a shelf life: who slept for too long does not write the LVB any more."""
    assert stories.lvb_after_a_long_sleep() == ("LockspaceFailed", b"fresh")


def test_a_value_of_an_earlier_life_is_owned_by_the_later() -> None:
    """15.9: a leader whose writer is its owner in a later generation is that one's (M25)."""
    assert stories.value_of_an_earlier_life() == "LeaseHeld"


def test_a_lease_whose_owner_has_moved_on_is_free() -> None:
    """A rolled back leader does not block others: the owner's newer block counts (M24)."""
    assert stories.owner_has_moved_on() == "owner"


def test_a_daemon_that_is_replaced_in_time_keeps_its_leases() -> None:
    """Its user goes on for ten times as long as others wait for the dead; then they get it."""
    assert adoption_stories.adopted_in_time() == adoption_stories.Adopted((), True, True)


def test_a_daemon_that_is_replaced_too_late_does_not() -> None:
    """Its record still stands, but others have taken what it held (M2)."""
    assert adoption_stories.adopted_too_late() == "AdoptionRefused"


def test_a_daemon_does_not_go_on_with_anothers_host_id() -> None:
    """A note that is in time says nothing of who has the host id now (M1)."""
    assert adoption_stories.adopted_by_an_old_note() == "AdoptionRefused"


def test_a_ballot_whose_daemon_was_replaced_blocks_nobody() -> None:
    """What might be completed in its name is given up by its successor (M8)."""
    assert adoption_stories.adopted_in_a_ballot() == "owner"
