"""What was measured, what was wanted, and one table of both. Knows nothing about how anything is measured."""
import math
import statistics
from collections import OrderedDict, namedtuple

from bullet_qmt import format_table

HEADERS = ['项目', '指标', '单位', '我们', '裸极限', 'bullet-trade', '我们/裸极限', '我们/对手', '目标', '结果']
ALIGNS = '<<<>>>>><<'

# What a case measures. key: what its rounds call the figure. raw: the side that is its raw limit, with raw_key, if that
# is another figure of it. bars: what it must show.
Figure = namedtuple('Figure', 'key label unit raw raw_key bars')
# text: as in the table. met(ours, raw, peer): whether it holds; None where a figure that it needs is missing.
Bar = namedtuple('Bar', 'text met')
Row = namedtuple('Row', 'case title key label unit ours raw peer bars')


def figure(key, label, unit, *bars, **more):
    return Figure(key, label, unit, more.get('raw', 'raw'), more.get('raw_key', key), bars)


# -- statistics ----------------------------------------------------------------------------------------------------
def percentile(samples, share):
    """The smallest sample that at least this share of them do not exceed (nearest rank). ValueError for none."""
    if not samples:
        raise ValueError('no samples')
    ranked = sorted(samples)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def spread_of(samples, scale):
    """{'p50', 'p99'} of seconds, times `scale`."""
    return {'p50': statistics.median(samples) * scale, 'p99': percentile(samples, 0.99) * scale}


def medians(rounds):
    """[{key: value} of each round] -> {key: median over the rounds}."""
    keys = OrderedDict.fromkeys(key for values in rounds for key in values)
    return {key: statistics.median([values[key] for values in rounds if key in values]) for key in keys}


# -- bars ----------------------------------------------------------------------------------------------------------
def at_most(limit):
    return Bar('≤ %s' % number(limit), lambda ours, raw, peer: ours <= limit)


def at_least(limit):
    return Bar('≥ %s' % number(limit), lambda ours, raw, peer: ours >= limit)


def at_most_raw(factor, plus=0.0):
    text = '≤ %s×裸' % number(factor) + (' + %s' % number(plus) if plus else '')
    return Bar(text, lambda ours, raw, peer: None if raw is None else ours <= factor * raw + plus)


def faster_than_peer(factor):
    return Bar('≤ 对手/%s' % number(factor), lambda ours, raw, peer: None if peer is None else ours * factor <= peer)


def more_than_peer(factor):
    return Bar('≥ %s×对手' % number(factor), lambda ours, raw, peer: None if peer is None else ours >= factor * peer)


def verdicts(row):
    """[(text of the bar, True, False or None)]."""
    return [(bar.text, None if row.ours is None else bar.met(row.ours, row.raw, row.peer)) for bar in row.bars]


# -- rows ----------------------------------------------------------------------------------------------------------
def rows_of(case, seen):
    """The rows of a case. seen: side -> {figure key: value}; a side that is not there has no values."""
    ours, peer = seen.get('ours', {}), seen.get('peer', {})
    return [Row(case.name, case.title, item.key, item.label, item.unit, ours.get(item.key),
                seen.get(item.raw, {}).get(item.raw_key), peer.get(item.key), item.bars) for item in case.figures]


def quotient(value, other):
    return None if value is None or not other else value / other


def as_dict(row):
    """What --json gives of a row."""
    return OrderedDict([
        ('case', row.case), ('figure', row.key), ('label', row.label), ('unit', row.unit), ('ours', row.ours),
        ('raw', row.raw), ('peer', row.peer), ('ours_to_raw', quotient(row.ours, row.raw)),
        ('ours_to_peer', quotient(row.ours, row.peer)),
        ('bars', [{'bar': text, 'met': met} for text, met in verdicts(row)])])


def number(value):
    """Three digits are all that such a figure is worth."""
    if value is None:
        return '-'
    if isinstance(value, str):
        return value
    if abs(value) >= 1000:
        return '{:,.0f}'.format(value)
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return '%.*f' % (digits, value)


def cells(row):
    judged = verdicts(row)
    words = {True: '达到', False: '未达到', None: '-'}
    return [row.title, row.label, row.unit] + [number(value) for value in (
        row.ours, row.raw, row.peer, quotient(row.ours, row.raw), quotient(row.ours, row.peer))] + [
            '，'.join(text for text, _ in judged) or '-', '，'.join(words[met] for _, met in judged) or '-']


def table(rows):
    """The table as text; a title stands at the first row of its case only."""
    lines, last = [], None
    for row in rows:
        parts = cells(row)
        lines.append([parts[0] if row.title != last else ''] + parts[1:])
        last = row.title
    return '\n'.join(format_table(HEADERS, lines, ALIGNS))
