"""Runs the cases: warm-up, rounds in which the sides take turns, medians; and says what it was run on."""
import json
import os
import platform
import time
from collections import OrderedDict

import bullet_qmt as bq
from tests.bench import figures as f
from tests.bench.cases import CASES
from tests.bench.growth import GROWTH
from tests.bench.stage import NotHere, Stage, WorkerFailed, cores
from tests.environments import EnvironmentFailed
from tests.processes import run

FAILURES = (NotHere, WorkerFailed, EnvironmentFailed, AssertionError, OSError)


class UnknownCase(Exception):
    """--only names something that is not there; the text has the list."""


def chosen(cases, only):
    known = OrderedDict((case.name, case) for case in cases)
    names = list(known) if only is None else [name.strip() for name in only.split(',')]
    for name in names:
        if name not in known:
            raise UnknownCase('没有项目 %s；有 %s' % (name, '、'.join(known)))
    return [known[name] for name in names]


def measure(case, rounds, notes):
    """Side -> {figure key: median over the rounds}. A side that fails is left out, with a note of why."""
    sides, seen = list(case.sides), OrderedDict()
    for number in range(1 if case.once else rounds + 1):
        turn = number % max(1, len(sides))
        for side in sides[turn:] + sides[:turn]:
            try:
                values = case.round(side)
            except FAILURES as error:
                sides.remove(side)
                notes.append((case.name, side, str(error).strip()))
                continue
            if number or case.once:  # the first one is the warm-up
                seen.setdefault(side, []).append(values)
    return OrderedDict((side, f.medians(values)) for side, values in seen.items() if side in sides)


def machine(stage):
    """What has to be known of where the figures come from."""
    try:
        peer = run([stage.python('peer'), '-c', 'import platform; print(platform.python_version())']).stdout.strip()
    except FAILURES as error:
        peer = str(error)
    return OrderedDict([
        ('python', platform.python_version()), ('peer_python', peer), ('system', platform.platform()),
        ('cores', os.cpu_count()), ('pinned', cores() is not None), ('load', load()),
        ('at', time.strftime('%Y-%m-%d %H:%M'))])


def load():
    """Load averages of 1, 5 and 15 minutes, or None where there are none."""
    return list(os.getloadavg()) if hasattr(os, 'getloadavg') else None


def bench(options, say):
    try:
        cases = chosen(GROWTH if options.growth else CASES, options.only)
    except UnknownCase as error:
        say(str(error))
        return 2
    rounds = options.rounds or (1 if options.quick else 2 if options.growth else 3)
    stage, notes, rows = Stage(), [], []
    try:
        told = machine(stage)
        for case in cases:
            say('%s ...' % case.title)
            rows += f.rows_of(case, measure(case(stage, options.quick), rounds, notes))
    finally:
        close(stage, notes)
    told.update(rounds=rounds, quick=options.quick, load_after=load())
    show(told, rows, notes, options.json)
    return 1 if any(side == 'ours' for _, side, _ in notes) else 0


def close(stage, notes):
    """A server that does not stop is told of like any failure: what was measured before is shown all the same."""
    try:
        stage.close()
    except FAILURES as error:
        notes.append(('stop', 'ours', str(error)))


def show(told, rows, notes, as_json):
    if as_json:
        text = json.dumps(OrderedDict([('machine', told), ('rows', [f.as_dict(row) for row in rows]), (
            'failures', [dict(zip(('case', 'side', 'why'), note)) for note in notes])]), indent=1)
    else:
        text = '\n'.join([headline(told), ''] + [f.table(rows)] + [
            '%s/%s 没有测成：%s' % (name, side, why.splitlines()[-1]) for name, side, why in notes])
    bq.make_console_safe()
    print(text)


def headline(told):
    loads = ' → '.join('/'.join('%.1f' % value for value in part) for part in (told['load'], told['load_after'])
                       if part)
    return '%s，Python %s（bullet-trade：%s），%d 核，%s，负载 %s，%d 轮的中位数%s，%s' % (
        told['system'], told['python'], told['peer_python'], told['cores'],
        '单连接项目两端各占一核' if told['pinned'] else '没有绑核', loads or '未知', told['rounds'],
        '（快测，数字不作数）' if told['quick'] else '', told['at'])
