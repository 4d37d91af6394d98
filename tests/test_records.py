"""Section 5: rows and tables, to the wire and back, and as pandas frames."""
import json
import math
from collections import OrderedDict
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bullet_qmt as b

MOMENT = datetime(2024, 1, 5, 9, 31)
INDEX_KEYS = {'index_columns', 'index_names', 'index_type', 'index_dtypes'}


def over_the_wire(payload, lenient=True):
    return b.decode_frame(b.encode_frame(payload)[4:], lenient)


def same_values(left, right):
    return len(left) == len(right) and all(a == z or (a != a and z != z) for a, z in zip(left, right))


# -- rows -----------------------------------------------------------------------------------------------
ORDER_KEYS = set('''order_id security side is_buy amount filled traded_volume remaining price order_price avg_price
traded_price deal_balance status raw_status style style_type order_type price_type order_remark strategy_name
order_sysid order_time
status_msg commission tax'''.split())
TRADE_KEYS = set('''trade_id order_id security amount price traded_price trade_price time commission commission_fee tax
deal_balance'''.split())
POSITION_KEYS = set('''security name amount available_amount closeable_amount can_use_volume frozen_volume avg_cost
current_price last_price market_value position_value'''.split())
ACCOUNT_KEYS = set('''account_id account_type available_cash transferable_cash frozen_cash market_value total_value
total_asset positions'''.split())


@pytest.mark.parametrize('record, keys', [(b.Order(), ORDER_KEYS), (b.Trade(), TRADE_KEYS),
                                          (b.Position(), POSITION_KEYS), (b.Account(), ACCOUNT_KEYS)])
def test_rows_hold_every_key_of_the_protocol(record, keys):
    row = record.to_wire()
    assert keys - set(row) == set()
    assert over_the_wire({'row': row})['row'] == json.loads(json.dumps(row))


def test_an_order_on_the_wire():
    order = b.Order(order_id='7', security='600519.XSHG', side='SELL', amount=300, filled=100, order_price=10.5,
                    avg_price=10.6, status='filling', time=MOMENT, idempotency_key='k', sub_account_id='demo')
    row = order.to_wire()
    assert (row['is_buy'], row['order_type'], row['remaining'], row['traded_volume']) == (False, 24, 200, 100)
    assert (row['price'], row['order_price'], row['raw_status']) == (10.6, 10.5, 55)
    assert (row['order_time'], row['idempotency_key'], row['sub_account_id']) == (1704418260, 'k', 'demo')
    assert not {'idempotency_key', 'sub_account_id'} & set(b.Order().to_wire())
    assert not order.final and order.replace(status='filled').final


@pytest.mark.parametrize('status', sorted(b.STATUS_RAW))
def test_every_status_has_its_number_and_back(status):
    assert b.Order(status=status).to_wire()['raw_status'] == b.STATUS_RAW[status]
    assert b.RAW_STATUS[b.STATUS_RAW[status]] == status
    assert b.Order(status=status, raw_status=52).to_wire()['raw_status'] == 52


def test_rows_read_back_what_they_know():
    position = b.Position(security='600519.XSHG', amount=200, closeable_amount=100, avg_cost=1.5)
    assert b.Position.from_wire(dict(position.to_wire(), news=1)) == position
    assert b.Position.from_wire({'amount': None}).amount == 0
    assert position != b.Position() and position != 5


def test_rows_refuse_unknown_fields():
    with pytest.raises(TypeError):
        b.Position(closable_amount=1)
    with pytest.raises(TypeError):
        b.Position().replace(x=1)


def test_a_tick_and_a_trade_on_the_wire():
    assert b.Tick(sid='600519.XSHG', last_price=10.0, dt=MOMENT).to_wire()['dt'] == '2024-01-05 09:31:00'
    assert b.Tick(sid='600519.XSHG').to_wire()['symbol'] == '600519.XSHG'
    assert b.Trade(time=MOMENT).to_wire()['time'] == '2024-01-05 09:31:00'
    assert b.OrderRequest(style='market', protect_price=9.0, price=None).bound == 9.0
    assert b.OrderRequest(style='limit', price=8.0, protect_price=9.0).bound == 8.0


# -- tables ---------------------------------------------------------------------------------------------
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)).map(b.to_ms)
VALUES = {'float': st.one_of(st.just(float('nan')), st.floats(-1e12, 1e12)), 'int': st.integers(-2 ** 53, 2 ** 53),
          'bool': st.booleans(), 'text': st.text(st.characters(blacklist_categories=('Cs',)), min_size=1),
          'time': MOMENTS}


