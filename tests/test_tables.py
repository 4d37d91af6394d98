"""Binary tables: every value arrives as in the JSON form, to the bit, packed or not, with numpy or without."""
import contextlib
import json
import math
import random
import struct
import zlib
from array import array
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bullet_qmt as bq

pandas = pytest.importorskip('pandas')
numpy = pytest.importorskip('numpy')
NAN = float('nan')


@contextlib.contextmanager
def without_numpy():
    """As on a machine that has none."""
    real = bq.optional_import
    bq.optional_import = lambda name: None if name in ('numpy', 'pandas') else real(name)
    try:
        yield
    finally:
        bq.optional_import = real


MODES = [contextlib.contextmanager(lambda: iter([None])), without_numpy]


def sent(table, compact=False, encode=MODES[0], decode=MODES[0]):
    with encode():
        data = b''.join(map(bytes, bq.encode_table_frame({'type': 'response', 'id': '7'}, table, compact)))
    word, = struct.unpack('>I', data[:4])
    assert word == 1 << 31 | len(data) - 4
    with decode():
        frame = bq.decode_table_frame(bytearray(data[4:]))
    assert (frame['type'], frame['id']) == ('response', '7')
    return frame['payload']


def by_json(table):
    return bq.Table.from_wire(bq.decode_frame(bq.encode_frame(table.to_wire())[4:]))


def bits(values):
    """Values that compare as equal only if they are the same: -0.0 is not 0.0, NaN is NaN, 1 is not 1.0 nor True."""
    return [(type(value).__name__, struct.pack('<d', value) if isinstance(value, float) else value)
            for value in bq._listed(values)]


def contents(table):
    return OrderedDict((name, bits(table[name])) for name in table.columns), table.types, table.index, \
        table.index_names, table.wide


# -- values ------------------------------------------------------------------------------------------------------
prices = st.integers(-10 ** 9, 10 ** 9).map(lambda cents: cents / 100)
floats = st.one_of(prices, st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, NAN, 1e300]))
moments = st.integers(0, 4 * 10 ** 12)
COLUMNS = {'float': floats, 'price': prices, 'int': st.integers(-2 ** 60, 2 ** 60), 'bool': st.booleans(),
           'time': moments, 'text': st.text(st.characters(blacklist_categories=['Cs']), max_size=8)}


@st.composite
def tables(draw):
    """A table as servers send them: a time index, data columns of any type, in any order."""
    rows = draw(st.integers(1, 40))
    kinds = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=5))
    columns, types = OrderedDict([('index', sorted(draw(st.lists(moments, min_size=rows, max_size=rows))))]), {}
    for number, kind in enumerate(kinds):
        name = 'date' if kind == 'time' and 'date' not in columns else '%s%d' % (kind, number)
        values = draw(st.lists(COLUMNS[kind], min_size=rows, max_size=rows))
        types[name] = 'float' if kind == 'price' else kind if name == 'date' or kind != 'time' else 'int'
        columns[name] = array('d', values) if types[name] == 'float' else values
    return bq.Table(columns, dict(types, index='time'), ['index'], [draw(st.sampled_from([None, 'time']))])


@settings(max_examples=150, deadline=None)
@given(tables(), st.booleans(), st.sampled_from(MODES), st.sampled_from(MODES))
def test_every_value_arrives_as_in_the_json_form(table, compact, encode, decode):
    arrived = sent(table, compact, encode, decode)
    assert contents(arrived) == contents(by_json(table)) == contents(table)


@settings(max_examples=60, deadline=None)
@given(tables(), st.booleans())
def test_frames_are_the_same_as_those_of_the_json_form(table, compact):
    pandas.testing.assert_frame_equal(sent(table, compact).to_pandas(), by_json(table).to_pandas(), check_exact=True)


