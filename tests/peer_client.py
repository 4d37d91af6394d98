"""The other end of peer_driver.Peer: runs in the peer's environment and does what stdin says with the peer's classes.

Each line in is a JSON object: number, call ('module:name', 'kept', 'kept.method', ...), args, kwargs and keep, a name
for the result. Each line out has the number and a value or an error. Further entries of sys.path are the arguments.
Runs on CPython 3.6 too, where the peer's copy-and-paste helper has to.
"""
import asyncio
import importlib
import inspect
import json
import queue
import sys
from datetime import date, datetime

KEPT = {}


class Ticks:
    """A tick callback that keeps what it is called with."""

    def __init__(self):
        self._seen = queue.Queue()

    def __call__(self, *arguments):
        self._seen.put(arguments)

    def next(self, timeout_s):
        """The arguments of the next call; queue.Empty if there is none in time."""
        return self._seen.get(timeout=timeout_s)

    def drop_all(self):
        """Forgets what has come so far; how much it was."""
        count = 0
        while not self._seen.empty():
            self._seen.get()
            count += 1
        return count


def find(path):
    """'module:name' -> that of the module; 'name.attribute' -> that of something kept."""
    if ':' in path:
        module, _, name = path.partition(':')
        return getattr(sys.modules[__name__] if module == 'peer_client' else importlib.import_module(module), name)
    parts = path.split('.')
    found = KEPT[parts[0]]
    for name in parts[1:]:
        found = getattr(found, name)
    return found


def given(value):
    """JSON -> argument; {"$kept": name} and {"$time": text} stand for what JSON lacks."""
    if isinstance(value, dict) and '$kept' in value:
        return KEPT[value['$kept']]
    if isinstance(value, dict) and '$time' in value:
        return datetime.strptime(value['$time'], '%Y-%m-%d %H:%M:%S')
    if isinstance(value, dict):
        return {key: given(item) for key, item in value.items()}
    return [given(item) for item in value] if isinstance(value, list) else value


def plain(value):
    """What JSON can hold of a result."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if type(value).__name__ == 'DataFrame':
        return frame(value)
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(value.item()) if hasattr(value, 'item') else dict(plain(vars(value)), type=type(value).__name__)


def frame(value):
    return {'columns': plain(list(value.columns)), 'columns_type': type(value.columns).__name__,
            'columns_names': plain(list(value.columns.names)), 'index': plain(list(value.index)),
            'index_type': type(value.index).__name__, 'index_names': plain(list(value.index.names)),
            'dtypes': [str(dtype) for dtype in value.dtypes],
            'rows': [plain(list(row)) for row in value.itertuples(index=False, name=None)]}


def complaint(error):
    told = {name: plain(getattr(error, name, None)) for name in ('code', 'idempotency_key', 'resolution')}
    return dict(told, types=[cls.__name__ for cls in type(error).__mro__], message=str(error))


def run(command):
    result = find(command['call'])
    if callable(result):
        result = result(*given(command['args']), **given(command['kwargs']))
    if inspect.iscoroutine(result):
        result = LOOP.run_until_complete(result)
    if command.get('keep'):
        KEPT[command['keep']] = result
        return {'value': None}
    return {'value': plain(result)}


def answer(command):
    try:
        return dict(run(command), number=command['number'])
    except Exception as error:
        return {'error': complaint(error), 'number': command['number']}


def main(out):
    for line in sys.stdin:
        out.write(json.dumps(answer(json.loads(line))) + '\n')
        out.flush()


if __name__ == '__main__':
    LOOP = asyncio.new_event_loop()
    sys.path[1:1] = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # what the peer prints must not mix with the answers
    main(answers)
