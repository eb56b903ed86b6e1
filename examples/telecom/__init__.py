"""A SIP responder over TCP on an aembus bus: calls that outlive the worker that holds them."""
