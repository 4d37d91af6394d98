"""What the workers of all sides share. time.perf_counter is one clock for all processes of a machine."""
import math
import threading
import time


def timed(do, count):
    """Seconds that each of `count` calls took."""
    samples = []
    for _ in range(count):
        begun = time.perf_counter()
        do()
        samples.append(time.perf_counter() - begun)
    return samples


def rate(do, count):
    """Calls a second."""
    begun = time.perf_counter()
    for _ in range(count):
        do()
    return count / (time.perf_counter() - begun)


def calls_between(calls, begin, end):
    """How often these are called, each again and again in a thread of its own, between two times of perf_counter.

    Calls that end after `end` do not count. Whatever one of them raises is raised here.
    """
    counts, errors = [0] * len(calls), []

    def work(place):
        try:
            wait_until(begin)
            while True:
                calls[place]()
                if time.perf_counter() > end:
                    return
                counts[place] += 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(place,), name='load-%d' % place) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
    return sum(counts)


def wait_until(moment):
    threading.Event().wait(max(0.0, moment - time.perf_counter()))


class Arrivals:
    """Ticks of one subscriber as they come: how long each was on the way. One that came already is no news."""

    def __init__(self):
        self._lock, self._seen, self.taken = threading.Lock(), set(), []

    def note(self, symbol, number, stamp):
        late = time.perf_counter() - stamp
        with self._lock:
            if (symbol, number) not in self._seen:
                self._seen.add((symbol, number))
                self.taken.append((number, late))

    def between(self, first, last):
        """Seconds on the way of the ticks whose numbers lie in [first, last)."""
        with self._lock:
            return [late for number, late in self.taken if first <= number < last]


class Pacer:
    """Ticks made at an even pace: the n-th is due `n * step_s` after the start; in bursts of `burst` at once."""

    def __init__(self, symbols, per_second, burst):
        self.symbols, self.burst, self.step_s = symbols, burst, 1.0 / per_second
        self._places = {symbol: place for place, symbol in enumerate(symbols)}
        self.start = time.perf_counter() + 0.01

    def due(self, number):
        return self.start + (number // self.burst) * self.burst * self.step_s

    def count(self, now):
        """How many are due at `now`."""
        return max(0, (math.floor((now - self.start) / (self.step_s * self.burst)) + 1) * self.burst)

    def symbol(self, number):
        return self.symbols[number % len(self.symbols)]

    def newest(self, symbol, now):
        """(number, due time) of the newest tick of a symbol at `now`, or None before its first."""
        place, count = self._places[symbol], len(self.symbols)
        number = self.count(now) - 1
        number -= (number - place) % count
        return (number, self.due(number)) if number >= 0 else None

    def run(self, make, stop):
        """make(symbol, number, stamp) for each as it falls due, until `stop` is set."""
        number = 0
        while not stop.wait(max(0.0, self.due(number) - time.perf_counter())):
            make(self.symbol(number), number, time.perf_counter())
            number += 1


class Ticker:
    """Ticks of a Pacer in a thread of its own, from begin() to end(). made: how many there have been."""

    def begin(self, pacer, make):
        """make(symbol, number, stamp), as of Pacer.run."""
        def make_one(symbol, number, stamp):
            make(symbol, number, stamp)
            self.made = number + 1
        self.made, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=pacer.run, args=(make_one, self._stop), name='pacer', daemon=True)
        self._thread.start()

    def end(self):
        self._stop.set()
        self._thread.join()


def follow(connection, symbols):
    """The Arrivals of these symbols' ticks on a connection, ours or the peer's."""
    arrivals = Arrivals()
    connection.add_event_listener('tick', lambda tick: arrivals.note(
        tick['symbol'], int(tick['volume']), tick['money']))
    connection.subscribe('bench', symbols)
    return arrivals


def arrived_of(followers, first, last):
    """Seconds on the way of the ticks numbered [first, last), of all these Arrivals."""
    return [late for arrivals in followers for late in arrivals.between(first, last)]
