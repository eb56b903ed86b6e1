from __future__ import annotations

from aembus.supervisor.restarts import GiveUp, Restart, RestartHistory, decide


def ready() -> RestartHistory:
    """Return the history of a worker that has come up."""
    return RestartHistory(ever_ready=True)


def test_a_worker_that_never_came_up_is_given_up() -> None:
    """Starting it again would only repeat the failure."""
    assert isinstance(decide(RestartHistory(), 0.0, progress=False), GiveUp)


def test_deaths_with_progress_are_answered_at_once() -> None:
    """A worker that does its work is replaced at once, however often it dies."""
    history = ready()
    for death in range(100):
        assert decide(history, death * 0.1, progress=True) == Restart(0.0, degraded=False)
    assert history.deaths == 100


def test_deaths_without_progress_are_answered_ever_more_slowly() -> None:
    """Two are free, then the pause doubles up to its bound, and the worker is degraded."""
    history = ready()
    decisions = [decide(history, 0.0, progress=False) for _ in range(14)]
    assert decisions[:2] == [Restart(0.0, degraded=False)] * 2
    assert [d.delay_s for d in decisions[2:5] if isinstance(d, Restart)] == [0.1, 0.2, 0.4]
    assert decisions[-1] == Restart(30.0, degraded=True)


def test_progress_forgives() -> None:
    """One finished job, and the next death is answered at once again."""
    history = ready()
    for _ in range(6):
        decide(history, 0.0, progress=False)
    assert decide(history, 1.0, progress=True) == Restart(0.0, degraded=False)
    assert decide(history, 2.0, progress=False) == Restart(0.0, degraded=False)


def test_old_deaths_are_forgotten() -> None:
    """Deaths further apart than the period do not add up."""
    history = ready()
    for death in range(10):
        assert decide(history, death * 31.0, progress=False) == Restart(0.0, degraded=False)


def test_the_pause_stays_at_its_bound() -> None:
    """However long it goes on: the pauses themselves forgive nothing, and it stays degraded."""
    history = ready()
    now, decisions = 0.0, []
    for _ in range(60):
        now += 0.2  # it lives for so long
        decision = decide(history, now, progress=False)
        assert isinstance(decision, Restart)
        decisions.append(decision)
        now += decision.delay_s
    pauses = [decision.delay_s for decision in decisions]
    assert pauses == sorted(pauses)
    assert decisions[-40:] == [Restart(30.0, degraded=True)] * 40
    now += 31.0
    assert decide(history, now, progress=False) == Restart(0.0, degraded=False)
