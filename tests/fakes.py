"""Stand-ins that tests pass instead of the real thing."""
import threading
from datetime import timedelta


class FakeClock:
    """A clock that stands still until a test moves it. Same interface as bullet_qmt.Clock."""

    def __init__(self, start):
        self._lock = threading.Lock()
        self._now, self._monotonic = start, 0.0

    def now(self):
        with self._lock:
            return self._now

    def monotonic(self):
        with self._lock:
            return self._monotonic

    def set(self, moment):
        """Jump to a wall time; the monotonic counter goes on by what lies between, never back."""
        with self._lock:
            self._monotonic += max(0.0, (moment - self._now).total_seconds())
            self._now = moment

    def step(self, seconds):
        """Somebody sets the wall clock: no time has gone by."""
        with self._lock:
            self._now += timedelta(seconds=seconds)

    def advance(self, seconds):
        with self._lock:
            self._now += timedelta(seconds=seconds)
            self._monotonic += seconds


class Hours:
    """Waits in the place of a keeper's pauses: each ends at once and moves the clock by what it would have lasted.

    After so many `attempts` it sets `done` and waits for the event like the real one.
    """

    def __init__(self, clock, attempts):
        self.clock, self.attempts, self.done, self.seen = clock, attempts, threading.Event(), []

    def __call__(self, event, seconds):
        self.clock.advance(seconds)
        self.seen.append(seconds)
        if len(self.seen) >= self.attempts:
            self.done.set()
            event.wait(20)
