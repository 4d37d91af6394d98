"""Section 2: one tree of errors, the same on both sides of the wire; checks of values."""
import copy
import pickle
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bullet_qmt as b

CLASSES = sorted(b.ERRORS_BY_CODE.values(), key=lambda cls: cls.__name__) + [b.OrderStateUnknown]


def same(left, right):
    return type(left) is type(right) and left.to_wire() == right.to_wire() and str(left) == str(right)


@pytest.mark.parametrize('cls', CLASSES)
def test_every_error_survives_the_wire(cls):
    error = cls('出错了', '这样做', idempotency_key='k1', retry_after_s=5)
    frame = b.decode_frame(b.encode_frame(dict(error.to_wire(), type='error', id=7))[4:])
    back = b.error_from_wire(frame)
    if cls is not b.RequestTimeout:  # with a key it means: nobody knows what became of the order
        assert same(back, error)
    assert (back.code, back.message, back.hint) == (cls.code, '出错了', '这样做')
    assert back.details == {'idempotency_key': 'k1', 'retry_after_s': 5}
    assert back.broker_called is cls.broker_called


@pytest.mark.parametrize('cls', CLASSES)
def test_every_error_survives_pickle_and_copy(cls):
    error = cls('出错了', '这样做', idempotency_key='k1')
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert same(back, error)


@pytest.mark.parametrize('cls', CLASSES)
def test_every_error_is_a_runtime_error(cls):
    """What bullet-trade's client and helper raise, so that programs written for them catch ours."""
    try:
        raise cls('出错了')
    except RuntimeError as error:
        assert isinstance(error, b.BulletError) and error.message == '出错了'


def test_an_error_changed_by_hand_survives_pickle():
    error = b.OrderRejected('no', broker_called=True, retryable=True)
    back = pickle.loads(pickle.dumps(error))
    assert (back.broker_called, back.retryable) == (True, True)


def test_codes_are_unique_stable_and_reachable():
    codes = [cls.code for cls in CLASSES if cls is not b.OrderStateUnknown]
    assert len(codes) == len(set(codes))
    assert all(b.ERRORS_BY_CODE[cls.code] is cls for cls in CLASSES if cls is not b.OrderStateUnknown)
    assert set(codes) >= {'REQUEST_FAILED', 'REQUEST_TIMEOUT', 'BAD_REQUEST', 'ORDER_REJECTED', 'AUTH_FAILED',
                          'SERVER_BUSY', 'IDEMPOTENCY_CONFLICT', 'ACCOUNT_NOT_FOUND', 'QMT_UNAVAILABLE'}


def test_a_timeout_of_an_order_is_an_order_of_unknown_state():
    error = b.error_from_wire({'code': 'REQUEST_TIMEOUT', 'message': 'm', 'idempotency_key': 'k'})
    assert type(error) is b.OrderStateUnknown and error.idempotency_key == 'k' and error.retryable is False
    assert type(b.error_from_wire({'code': 'REQUEST_TIMEOUT', 'message': 'm'})) is b.RequestTimeout


def test_an_unknown_code_keeps_its_name():
    error = b.error_from_wire({'type': 'error', 'id': 1, 'code': 'BIG_QMT_GATEWAY_ERROR', 'message': 'm', 'x': 1})
    assert type(error) is b.BulletError and error.code == 'BIG_QMT_GATEWAY_ERROR' and error.details == {'x': 1}
    assert pickle.loads(pickle.dumps(error)).code == 'BIG_QMT_GATEWAY_ERROR'


@pytest.mark.parametrize('frame', [{}, {'code': None, 'message': None}, {'code': 5, 'message': ['x']},
                                   {'message': 'm', 'details': {}}, {'message': 'm', 'self': 1, 'cls': 2},
                                   {'code': [], 'hint': {'a': 1}}])
def test_an_odd_error_frame_is_still_an_error(frame):
    error = b.error_from_wire(frame)
    assert isinstance(error, b.BulletError) and isinstance(error.message, str) and isinstance(error.code, str)


def test_the_text_shows_code_message_and_remedy():
    assert str(b.BadRequest('amount 不对', '用整数')) == '[BAD_REQUEST] amount 不对（用整数）'
    assert str(b.BadRequest('amount 不对')) == '[BAD_REQUEST] amount 不对'


