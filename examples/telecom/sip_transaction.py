"""What a SIP user agent server answers: transactions, dialogs and calls as tables, no I/O.

What it is: pure. In go a whole message, a ring that ended, a wake-up, with `now` in seconds of a
monotonic clock; out comes a list of actions (sip_actions) for somebody else to carry out.
Who uses it: each worker has one SipServer of its own (responder.py); tests drive it by hand.

    message ───► receive ─┐                  ┌─► Send
    ring over ─► answer ──┼─► list[Action] ──┼─► StartTimer: names a point and carries the final
    wake-up ───► tick ────┘                  │     response, so any worker can answer the call
                                             └─► CancelTimer, Wake, Close, Count

How a call survives kill -9 of its worker: nothing that a later message needs is in this process
alone. The final response waits in the ring timer, outside. The To-tag is a keyed hash of Call-ID
and From-tag with a secret that all workers share, so a replacement recognises the dialog of a
dead worker by its tag: ACK, BYE and re-INVITE are served though it never saw the INVITE. (The
top Via is no part of the hash: a request within a dialog need not come by the INVITE's way.)

Guarantees:
- A repeated request gets its last response again, for 32 s, and changes nothing.
- A 2xx to INVITE is repeated (after 0.5 s, doubling to 4 s) until its ACK, for 32 s at most, and
  no longer than it is remembered.
- State is bounded in time and number. Above the limit new calls get 503 and old answers are
  forgotten early; a call that rings is not.
- `receive` raises nothing, whatever a peer sent.

What is lost with a worker: repetitions of its last responses, the CANCEL of a call that it let
ring (481, and the call is answered), and the bindings of its REGISTERs.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf

from . import sip_sdp
from .sip_actions import Action, CancelTimer, Close, Count, Send, StartTimer, Wake
from .sip_inspection import ALLOW, CAPABILITIES, SDP, inspect, is_sdp
from .sip_memory import Memory
from .sip_message import Header, Request, Response, SipMessage, build_response, parse, refusal
from .sip_records import LIFE_S, T2_S, Dialog, State, Transaction, transaction_key
from .sip_registrar import Registrar
from .sip_source import mark_source
from .sip_syntax import SipError, SipSyntaxError, parse_number

WAKE_GRAIN_S = 0.02  # wake-ups closer together than this are made one
WAKE_LATE_S = 1.0  # a wake-up that is overdue by more is asked for again
FORGET_GRAIN_S = 1.0
RETRY_AFTER: Header = (b"Retry-After", b"5")
IN_DIALOG = (b"INVITE", b"BYE", b"OPTIONS")  # methods whose To-tag, if there is one, must be ours
_DELTA_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What a SipServer is told; the same in every worker.

    secret: makes the To-tags. contact: the URI in our Contact. host: the address in our session
    descriptions. Both are taken from the Request-URI where they are b"". users: the user parts
    that exist; None: any does.
    """

    secret: bytes
    contact: bytes = b""
    host: bytes = b""
    ring_s: float = 0.0
    users: frozenset[bytes] | None = None
    records_max: int = 20_000


@dataclass(slots=True)
class _Turn:
    """One input being dealt with."""

    connection: int
    now: float
    key: bytes = b""  # of the request's transaction
    tag: bytes = b""  # the To-tag that is right for the request
    actions: list[Action] = field(default_factory=list)

    def count(self, name: str) -> None:
        self.actions.append(Count(name))