@st.composite
def tables(draw):
    rows = draw(st.integers(1, 5))
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=5))
    columns, types = OrderedDict(), {}
    for number, kind in enumerate(kinds):
        name = 'time' if kind == 'time' and 'time' not in columns else '%s%d' % (kind, number)
        if kind != 'time' or name == 'time':  # other columns of times stay text, as with legacy peers
            columns[name] = draw(st.lists(VALUES[kind], min_size=rows, max_size=rows))
            types[name] = kind
    index = [next(iter(columns))] if draw(st.booleans()) else []
    if index and types[index[0]] == 'text':  # text that looks like a time would become one in an index
        columns[index[0]] = ['x' + value for value in columns[index[0]]]
    return b.Table(columns, types, index)


@given(tables())
def test_a_table_survives_the_wire(table):
    back = b.Table.from_wire(over_the_wire(table.to_wire(), lenient=False))
    assert list(back.columns) == list(table.columns) and back.index == table.index
    assert back.index_names == table.index_names
    for name in table.columns:
        if table.types[name] == 'float' and all(value != value for value in table[name]):
            assert all(value != value for value in back[name])
        else:
            assert same_values(table[name], back[name])
            assert back.types[name] == table.types[name]


@given(tables())
def test_a_table_as_legacy_peers_need_it(table):
    payload = over_the_wire(table.to_wire())
    assert payload['dtype'] == 'dataframe' and all(len(row) == len(payload['columns']) for row in payload['records'])
    assert INDEX_KEYS & set(payload) == (INDEX_KEYS if table.index else set())
    if table.index:
        assert len(payload['index_names']) == len(payload['index_columns']) == len(payload['index_dtypes'])


def bars():
    days = [b.to_ms(datetime(2024, 1, day)) for day in (4, 5)]
    return b.Table([('index', days), ('open', [10.0, float('nan')]), ('volume', [100, 200])],
                   {'index': 'time', 'open': 'float', 'volume': 'int'}, ['index'])


def test_the_payload_of_one_security_is_that_of_the_peer():
    assert bars().to_wire() == {
        'dtype': 'dataframe', 'columns': ['index', 'open', 'volume'],
        'records': [['2024-01-04T00:00:00', 10.0, 100], ['2024-01-05T00:00:00', None, 200]],
        'index_columns': ['index'], 'index_names': [None], 'index_type': 'DatetimeIndex',
        'index_dtypes': ['datetime64[ns]']}


def test_rows_slices_and_text_of_a_table():
    table = bars()
    assert len(table) == 2 and table.fields == ['open', 'volume']
    assert table['index'] == [datetime(2024, 1, 4), datetime(2024, 1, 5)]
    assert table.rows()[0] == {'index': datetime(2024, 1, 4), 'open': 10.0, 'volume': 100}
    assert table.slice(1, 2)['volume'] == [200] and table.take([1, 0, 1])['volume'] == [200, 100, 200]
    assert '2024-01-04' in repr(table) and '[2 rows x 3 columns]' in repr(table)
    assert len(b.Table({}, {})) == 0 and '[0 rows x 0 columns]' in repr(b.Table({}, {}))


def frame(columns, records, **keys):
    return dict({'dtype': 'dataframe', 'columns': columns, 'records': records}, **keys)


@pytest.mark.parametrize('payload', [
    None, [], {}, {'dtype': 'dict', 'value': {}}, {'dtype': 'dataframe'}, {'dtype': 'dataframe', 'columns': ['a']},
    frame('a', []), frame(['a'], 5), frame(['a'], [5]), frame(['a'], [[1], [2, 3]]), frame(['a', 'b'], [[1]]),
    frame(['a'], [[1, 2]]), frame([['a']], [[1]]), frame(['a', 'a'], [[1, 2]]),
    frame(['a'], [[1]], index_columns=['x']), frame(['a'], [[1]], index_columns=5),
    frame(['a'], [[1]], index_columns=['a'], index_names=[]), frame(['a'], [[1]], column_tuples=[5])])
def test_what_is_no_table_is_a_protocol_error(payload):
    with pytest.raises(b.ProtocolError):
        b.Table.from_wire(payload)


def test_no_rows():
    table = b.Table.from_wire({'dtype': 'dataframe', 'columns': ['a', 'b'], 'records': []})
    assert len(table) == 0 and list(table.columns) == ['a', 'b']
    assert len(b.Table.from_wire({'dtype': 'dataframe', 'columns': [], 'records': []})) == 0


