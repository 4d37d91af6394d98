"""A stand-in for JoinQuant's simulated trading: its API, its context, and a process per task with pickled state.

As there, a new process reruns the strategy's module, then puts back what was saved: each global that could be pickled
(names with __ and what cannot be pickled are lost), g, and the context. Only then comes process_initialize.
"""
import builtins
import enum
import gc
import importlib
import json
import os
import pickle
import sys
import traceback
import types
from datetime import datetime, timedelta

from tests import joinquant_market

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
    def __init__(self, type, start_date=NOW.date()):
        self.type, self.start_date, self.frequency = type, start_date, 'day'


class Context:
    """Attributes of its own beside read-only ones, as JoinQuant's."""

    def __init__(self, type='sim_trade'):
        self._portfolio, self.run_params, self.current_dt, self.universe = Portfolio(), RunParams(type), NOW, []

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
        CALLED.append(name)
        raise AssertionError('JoinQuant\'s own %s was called' % name)
    function.__name__ = function.__qualname__ = name
    return function


CALLED = []  # of the functions that would trade on JoinQuant's own account
NATIVE = ('order', 'order_value', 'order_target', 'order_target_value', 'cancel_order', 'get_open_orders', 'get_orders',
          'get_trades', 'batch_submit_orders', 'inout_cash')
for _name in NATIVE:
    globals()[_name] = _native(_name)
for _name in joinquant_market.NAMES:
    globals()[_name] = getattr(joinquant_market, _name)
log = Log()
__all__ = NATIVE + joinquant_market.NAMES + ('log', 'OrderStatus', 'LimitOrderStyle', 'MarketOrderStyle',
                                             'StopMarketOrderStyle')


def api_modules():
    """JoinQuant's modules for strategies: the same functions in each. They stay until forget_modules()."""
    sys.modules.setdefault('kuanke', types.ModuleType('kuanke'))
    for name in ('jqdata', 'kuanke.user_space_api'):
        if name not in sys.modules:
            module = sys.modules[name] = types.ModuleType(name)
            module.__all__ = list(__all__)
            vars(module).update((each, globals()[each]) for each in __all__)
    sys.modules['kuanke'].user_space_api = sys.modules['kuanke.user_space_api']
    return [sys.modules['jqdata'], sys.modules['kuanke.user_space_api']]


def forget_modules():
    for name in ('jqdata', 'kuanke', 'kuanke.user_space_api'):
        sys.modules.pop(name, None)


class G:
    """g: its attributes are saved one by one."""


def fresh_namespace(source):
    """The globals of a strategy whose module has run, with an empty g."""
    api_modules()
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
    state = {'globals': picklable(namespace), 'g': picklable(vars(namespace['g'])), 'context': pickle.dumps(context, 4),
             'tasks': joinquant_market.TASKS}
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
    joinquant_market.TASKS[:] = state['tasks']
    del sys.meta_path[0]
    return context


class Task:
    """One due task of folder/strategy.py, in this process from the start of the module to the saving of its state.

    now: T, else the context keeps its own. task: None for the first process, which does no more than initialize.
    """

    def __init__(self, folder, task, kind='Context', run_type='sim_trade', now=None):
        self.task, self.path, self.now = task, os.path.join(folder, 'state'), now
        self.make_context = lambda: CONTEXTS[kind](run_type)
        with open(os.path.join(folder, STRATEGY), encoding='utf-8') as file:
            self.namespace = fresh_namespace(file.read())

    def run(self):
        """What the task returns."""
        started = os.path.exists(self.path)
        self.context = load(self.path, self.namespace) if started else self.make_context()
        self._set_time()
        if not started:
            self.namespace['initialize'](self.context)
        self.namespace['process_initialize'](self.context)
        told = None if self.task is None else self.namespace[self.task](*self._arguments())
        save(self.path, self.namespace, self.context)
        return told

    def _set_time(self):
        if self.now is not None:
            sys.modules.update(KEPT)
            import jq_helper
            told = [self.now - timedelta(minutes=2)]  # JoinQuant begins early
            jq_helper._jq_now, jq_helper.LIMIT_WAIT_S = lambda: told[-1], 0.1
            jq_helper.JqClock.now, jq_helper.JqClock.monotonic = lambda clock: self.now, lambda clock: 0.0
            jq_helper._jq_wait = lambda seconds: told.append(told[-1] + timedelta(seconds=seconds))
            self.context.current_dt = self.now
            self.context.previous_date = self.now.date() - timedelta(1)
            if self.task is None:
                self.context.run_params.start_date = self.now.date()

    def _arguments(self):
        data = (joinquant_market.CurrentData(),) if self.task == 'handle_data' else ()
        return (self.context,) + data


def main(folder, task, kind='Context', run_type='sim_trade'):
    """Runs one due task and prints what it returns as JSON."""
    print('RESULT ' + json.dumps(Task(folder, task, kind, run_type).run()))


# -- one process a task, over simulated days -----------------------------------------------------------------------
KEPT = {}  # modules that a forked process has imported in no time, once it asks for them


def serve(folder, market):
    """Runs, for each line of stdin, a task in a process of its own. The line is JSON: [T, task]."""
    joinquant_market.MARKET = joinquant_market.Market(market)
    importlib.import_module('jq_helper')
    KEPT.update((name, sys.modules.pop(name)) for name in ('jq_helper', 'bullet_qmt'))
    for line in iter(sys.stdin.readline, ''):
        if hasattr(os, 'fork'):
            if not os.fork():
                os._exit(simulate(folder, *json.loads(line)))
            os.wait()
        else:
            afresh(joinquant_market.MARKET).simulate(folder, *json.loads(line))
            gc.collect()  # closes what connections the task left open, as the end of its process would


OWN = ('jq_helper', 'bullet_qmt', 'jqdata', 'kuanke.user_space_api', 'kuanke', 'tests.joinquant',
       'tests.joinquant_market')


def afresh(market):
    """This module, loaded anew with all that a task may change: for systems where a process takes seconds to begin."""
    for name in OWN:
        sys.modules.pop(name, None)
        vars(sys.modules['tests']).pop(name.rpartition('.')[2], None)
    new = importlib.import_module('tests.joinquant')
    new.joinquant_market.MARKET = market
    return new


def simulate(folder, now, name):
    """Prints as JSON what the strategy sees after the task; the process's exit code."""
    now = joinquant_market.MARKET.now = datetime.strptime(now, '%Y-%m-%d %H:%M:%S')
    try:
        task = Task(folder, name, now=now)
        task.run()
        print('RESULT ' + json.dumps(shown(task)), flush=True)
        return 0
    except BaseException:
        traceback.print_exc()
        print('FAILED %s %s' % (now, name), flush=True)
        return 1


def shown(task):
    portfolio, own = task.context.portfolio, task.context._portfolio
    held = {code: [item.total_amount, item.closeable_amount] for code, item in portfolio.positions.items()}
    return {'account': [type(portfolio).__name__, portfolio.total_value, portfolio.available_cash, held],
            'own': [own.total_value, own.positions, CALLED], 'tasks': joinquant_market.TASKS,
            'names': sorted(name for name in task.namespace if not name.startswith('__')),
            'recorded': joinquant_market.RECORDED, 'log': log.lines}