class SipServer:
    """Decides what to answer; see the module's text."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        key = hashlib.blake2b(settings.secret, digest_size=32).digest()
        self._hash = hashlib.blake2b(key=key, digest_size=8)
        self._transactions: Memory[Transaction] = Memory(settings.records_max)
        self._dialogs: Memory[Dialog] = Memory(settings.records_max)
        self._registrar = Registrar()
        self._ringing = 0
        self._repeats: list[tuple[float, int, Transaction]] = []
        self._serial = count()
        self._wake_at = inf
        self._methods = {
            b"INVITE": self._invite,
            b"BYE": self._bye,
            b"CANCEL": self._cancel,
            b"OPTIONS": self._options,
            b"REGISTER": self._register,
        }

    @property
    def remembered(self) -> int:
        """How many transactions and dialogs are remembered."""
        return len(self._transactions) + len(self._dialogs)

    def receive(self, data: bytes, connection: int, now: float, peer: str = "") -> list[Action]:
        """Take one whole message that came down a connection.

        Args: peer: the address at its other end, for the Via; "" where it is not known.
        """
        turn = _Turn(connection, now)
        try:
            message = parse(data)
            if isinstance(message, Request):
                message.check()
                mark_source(message, peer)
                self._request(message, turn)
            else:
                turn.count("responses_dropped")
        except SipError as error:
            turn.count("bad_messages")
            answer = refusal(data, error)
            if answer:
                turn.actions.append(Send(connection, answer))
            if error.close:
                turn.actions.append(Close(connection))
        self._tidy(turn)
        return turn.actions

    def answer(self, timer: bytes, connection: int, response: bytes, now: float) -> list[Action]:
        """Take a ring timer that fired; this process or one that is gone had started it."""
        turn = _Turn(connection, now)
        invite = self._transactions.get(timer)
        if invite is None:
            invite, response = self._take_over(timer, response, turn)
            turn.count("calls_taken_over")
        elif invite.state is State.PROCEEDING:
            self._ringing -= 1
        else:  # cancelled while the timer was on its way, or delivered a second time
            return []
        self._finish(invite, response, turn)
        self._tidy(turn)
        return turn.actions

    def tick(self, now: float) -> list[Action]:
        """Take a wake-up: repeat and forget what is due."""
        turn = _Turn(0, now)
        self._wake_at = inf
        while self._repeats and self._repeats[0][0] <= now:
            invite = heappop(self._repeats)[2]
            if invite.state is State.ACCEPTED and now < invite.forget_at:
                turn.actions.append(Send(invite.connection, invite.response))
                turn.count("responses_repeated")
                invite.repeat_s = min(2 * invite.repeat_s, T2_S)
                self._repeat_later(invite, now)
        self._tidy(turn)
        return turn.actions

    def _request(self, request: Request, turn: _Turn) -> None:
        method = request.method
        turn.tag = self._dialog_tag(request)
        if method == b"ACK":
            self._ack(request, turn)
            return
        turn.key = transaction_key(request, method)
        known = self._transactions.get(turn.key)
        if known is not None:
            known.connection = turn.connection
            turn.actions.append(Send(turn.connection, known.response))
            turn.count("requests_repeated")
            return
        refused = inspect(request, self._settings.users)
        if refused is not None:
            self._refuse(request, refused.status, turn, refused.headers)
        elif method not in IN_DIALOG or self._fits_dialog(request, turn):
            self._methods[method](request, turn)

    def _fits_dialog(self, request: Request, turn: _Turn) -> bool:
        """Refuse a request that says it is within a dialog and cannot be."""
        tag = request.to.tag
        status = 0
        if tag is None:
            status = 481 if request.method == b"BYE" else 0
        elif not hmac.compare_digest(tag, turn.tag):
            status = 481
        elif (dialog := self._dialogs.get(tag)) is not None:
            # Without a record it is of a worker that is gone, or older than the memory: welcome.
            if dialog.ended:
                status = 481
            elif request.cseq.number < dialog.cseq:
                status = 500
            else:
                dialog.cseq = request.cseq.number
                dialog.forget_at = max(dialog.forget_at, turn.now + LIFE_S)
        if status:
            self._refuse(request, status, turn)
        return not status

    def _invite(self, request: Request, turn: _Turn) -> None:
        number = request.cseq.number
        in_dialog = request.to.tag is not None
        dialog = self._dialogs.get(turn.tag)
        before = dialog.invite if dialog is not None else None
        if before is not None:
            if not in_dialog and before.cseq == number:  # it came by two ways
                self._refuse(request, 482, turn)
                return
            if before.state is State.PROCEEDING:
                self._refuse(request, 500, turn, (RETRY_AFTER,))
                return
        if self._ringing >= max(1, self._settings.records_max // 2):
            self._refuse(request, 503, turn, (RETRY_AFTER,))
            return
        rings_s, final = (0.0, 200) if in_dialog else self._ring(request)
        forget_at = turn.now + rings_s + LIFE_S
        invite = Transaction(turn.key, forget_at, turn.connection, b"", number)
        self._remember(invite)
        if in_dialog and dialog is not None:
            dialog.invite = invite
        else:
            self._dialogs.put(Dialog(turn.tag, forget_at, number, invite))
        response = self._final(request, final, turn.tag)
        if not rings_s:
            self._finish(invite, response, turn)
            return
        self._ringing += 1
        invite.request = request
        ringing = build_response(request, 180, turn.tag, self._dialog_headers(request))
        invite.response = ringing
        trying = build_response(request, 100)
        turn.actions.append(Send(turn.connection, trying + ringing))
        turn.actions.append(
            StartTimer(turn.key, rings_s, request.call_id, turn.connection, response)
        )

    def _ring(self, request: Request) -> tuple[float, int]:
        """How long a call rings, and its final status: 487 where its Expires comes first."""
        ring_s = self._settings.ring_s
        expires = request.get(b"Expires")
        if expires is not None and ring_s:
            try:
                expires_s = parse_number(expires, _DELTA_MAX, "Expires")
            except SipSyntaxError:
                return ring_s, 200
            if expires_s < ring_s:
                return float(expires_s), 487
        return ring_s, 200

    def _final(self, request: Request, status: int, tag: bytes) -> bytes:
        if status != 200:
            return build_response(request, status, tag)
        offer = request.body if is_sdp(request) else b""
        host = self._settings.host or request.target.host.strip(b"[]")
        headers = [*self._dialog_headers(request), ALLOW, (b"Content-Type", SDP)]
        return build_response(request, 200, tag, headers, sip_sdp.answer(offer, host))

    def _dialog_headers(self, request: Request) -> list[Header]:
        contact = self._settings.contact
        if not contact:
            target = request.target
            port = b"" if target.port is None else b":%d" % target.port
            contact = b"sip:" + target.host + port + b";transport=tcp"
        routes = [(b"Record-Route", value) for value in request.get_all(b"Record-Route")]
        return [*routes, (b"Contact", b"<" + contact + b">")]

    def _finish(self, invite: Transaction, response: bytes, turn: _Turn) -> None:
        """Send an INVITE's final response."""
        invite.response = response
        invite.request = None
        invite.forget_at = turn.now + LIFE_S
        turn.actions.append(Send(invite.connection, response))
        accepted = response.startswith(b"SIP/2.0 2")
        moved = invite.move("2xx" if accepted else "refusal")
        assert moved, f"final response twice, state={invite.state}"
        turn.count("calls" if accepted else "calls_cancelled")
        if accepted:
            self._repeat_later(invite, turn.now)

    def _terminate(self, invite: Transaction, turn: _Turn) -> None:
        """End a call that rings: 487 to its INVITE."""
        assert invite.request is not None, f"nothing rings, state={invite.state}"
        self._ringing -= 1
        turn.actions.append(CancelTimer(invite.key))
        tag = self._dialog_tag(invite.request)
        self._finish(invite, build_response(invite.request, 487, tag), turn)

    def _take_over(self, timer: bytes, response: bytes, turn: _Turn) -> tuple[Transaction, bytes]:
        """Make the records of an INVITE that this process never saw from its final response.

        Returns: its record, and what to answer: a 487 where a BYE came before.
        """
        message = parse(response)
        assert isinstance(message, Response), f"not a response={response[:80]!r}"
        forget_at = turn.now + LIFE_S
        number = message.cseq.number
        invite = Transaction(timer, forget_at, turn.connection, response, number)
        self._remember(invite)
        tag = self._dialog_tag(message)
        dialog = self._dialogs.get(tag)
        if dialog is None:
            self._dialogs.put(Dialog(tag, forget_at, number, invite))
        elif dialog.ended:
            response = build_response(message, 487, tag)
        elif dialog.invite is not None and dialog.invite.state is State.LOST:
            dialog.invite = invite
        return invite, response

    def _ack(self, request: Request, turn: _Turn) -> None:
        """An ACK is never answered: for a refusal it has the INVITE's key, else a new one."""
        invite = self._transactions.get(transaction_key(request, b"INVITE"))
        if invite is None and request.to.tag == turn.tag:
            dialog = self._dialogs.get(turn.tag)
            if dialog is None:
                return  # of a worker that is gone, or older than the memory
            if dialog.invite is not None and dialog.invite.cseq == request.cseq.number:
                invite = dialog.invite
        if invite is None or not invite.move("ack"):
            turn.count("acks_unmatched")

    def _bye(self, request: Request, turn: _Turn) -> None:
        dialog = self._dialogs.get(turn.tag)
        self._reply(request, 200, turn)
        turn.count("calls_ended")
        if dialog is None:  # it may ring still: in the timer of a worker that is gone
            number, forget_at = request.cseq.number, turn.now + self._settings.ring_s + LIFE_S
            self._dialogs.put(Dialog(turn.tag, forget_at, number, ended=True))
            return
        dialog.ended = True
        invite = dialog.invite
        if invite is not None and invite.state is State.PROCEEDING:
            self._terminate(invite, turn)
        elif invite is not None:
            invite.move("bye")

    def _cancel(self, request: Request, turn: _Turn) -> None:
        invite = self._transactions.get(transaction_key(request, b"INVITE"))
        if invite is None:
            self._refuse(request, 481, turn)
            return
        self._reply(request, 200, turn)
        if invite.state is State.PROCEEDING:
            self._terminate(invite, turn)

    def _options(self, request: Request, turn: _Turn) -> None:
        self._reply(request, 200, turn, CAPABILITIES)

    def _register(self, request: Request, turn: _Turn) -> None:
        status, headers = self._registrar.register(request, turn.now)
        turn.count("registrations" if status == 200 else "requests_refused")
        self._reply(request, status, turn, headers)

    def _refuse(
        self, request: Request, status: int, turn: _Turn, headers: tuple[Header, ...] = ()
    ) -> None:
        """Refuse without remembering it."""
        turn.count("requests_refused")
        response = build_response(request, status, turn.tag, headers)
        turn.actions.append(Send(turn.connection, response))

    def _reply(
        self, request: Request, status: int, turn: _Turn, headers: tuple[Header, ...] = ()
    ) -> None:
        """Answer a request other than INVITE, and remember the answer."""
        response = build_response(request, status, turn.tag, headers)
        turn.actions.append(Send(turn.connection, response))
        record = Transaction(turn.key, turn.now + LIFE_S, turn.connection, response)
        record.state = State.CONFIRMED
        self._remember(record)

    def _remember(self, record: Transaction) -> None:
        gone = self._transactions.put(record)
        if gone is not None:
            rang = gone.state is State.PROCEEDING
            if gone.move("late") and rang:
                self._ringing -= 1  # its timer may still come: it is taken over then

    def _dialog_tag(self, message: SipMessage) -> bytes:
        """The To-tag that every worker gives to this call."""
        keyed = self._hash.copy()
        keyed.update(message.call_id + b"\0" + (message.from_.tag or b""))
        return keyed.hexdigest().encode("ascii")

    def _repeat_later(self, invite: Transaction, now: float) -> None:
        heappush(self._repeats, (now + invite.repeat_s, next(self._serial), invite))

    def _tidy(self, turn: _Turn) -> None:
        """Forget what is due, and see to it that the next wake-up comes."""
        now = turn.now
        for gone in self._transactions.forget(now):
            if gone.state is State.ACCEPTED:
                turn.count("calls_unacknowledged")
            elif gone.move("late"):  # the end of its ring never came
                self._ringing -= 1
                turn.actions.append(CancelTimer(gone.key))
        self._dialogs.forget(now)
        while self._repeats and self._repeats[0][2].state is not State.ACCEPTED:
            heappop(self._repeats)
        wake_at = FORGET_GRAIN_S + min(self._transactions.next_at(), self._dialogs.next_at())
        if self._repeats:
            wake_at = min(wake_at, self._repeats[0][0])
        wake_at = max(wake_at, now + WAKE_GRAIN_S)
        is_lost = self._wake_at + WAKE_LATE_S < now  # it was asked for and never came
        if wake_at < self._wake_at or is_lost:
            self._wake_at = wake_at
            turn.actions.append(Wake(wake_at - now))