def bars(rows, columns=('open', 'close')):
    """A random walk in whole cents, volumes in whole lots."""
    rng = random.Random(7)
    walk = [rng.choice((-1, 0, 1)) for _ in range(rows)]
    close = [(100000 + sum(walk[:i + 1])) / 100 for i in range(rows)]
    table = OrderedDict([('index', [60000 * (i + 28000000) for i in range(rows)])])
    for name in columns:
        table[name] = array('d', close)
    table['volume'] = array('d', [rng.randrange(1, 9000) * 100.0 for _ in range(rows)])
    return bq.Table(table, dict({name: 'float' for name in table}, index='time'), ['index'])


def test_real_looking_bars_are_packed_tightly():
    table = bars(5000)
    sizes = [sum(map(len, bq.encode_table_frame({'id': '1'}, table, compact))) for compact in (False, True)]
    assert sizes[0] > 4 * 8 * 5000 and sizes[1] * 6 < sizes[0]


@pytest.mark.parametrize('special', [NAN, -0.0, 0.1 + 0.2, 1e-300, 1e300, 2.0 ** 53 + 2, -12.34, 123456789.123])
@pytest.mark.parametrize('place', [0, 1, -1])
@pytest.mark.parametrize('modes', [(a, b) for a in MODES for b in MODES])
def test_a_value_that_is_no_price_comes_back_to_the_bit(special, place, modes):
    table = bars(200)
    table.columns['open'][place] = special
    assert contents(sent(table, True, *modes)) == contents(table)


@pytest.mark.parametrize('compact', [False, True])
@pytest.mark.parametrize('mode', MODES)
def test_a_nan_of_another_kind_is_not_made_the_ordinary_one(compact, mode):
    other = struct.unpack('<d', struct.pack('<Q', 0x7ff8000000000123))[0]
    table = bq.Table([('a', array('d', [1.5, other, 2.5]))], {'a': 'float'})
    assert bits(sent(table, compact, mode, mode).columns['a']) == bits(table.columns['a'])


@pytest.mark.parametrize('compact', [False, True])
@pytest.mark.parametrize('mode', MODES)
def test_columns_of_every_other_kind(compact, mode):
    table = bq.Table(
        [('n', [1, -(1 << 63), (1 << 63) - 1, 0]), ('huge', [1 << 70, -1, 0, 5]), ('flag', [True, False, True, True]),
         ('when', [0, None, 1700000000000, -1]), ('text', ['a', None, '中文', 'a'])],
        {'n': 'int', 'huge': 'int', 'flag': 'bool', 'when': 'time', 'text': 'text'})
    arrived = sent(table, compact, mode, mode)
    assert [arrived[name] for name in arrived.columns] == [table[name] for name in table.columns]


@pytest.mark.parametrize('compact', [False, True])
def test_tables_without_rows_or_columns(compact):
    for table in (bars(0), bq.Table([], {}), bq.Table([('a', [])], {'a': 'text'})):
        arrived = sent(table, compact)
        assert list(arrived.columns) == list(table.columns) and len(arrived) == 0


def test_many_texts_take_more_bytes_for_each():
    for count in (10, 300, 70000):
        table = bq.Table([('code', ['%06d' % i for i in range(count)])], {'code': 'text'})
        assert sent(table)['code'] == table['code']


@pytest.mark.parametrize('make', [lambda values: numpy.array(values), lambda values: array('d', values), list])
def test_columns_may_be_held_by_anything(make):
    values = [1.25, NAN, 3.5, -0.0]
    for compact in (False, True):
        table = bq.Table([('x', make(values))], {'x': 'float'})
        assert bits(sent(table, compact).columns['x']) == bits(values)


def test_a_wide_table_keeps_its_pairs():
    pairs = [('close', '000001.XSHE'), ('close', '600000.XSHG')]
    table = bq.Table([('index', [0, 60000])] + [(repr(pair), array('d', [1.0, 2.0])) for pair in pairs],
                     dict({repr(pair): 'float' for pair in pairs}, index='time'), ['index'], wide=pairs)
    frame = sent(table).to_pandas()
    assert list(frame.columns) == pairs and frame.columns.names == ['field', 'code']


