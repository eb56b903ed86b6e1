"""How many TLS handshakes are under way, who makes room, and that they take turns with the rest."""

from __future__ import annotations

import asyncio

from aembus.services.tcp_handshakes import Handshakes

NEVER_S = 3600.0


class Peer:
    """A connection that notes why it was refused."""

    def __init__(self) -> None:
        self.refused_as: list[str] = []

    def refuse(self, counted_as: str, reason: str) -> None:
        """See tcp_handshakes.Shaking."""
        self.refused_as.append(counted_as)


def test_no_more_than_so_many_are_under_way() -> None:
    """Where all have begun a moment ago nobody else may, until one is over."""

    async def run() -> None:
        handshakes = Handshakes(asyncio.get_running_loop(), handshakes_max=2, patience_s=NEVER_S)
        peers = [Peer(), Peer()]
        for peer in peers:
            assert handshakes.has_room()
            handshakes.begin(peer)
        assert not handshakes.has_room()
        handshakes.end(peers[1])
        assert handshakes.has_room()
        assert [peer.refused_as for peer in peers] == [[], []]

    asyncio.run(run())


def test_the_slowest_makes_room() -> None:
    """One whose handshake takes too long is refused, and counted, for the sake of another one."""

    async def run() -> None:
        handshakes = Handshakes(asyncio.get_running_loop(), handshakes_max=2, patience_s=0.0)
        peers = [Peer(), Peer()]
        for peer in peers:
            handshakes.begin(peer)
        assert handshakes.has_room()
        assert [peer.refused_as for peer in peers] == [["handshakes_dropped"], []]
        assert len(handshakes) == 1

    asyncio.run(run())


def test_steps_take_turns_with_everything_else() -> None:
    """Between two steps of handshakes the event loop does what else there is."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        handshakes = Handshakes(loop)
        done: list[str] = []
        over = loop.create_future()

        def do_something_else() -> None:
            done.append("else")
            if done.count("step") < 3:
                loop.call_soon(do_something_else)
            else:
                over.set_result(None)

        for _ in range(3):
            handshakes.take_turn(lambda: done.append("step"))
        loop.call_soon(do_something_else)
        await over
        assert done == ["step", "else"] * 3

    asyncio.run(run())
