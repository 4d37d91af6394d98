"""Native records of `xtpythonclient`: typed members, each under two spellings (m_strAccountID, account_id).

XTQUANT.md, Signatures: setters refuse None, str for int and float for int; later versions added fields, and old ones
know only the m_xxx spelling of what they answer.
"""
INT64 = range(-2 ** 63, 2 ** 63)

_ACCOUNT = 'nAccountType:account_type strAccountID:account_id'
_OF_ORDER = ' strStrategyName:strategy_name strOrderRemark:order_remark'
_OF_MARKET = (' nDirection:direction nOffsetFlag:offset_flag strSecuAccount:secu_account '
              'strInstrumentName:instrument_name')

# m_ spelling : snake spelling; the first letters of the m_ spelling tell the type.
REQUESTS = {
    'SubscribeReq': _ACCOUNT + ' nMetaType:meta_type',
    'UnsubscribeReq': _ACCOUNT + ' nMetaType:meta_type',
    'OrderStockReq': _ACCOUNT + _OF_ORDER + ' strStockCode:stock_code nOrderType:order_type '
                                            'nOrderVolume:order_volume nPriceType:price_type dPrice:price '
                                            'strOrderRemarkNew:order_remark1 dOrderAmount:order_amount '
                                            'strStockCode1:stock_code1 strAccountID1:account_id1',
    'CancelOrderStockReq': _ACCOUNT + ' nOrderID:order_id nMarket:market strOrderSysID:order_sysid strMarket:market1',
    'QueryStockAssetReq': _ACCOUNT,
    'QueryStockOrdersReq': _ACCOUNT + ' nOrderID:order_id bCanCancel:can_cancel',
    'QueryStockTradesReq': _ACCOUNT,
    'QueryStockPositionsReq': _ACCOUNT + ' strStockCode:stock_code strStockCode1:stock_code1',
    'QueryAccountInfosReq': '',
    'QueryAccountStatusReq': '',
}
# The vendor's layer itself reads order_id and seq of these, so they have both spellings in every version.
RESPONSES = {
    'OrderStockResp': _ACCOUNT + ' nOrderID:order_id strErrorMsg:error_msg' + _OF_ORDER,
    'CancelOrderStockResp': _ACCOUNT + ' nCancelResult:cancel_result nOrderID:order_id strOrderSysID:order_sysid '
                                       'strErrorMsg:error_msg',
    'XtOrderError': _ACCOUNT + ' nOrderID:order_id nErrorID:error_id strErrorMsg:error_msg nSeq:seq' + _OF_ORDER,
    'XtCancelError': _ACCOUNT + ' nOrderID:order_id nMarket:market strOrderSysID:order_sysid nErrorID:error_id '
                                'strErrorMsg:error_msg',
    'XtAccountStatus': _ACCOUNT + ' nStatus:status',
    'XtAccountInfo': _ACCOUNT + ' nBrokerType:broker_type nPlatformID:platform_id nStatus:login_status',
}
RECORDS = {
    'XtAsset': _ACCOUNT + ' dCash:cash dFrozenCash:frozen_cash dMarketValue:market_value dTotalAsset:total_asset '
                          'dFetchBalance:fetch_balance',
    'XtOrder': _ACCOUNT + _OF_ORDER + _OF_MARKET + ' strStockCode:stock_code nOrderID:order_id '
                                                   'strOrderSysID:order_sysid nOrderTime:order_time '
                                                   'nOrderType:order_type nOrderVolume:order_volume '
                                                   'nPriceType:price_type dPrice:price '
                                                   'nTradedVolume:traded_volume dTradedPrice:traded_price '
                                                   'nOrderStatus:order_status strStatusMsg:status_msg',
    'XtTrade': _ACCOUNT + _OF_ORDER + _OF_MARKET + ' strStockCode:stock_code nOrderType:order_type '
                                                   'strTradedID:traded_id nTradedTime:traded_time '
                                                   'dTradedPrice:traded_price nTradedVolume:traded_volume '
                                                   'dTradedAmount:traded_amount nOrderID:order_id '
                                                   'strOrderSysID:order_sysid dCommission:commission',
    'XtPosition': _ACCOUNT + ' strStockCode:stock_code nVolume:volume nCanUseVolume:can_use_volume '
                             'dOpenPrice:open_price dMarketValue:market_value nFrozenVolume:frozen_volume '
                             'nOnRoadVolume:on_road_volume nYesterdayVolume:yesterday_volume dAvgPrice:avg_price '
                             'nDirection:direction dLastPrice:last_price dProfitRate:profit_rate '
                             'strSecuAccount:secu_account strInstrumentName:instrument_name',
}
LATER_FIELDS = ('last_price', 'profit_rate', 'instrument_name', 'commission')


def _text(value):
    if not isinstance(value, (str, bytes)):
        raise TypeError('incompatible function arguments: %r is no string' % (value,))
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value)


def _whole(value):
    if not hasattr(value, '__index__'):
        raise TypeError('incompatible function arguments: %r is no integer' % (value,))
    if value.__index__() not in INT64:
        raise TypeError('incompatible function arguments: %r does not fit' % (value,))
    return value.__index__()


def _real(value):
    if isinstance(value, (str, bytes)) or not hasattr(value, '__float__'):
        raise TypeError('incompatible function arguments: %r is no number' % (value,))
    return float(value)


def _truth(value):
    if not isinstance(value, bool):
        raise TypeError('incompatible function arguments: %r is no bool' % (value,))
    return value


_TYPES = (('str', _text, ''), ('n', _whole, 0), ('d', _real, 0.0), ('b', _truth, False))


class Field:
    """A member of a native record: its two names, the check of its setter, its default."""

    def __init__(self, text):
        native, _, self.snake = text.partition(':')
        self.native = 'm_' + native
        self.check, self.default = next((check, default) for prefix, check, default in _TYPES
                                        if native.startswith(prefix))

    def property(self):
        slot, check = '_' + self.native, self.check

        def write(record, value):
            setattr(record, slot, check(value))
        return property(lambda record: getattr(record, slot), write)


def record_class(name, text, missing=(), snake=True):
    """A class like those that pybind11 makes: no attributes but its fields."""
    fields = [field for field in map(Field, text.split()) if field.snake not in missing]
    members = {'__slots__': tuple('_' + field.native for field in fields)}
    for field in fields:
        members[field.native] = field.property()
        if snake:
            members[field.snake] = members[field.native]
    native_name = {field.snake: field.native for field in fields}

    def construct(record, **values):
        for field in fields:
            setattr(record, '_' + field.native, field.default)
        for key, value in values.items():
            if key in native_name:  # a field that this version lacks is dropped
                setattr(record, native_name[key], value)
    return type(name, (object,), dict(members, __init__=construct))


class Structs:
    """The record classes of one version of the native module.

    missing: snake names of fields that this version does not know. snake=False: the records of orders, trades,
    positions and assets have the m_xxx spelling alone.
    """

    def __init__(self, missing=(), snake=True):
        self.classes = {name: record_class(name, text) for table in (REQUESTS, RESPONSES)
                        for name, text in table.items()}
        self.classes.update((name, record_class(name, text, missing, snake)) for name, text in RECORDS.items())

    def make(self, name, row):
        return self.classes[name](**row)


def request_row(request):
    """Plain dict of a request record, by snake names."""
    text = REQUESTS[type(request).__name__]
    return {field.snake: getattr(request, field.native) for field in map(Field, text.split())}