def test_refusals_say_that_the_broker_saw_nothing():
    for cls in (b.BadRequest, b.AccountNotFound, b.SecurityNotFound, b.UnknownAction, b.ServerBusy, b.NotSupported,
                b.IdempotencyConflict, b.ServiceDisabled):
        assert cls('x').to_wire()['broker_called'] is False
    assert 'broker_called' not in b.RequestTimeout('x').to_wire()
    assert b.OrderRejected('x', broker_called=False).to_wire()['broker_called'] is False


# -- numbers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), True, False, None, '1', '', b'1', [], {},
                                   1e13, -1e13, 10 ** 400, -10 ** 400, 1 + 1j, Decimal('nan'), Decimal('inf'),
                                   Decimal('1e5000'), Decimal('snan'), date(2024, 1, 1), object()])
def test_check_number_refuses(value):
    with pytest.raises(b.BadRequest) as caught:
        b.check_number(value, 'price')
    assert 'price' in caught.value.message and len(str(caught.value)) < 300


@pytest.mark.parametrize('value, expected', [(1, 1.0), (1.5, 1.5), (0, 0.0), (-3, -3.0), (Decimal('10.01'), 10.01),
                                             (Fraction(1, 2), 0.5), (10 ** 12, 1e12)])
def test_check_number_takes(value, expected):
    number = b.check_number(value, 'price')
    assert number == expected and type(number) is float


def test_check_number_holds_its_minimum():
    assert b.check_number(0, 'x', 0) == 0
    for value in (-0.01, -1, -1e-300):
        with pytest.raises(b.BadRequest):
            b.check_number(value, 'x', 0)


@pytest.mark.parametrize('value', [100.5, '100', True, None, -1, 10 ** 9 + 1, float('nan'), float('inf'), 10 ** 400,
                                   Decimal('1.1'), 1e-9])
def test_check_whole_refuses(value):
    with pytest.raises(b.BadRequest):
        b.check_whole(value, 'amount')


@given(st.integers(0, 10 ** 9))
def test_check_whole_takes_whole_numbers_of_any_type(value):
    for number in (value, float(value), Decimal(value)):
        assert b.check_whole(number, 'amount') == value and type(b.check_whole(number, 'amount')) is int


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip('numpy')
    assert b.check_whole(numpy.int64(100), 'amount') == 100
    assert b.check_whole(numpy.float64(100), 'amount') == 100
    assert type(b.check_whole(numpy.int32(100), 'amount')) is int
    assert b.check_number(numpy.float32(0.5), 'price') == 0.5
    for value in (numpy.bool_(True), numpy.float64('nan'), numpy.float64('inf'), numpy.array([1, 2]), numpy.array(1.5),
                  numpy.datetime64('2024-01-01')):
        with pytest.raises(b.BadRequest):
            b.check_number(value, 'price')


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
                 st.lists(st.integers()), st.dictionaries(st.text(), st.integers())))
def test_checks_answer_or_refuse_and_never_fail_otherwise(value):
    for check in (b.check_number, b.check_whole, b.check_text):
        try:
            check(value, 'x')
        except b.BadRequest as error:
            assert str(error).isprintable()
    with pytest.raises(b.BadRequest):
        b.check_choice(value, 'x', ())


@pytest.mark.parametrize('value', ['', '  ', 'a\nb', '\x00', 'x' * 201, None, 5, b'a', ['a']])
def test_check_text_refuses(value):
    with pytest.raises(b.BadRequest):
        b.check_text(value, 'name')


def test_check_text_and_choice_take():
    assert b.check_text('策略 1', 'name') == '策略 1'
    assert b.check_choice('BUY', 'side', ('BUY', 'SELL')) == 'BUY'


@pytest.mark.parametrize('value', ['buy', ' BUY', None, 1, [], {}])
def test_check_choice_refuses_and_lists(value):
    with pytest.raises(b.BadRequest) as caught:
        b.check_choice(value, 'side', ('SELL', 'BUY'))
    assert 'BUY、SELL' in caught.value.hint


def test_check_moment():
    assert b.check_moment(None, 'end') is None
    assert b.check_moment('2024-01-05', 'end') == (datetime(2024, 1, 5), False)
    for value in ('x', 5, [], True, '2024-02-30'):
        with pytest.raises(b.BadRequest) as caught:
            b.check_moment(value, 'end')
        assert 'end' in caught.value.message


@pytest.mark.parametrize('value', ['x' * 10000, list(range(10000)), {'k%d' % i: i for i in range(1000)}, '\x1b[2J',
                                   ['x' * 10000], 10 ** 400])
def test_brief_is_short_and_harmless(value):
    assert len(b.brief(value)) < 100 and b.brief(value).isprintable()