# -- pandas, with what the peer sends -------------------------------------------------------------------
@pytest.fixture
def pandas():
    return pytest.importorskip('pandas')


def test_one_security_as_a_frame(pandas):
    frame = b.Table.from_wire(bars().to_wire()).to_pandas()
    assert isinstance(frame.index, pandas.DatetimeIndex) and frame.index.name is None
    assert list(frame.columns) == ['open', 'volume'] and list(frame['volume']) == [100, 200]
    assert list(frame.index) == [pandas.Timestamp('2024-01-04'), pandas.Timestamp('2024-01-05')]
    assert frame['open'].dtype == 'float64' and math.isnan(frame['open'].iloc[1])


def test_the_panel_of_the_peer_as_a_frame(pandas):
    names = ['index', "('close', '000001.XSHE')", "('volume', '000001.XSHE')"]
    payload = {'dtype': 'dataframe', 'columns': names, 'records': [['2026-04-01T00:00:00', 10.0, 5]],
               'column_tuples': [['close', '000001.XSHE'], ['volume', '000001.XSHE']],
               'column_index_names': ['field', 'code'], 'index_columns': ['index'], 'index_names': [None],
               'index_type': 'DatetimeIndex', 'index_dtypes': ['datetime64[ns]']}
    table = b.Table.from_wire(payload)
    frame = table.to_pandas()
    assert list(frame.columns) == [('close', '000001.XSHE'), ('volume', '000001.XSHE')]
    assert list(frame.columns.names) == ['field', 'code']
    assert frame['close']['000001.XSHE'].iloc[0] == 10.0 and isinstance(frame.index, pandas.DatetimeIndex)
    assert table.to_wire() == payload


def test_the_long_form_of_the_peer_as_a_frame(pandas):
    frame = b.Table.from_wire({'dtype': 'dataframe', 'columns': ['time', 'code', 'open'], 'records': [
        ['2026-04-01T00:00:00', '000001.XSHE', 10.0], ['2026-04-02T09:31:00', '000001.XSHE', None]]}).to_pandas()
    assert list(frame.columns) == ['time', 'code', 'open'] and list(frame.index) == [0, 1]
    assert list(frame['time']) == [pandas.Timestamp('2026-04-01'), pandas.Timestamp('2026-04-02 09:31')]
    assert str(frame['time'].dtype).startswith('datetime64')


def test_all_securities_of_the_peer_as_a_frame(pandas):
    frame = b.Table.from_wire({
        'dtype': 'dataframe', 'columns': ['code', 'display_name', 'name', 'start_date', 'end_date', 'type'],
        'records': [['000001.XSHE', '平安银行', 'PAYH', '1991-04-03T00:00:00', '2200-01-01T00:00:00', 'stock']],
        'index_columns': ['code'], 'index_names': ['code'], 'index_type': 'Index',
        'index_dtypes': ['object']}).to_pandas()
    assert frame.index.name == 'code' and list(frame.index) == ['000001.XSHE']
    assert frame.loc['000001.XSHE', 'display_name'] == '平安银行'
    assert frame['end_date'].iloc[0] == pandas.Timestamp('2200-01-01')


def test_the_answer_of_the_stub_of_the_peer(pandas):
    payload = {'dtype': 'dataframe', 'columns': ['open', 'volume'], 'records': [[10.98, 632522.0]]}
    frame = b.Table.from_wire(payload).to_pandas()
    assert list(frame['open']) == [10.98] and list(frame.index) == [0]


def test_frames_without_rows(pandas):
    frame = bars().slice(0, 0).to_pandas()
    assert len(frame) == 0 and list(frame.columns) == ['open', 'volume']
    assert isinstance(frame.index, pandas.DatetimeIndex)


def test_a_missing_time_is_nat(pandas):
    table = b.Table({'time': [None, b.to_ms(MOMENT)]}, {'time': 'time'})
    assert table.to_wire()['records'] == [[None], ['2024-01-05T09:31:00']]
    frame = table.to_pandas()
    assert pandas.isnull(frame['time'].iloc[0]) and frame['time'].iloc[1] == pandas.Timestamp(MOMENT)


@given(tables())
def test_any_table_is_a_frame(table):
    if b.optional_import('pandas') is None:
        pytest.skip('no pandas')
    frame = table.to_pandas()
    assert len(frame) == len(table) and list(frame.columns) == table.fields
    assert list(frame.index.names) == table.index_names or not table.index