def test_a_frame_of_floats_lies_in_what_was_received():
    """No column is copied on its way from the socket into the frame."""
    arrived = sent(bars(1000))
    frame = arrived.to_pandas()
    first = arrived.columns['open'].__array_interface__['data'][0]
    assert frame['open'].values.__array_interface__['data'][0] == first
    frame['open'] = 1.0  # and it is the caller's to change
    assert (frame['open'] == 1.0).all()


@settings(max_examples=300, deadline=None)
@given(st.lists(prices.map(abs) | st.floats(0.005, 1e5) | st.just(NAN), min_size=1, max_size=50),
       st.sampled_from([0.5, 1.0 / 3, 1.1, 0.987654321, 7.0]), st.sampled_from([2, 3, None]))
def test_prices_are_scaled_the_same_with_numpy_and_without(values, ratio, digits):
    values = array('d', values)
    by_numpy = bq._scaled_by_numpy(numpy, numpy.frombuffer(values), ratio, digits)
    assert bits(by_numpy) == bits(bq._scaled(values, ratio, digits))


# -- what a bad peer sends -----------------------------------------------------------------------------------------
def body(payload, raw=b'', **frame):
    text = json.dumps(dict(frame, payload=payload)).encode()
    return struct.pack('>I', len(text)) + text + bytes(-(4 + len(text)) % 8) + raw


def described(rows, *columns, **more):
    return dict(more, dtype='columns', rows=rows, columns=[list(column) for column in columns])


BOMB = zlib.compress(bytes(50 * 1024 * 1024))


@pytest.mark.parametrize('data', [
    b'', b'\0\0', b'\0\0\0\x09{}', struct.pack('>I', 1 << 31), body(None), body([]), body({}), body(described(1)) + b'',
    body(described(-1)), body(described(True)), body(described(1.0)), body(described(10 ** 12)),
    body(described(1, ['a'])), body(described(1, ['a', 'float', 'plain', 8]), b'1234567'),
    body(described(2, ['a', 'float', 'plain', 8]), bytes(8)), body(described(1, ['a', 'float', 'plain', -8]), bytes(8)),
    body(described(1, ['a', 'float', 'none', 8]), bytes(8)), body(described(1, ['a', 'none', 'plain', 8]), bytes(8)),
    body(described(1, ['a', 'text', 'plain', 8]), bytes(8)), body(described(1, [5, 'float', 'plain', 8]), bytes(8)),
    body(described(1, ['a', 'float', 'plain', 8], ['a', 'float', 'plain', 8]), bytes(16)),
    body(described(1, ['a', 'float', 'plain', 8], index_columns=['b']), bytes(8)),
    body(described(1, ['a', 'float', 'plain', 8], index_columns='a'), bytes(8)),
    body(described(1, ['a', 'float', 'plain', 8], column_tuples=[['a']]), bytes(8)),
    body(described(1, ['a', 'text', 'text', 8, {'width': 1}]), b'\0\0\0\xff{}{}'),
    body(described(1, ['a', 'text', 'text', 8, {'width': 1}]), b'\0\0\0\x03[5]\0'),
    body(described(1, ['a', 'text', 'text', 8, {'width': 1}]), b'\0\0\0\x03[1]\x07'),
    body(described(1, ['a', 'text', 'text', 8, {'width': 3}]), b'\0\0\0\x02[]\0\0'),
    body(described(1, ['a', 'float', 'delta', 8, 'x']), bytes(8)),
    body(described(1, ['a', 'float', 'delta', 8, []]), bytes(8)),
    body(described(0, ['a', 'int', 'json', 8]), b'{}      '),
    body(described(1, ['a', 'int', 'json', 8]), b'[true]  '),
    body(described(1, ['a', 'float', 'plain', 8, {}, {}]), bytes(8)),
    body(described(1, ['a', 'int', 'json', 100000]), b'[' * 100000),
    body(described(1, ['a', 'int', 'json', 8]), b'[1.5]   '), body(described(2, ['a', 'int', 'json', 8]), b'[1]     '),
    body(described(1, ['a', 'float', 'zlib', len(BOMB), {'of': 'plain', 'length': 8}]), BOMB),
    body(described(1, ['a', 'float', 'zlib', len(BOMB), {'of': 'plain', 'length': 10 ** 12}]), BOMB),
    body(described(1, ['a', 'float', 'zlib', 8, {'of': 'plain', 'length': 8}]), b'garbage!'),
    body(described(1, ['a', 'float', 'zlib', 8, {}]), b'garbage!'),
    body(described(1, ['a', 'float', 'delta', len(BOMB), {'width': 1, 'first': 0, 'digits': 2}]), BOMB),
    body(described(1, ['a', 'float', 'delta', 8, {'width': 0, 'first': 0, 'digits': 2}]), bytes(8)),
    body(described(1, ['a', 'float', 'delta', 8, {'width': 9, 'first': 0, 'digits': 2}]), bytes(8)),
    body(described(1, ['a', 'float', 'delta', 8, {'width': 1, 'first': 'x', 'digits': 2}]), bytes(8)),
    body(described(1, ['a', 'float', 'delta', 8, {'width': 1, 'first': 1 << 60, 'digits': 2}]), bytes(8)),
    body(described(1, ['a', 'float', 'delta', 8, {'width': 1, 'first': 0, 'digits': 400}]), bytes(8)),
    body(described(1, ['a', 'float', 'delta', 8, {'width': 1, 'first': 0, 'digits': 2, 'nulls': 99}]), bytes(8)),
    body(described(1, ['a', 'bool', 'bytes', 2]), bytes(8))], ids=lambda data: repr(data[:90]))  # one is 100 kB
