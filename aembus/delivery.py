"""How jobs come to a bus object: where the program asks for them, or by interrupting it."""

from __future__ import annotations

from typing import Final, Literal

Delivery = Literal["run", "interrupt"]
DELIVERY_RUN: Final = "run"
DELIVERY_INTERRUPT: Final = "interrupt"


def check_delivery(delivery: str, reconnect: bool) -> None:
    """Raise ValueError or AembusError for a delivery that this process cannot have.

    Args:
        delivery, reconnect: as `aembus.connect` has them.
    """
    if delivery not in (DELIVERY_RUN, DELIVERY_INTERRUPT):
        raise ValueError(
            f"delivery is {DELIVERY_RUN!r} or {DELIVERY_INTERRUPT!r}, delivery={delivery!r}"
        )
    if delivery == DELIVERY_INTERRUPT:
        if reconnect:
            raise ValueError("delivery='interrupt' does not go with reconnect=True")
        from aembus.interruption import check_can_interrupt

        check_can_interrupt()
