"""Which commands a runner is to get, out of all that are unfinished."""

from __future__ import annotations

from models.command import CommandStatus, Queued, deliverable


def command(name: str, status: str = "pending", runner: str | None = None, agent: str = "a") -> Queued:
    return Queued(name, agent, int(name), CommandStatus(status), 0, runner)


def given(*queue: Queued, to: str = "r", driver: str | None = None) -> list[str]:
    return [one.key for one in deliverable(queue, to, {"a": driver, "b": None})]


def test_driver_gets_what_is_for_its_agent() -> None:
    """And no other does."""
    assert given(command("1"), command("2"), driver="r") == ["1", "2"]
    assert given(command("1"), command("2"), driver="other") == []


def test_without_a_driver_anyone_of_the_pool_gets_it() -> None:
    """Unless it is somebody's already."""
    assert given(command("1")) == ["1"]
    assert given(command("1", "sent", "other")) == []
    assert given(command("1", "sent", "r")) == ["1"]


def test_acknowledged_commands_are_not_sent_again() -> None:
    """What comes after them is."""
    assert given(command("1", "acked", "r"), command("2"), driver="r") == ["2"]


def test_later_commands_wait_for_what_another_has_in_hand() -> None:
    """Also when the agent is driven by us by now; another agent's do not."""
    queue = (command("1", "acked", "other"), command("2"), command("3", agent="b"))
    assert given(*queue, driver="r") == ["3"]
    assert given(*queue) == ["3"]


def test_sent_command_follows_its_agent() -> None:
    """Whoever drives it now gets what another did not acknowledge."""
    assert given(command("1", "sent", "other"), driver="r") == ["1"]