@pytest.mark.parametrize('mode', MODES)
def test_a_table_that_makes_no_sense_is_a_protocol_error(data, mode):
    with mode(), pytest.raises(bq.ProtocolError):
        bq.decode_table_frame(data)


@pytest.mark.parametrize('compact', [False, True])
def test_bytes_that_fell_over_never_cost_more_than_the_frame(compact):
    data = b''.join(map(bytes, bq.encode_table_frame({'id': '1'}, bars(50), compact)))[4:]
    rng = random.Random(5)
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        with contextlib.suppress(bq.ProtocolError):
            frame = bq.decode_table_frame(broken[:rng.choice([len(broken), rng.randrange(len(broken))])])
            assert isinstance(frame['payload'], bq.Table)


def test_only_what_is_a_double_is_ever_made_of_a_block():
    assert math.isnan(bq._native('d', struct.pack('<d', NAN))[0])
    assert list(bq._native('q', struct.pack('<3q', -1, 0, 1 << 62))) == [-1, 0, 1 << 62]


def test_a_frame_of_small_arrays_outlives_them():
    """Arrays that happen to lie side by side in memory are no matrix: each goes with its owner."""
    for _ in range(500):
        frame = bq.Table(OrderedDict([('time', [0, 1]), ('a', array('d', [1.0, 2.0])), ('b', array('d', [3.0, 4.0]))]),
                         {'time': 'time', 'a': 'float', 'b': 'float'}, ['time']).to_pandas()
        fillers = [array('d', [7.0, 7.0]) for _ in range(64)]
        assert frame.values.tolist() == [[1.0, 3.0], [2.0, 4.0]] and len(fillers) == 64


def test_columns_of_one_frame_become_a_frame_without_a_copy():
    arrived = sent(bars(64))
    frame = arrived.to_pandas()
    assert all(numpy.shares_memory(frame.values, arrived.columns[name]) for name in ('open', 'volume'))
