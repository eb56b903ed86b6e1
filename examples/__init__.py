"""Example programs built on aembus; nothing in the package itself imports them."""
