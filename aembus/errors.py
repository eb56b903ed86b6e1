"""Every error that aembus raises on purpose, in one place so that nothing imports in a circle.

*Closed* means you did it, *broken* means the other side did.  Each message ends with the values
that caused it, and says the way out where there is one.
"""

from __future__ import annotations


class AembusError(Exception):
    """Base of all errors below."""


# --- using a bus -----------------------------------------------------------------------------


class BusClosed(AembusError):
    """This process closed the bus object that it now tries to use."""


class BusBroken(AembusError):
    """The supervisor is gone, so nothing can be delivered any more."""


class ForkedBusError(AembusError):
    """A bus object was used in a forked child; the child must connect for itself."""


class InboxFull(AembusError):
    """A concerned inbox had no room in time.  Nothing was sent to anybody."""


class JobNotInHand(AembusError):
    """A job cannot be held or completed: it was completed already, or was never held."""


class JobFailed(AembusError):
    """A held job was completed by `job.fail`; a caller finds this as CallFailed.error_type."""


class JobTooLarge(AembusError):
    """A job is larger than half a lane.  Nothing was sent."""


class DataMismatch(AembusError, TypeError):
    """What was activated at a typed point does not fit its class, at either end."""


class RegistrationError(AembusError):
    """An event could not be registered: a duplicate, or options that do not fit."""


class Refused(AembusError):
    """Raise it in a constructor or a handler: this job is not for you, and that is no failure.

    The job is done then and not tried again; it is counted, and a caller gets CallFailed with this
    text.
    """


class CallFailed(AembusError):
    """A call has no result; carries what the called side raised as text, never as an object.

    error_type: the name of the remote exception's type; or of aembus itself: NobodyRegistered,
        SeveralRegistered, CallCycle, MemberGone, JobFailed, DeadLetter, ChildEnded.
    text, traceback_text: of the remote exception.
    event: the name of the event whose handler failed; empty if none did.
    """

    def __init__(
        self, error_type: str, text: str, traceback_text: str = "", event: str = ""
    ) -> None:
        super().__init__(f"{error_type}: {text}")
        self.error_type = error_type
        self.text = text
        self.traceback_text = traceback_text
        self.event = event

    def __reduce__(self) -> tuple[type[CallFailed], tuple[str, str, str, str]]:
        return type(self), (self.error_type, self.text, self.traceback_text, self.event)


class CallTimeout(AembusError):
    """No answer came in time; a late one is dropped and counted."""


# --- opening shared memory and joining a bus --------------------------------------------------


class OpenError(AembusError):
    """Base of what can go wrong when something shared is created or opened."""


class BusNotFound(OpenError):
    """No supervisor runs a bus of this name."""


class BusAlreadyRunning(OpenError):
    """Another supervisor owns a bus of this name."""


class NotReady(OpenError):
    """A segment exists but its creator has not finished (or did not live to finish) it."""


class VersionMismatch(OpenError):
    """A segment or a peer speaks another layout version."""


class CorruptSegment(OpenError):
    """A segment's header or size is not what its creator wrote."""


class PermissionRefused(OpenError):
    """The bus belongs to another user."""


class OutOfSharedMemory(OpenError):
    """/dev/shm has too little space for what was asked."""


class SlotsExhausted(OpenError):
    """The bus has no free slot for another member."""


class NameInUse(OpenError):
    """Another living process, or a worker, is the member of this name."""


class ControlError(AembusError):
    """The supervisor refused a request, or its answer did not come in time."""


# --- supervision and services -----------------------------------------------------------------


class SupervisorError(AembusError):
    """The supervisor could not start, or ended because a worker never came up."""


class ServiceError(AembusError):
    """Base of what can go wrong with services."""


class ServiceNotFound(ServiceError):
    """No such service, version or call is hosted on this bus."""


class ProcessNotFound(ServiceError):
    """No process has the pid that is to be watched."""


class ServiceLoadError(ServiceError):
    """A service could not be loaded; what ran before still runs."""


def text_of(error: BaseException) -> str:
    """Return an exception's text so that it can be sent: its own faults cost nobody the answer.

    What is no Unicode (a file's name that is no UTF-8, for instance) is written as its escape.
    """
    try:
        text = str(error)
    except Exception:
        return "<its text cannot be had>"
    return text.encode("utf-8", "backslashreplace").decode()
