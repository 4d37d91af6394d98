"""A stand-in for JoinQuant's simulated trading: its API, its context, and a process per task with pickled state.

As there, a new process reruns the strategy's module, then puts back what was saved: each global that could be pickled
(names with __ and what cannot be pickled are lost), g, and the context. Only then comes process_initialize.
"""
import builtins
import enum
import json
import os
import pickle
import sys
import types
from datetime import datetime

STRATEGY = 'strategy.py'
READ_ONLY = ('portfolio', 'subportfolios', 'run_params')
NOW = datetime(2024, 1, 8, 10, 0)


class OrderStatus(enum.Enum):
    new, open, filled, canceled, rejected, held = 8, 0, 1, 2, 3, 4

    def __str__(self):
        return self.name


class Log:
    lines = []

    def warn(self, text, *args):
        self.lines.append(text)
        print('WARNING - %s' % text)

    def info(self, text, *args):
        print('INFO - %s' % text)


class LimitOrderStyle:
    def __init__(self, limit_price):
        self.limit_price = limit_price


class MarketOrderStyle:
    def __init__(self, limit_price=None):
        self.limit_price = limit_price


class StopMarketOrderStyle:
    def __init__(self, mode, stop_price):
        self.mode, self.stop_price = mode, stop_price


class Portfolio:
    """The simulation's own, which never trades here."""

    def __init__(self):
        self.total_value, self.positions = 77.0, {}


class RunParams:
    def __init__(self, type):
        self.type = type


class Context:
    """Attributes of its own beside read-only ones, as JoinQuant's."""

    def __init__(self, type='sim_trade'):
        self._portfolio, self.run_params, self.current_dt = Portfolio(), RunParams(type), NOW

    @property
    def portfolio(self):
        return self._portfolio

    @property
    def subportfolios(self):
        return [self._portfolio]


class SlotsContext:
    """One whose pickle is made of what its attributes give."""

    __slots__ = ('portfolio', 'subportfolios', 'run_params', 'current_dt', 'name', 'kept')

    def __init__(self, type='sim_trade'):
        self.portfolio = Portfolio()
        self.subportfolios, self.run_params, self.current_dt = [self.portfolio], RunParams(type), NOW


class StatefulContext(Context):
    """One that says itself what is saved, and does not let itself be written to from outside."""

    def __getstate__(self):
        return dict(vars(self), portfolio=self.portfolio)

    def __setstate__(self, state):
        state.pop('portfolio')
        vars(self).update(state)

    def __setattr__(self, name, value):
        if name in READ_ONLY and name in vars(self):
            raise AttributeError('%s is read-only' % name)
        object.__setattr__(self, name, value)


CONTEXTS = {cls.__name__: cls for cls in (Context, SlotsContext, StatefulContext)}


def _native(name):
    def function(*args, **how):
        raise AssertionError('JoinQuant\'s own %s was called' % name)
    function.__name__ = function.__qualname__ = name
    return function


NATIVE = ('order', 'order_value', 'order_target', 'order_target_value', 'cancel_order', 'get_open_orders', 'get_orders',
          'get_trades', 'batch_submit_orders', 'inout_cash', 'run_daily')
for _name in NATIVE:
    globals()[_name] = _native(_name)
log = Log()
__all__ = list(NATIVE) + ['log', 'OrderStatus', 'LimitOrderStyle', 'MarketOrderStyle', 'StopMarketOrderStyle']


class G:
    """g: its attributes are saved one by one."""


def fresh_namespace(source):
    """The globals of a strategy whose module has run, with an empty g."""
    sys.modules.setdefault('jqdata', sys.modules[__name__])
    namespace = {'__name__': 'strategy', '__builtins__': builtins, 'g': G()}
    exec(compile(source, STRATEGY, 'exec'), namespace)
    return namespace


# -- one process ---------------------------------------------------------------------------------------------------
class NoHelper:
    """While state is read nobody may need jq_helper or bullet_qmt: the strategy has not imported them yet."""

    def find_spec(self, name, path=None, target=None):
        if name in ('jq_helper', 'bullet_qmt'):
            raise AssertionError('%s is imported by a pickle' % name)


def picklable(values):
    """name -> pickle of those that have one."""
    saved = {}
    for name, value in values.items():
        if not name.startswith('__') and not isinstance(value, (types.ModuleType, types.FunctionType, G)):
            try:
                saved[name] = pickle.dumps(value, 4)
            except (TypeError, AttributeError, pickle.PicklingError):
                continue
    return saved


def save(path, namespace, context):
    state = {'globals': picklable(namespace), 'g': picklable(vars(namespace['g'])), 'context': pickle.dumps(context, 4)}
    with open(path, 'wb') as file:
        pickle.dump(state, file)


def load(path, namespace):
    """The context; namespace and g as they were."""
    assert 'jq_helper' not in sys.modules
    sys.meta_path.insert(0, NoHelper())
    with open(path, 'rb') as file:
        state = pickle.load(file)
    namespace.update((name, pickle.loads(value)) for name, value in state['globals'].items())
    for name, value in state['g'].items():
        setattr(namespace['g'], name, pickle.loads(value))
    context = pickle.loads(state['context'])
    del sys.meta_path[0]
    return context


def main(folder, task, kind='Context', run_type='sim_trade'):
    """Runs one due task of folder/strategy.py in this process and prints what it returns as JSON."""
    with open(os.path.join(folder, STRATEGY), encoding='utf-8') as file:
        namespace = fresh_namespace(file.read())
    path = os.path.join(folder, 'state')
    if os.path.exists(path):
        context = load(path, namespace)
    else:
        context = CONTEXTS[kind](run_type)
        namespace['initialize'](context)
    namespace['process_initialize'](context)
    told = namespace[task](context)
    save(path, namespace, context)
    print('RESULT ' + json.dumps(told))
