"""A small world to start from: two accounts, a few securities of every kind, shares held since yesterday.

Works on a Terminal and on the client of one in another process.
"""
import atexit
import os
import shutil
import tempfile

ACCOUNT, SECOND_ACCOUNT = '1000000365', '1000000366'
NOW = '2025-08-06 10:00:00'  # a Wednesday
DIVIDEND_DAY, SUSPENDED_DAY = '20250716', '20250721'


def userdata_folder():
    """A new folder such as a terminal has it, gone with this process."""
    base = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, base, True)
    folder = os.path.join(base, 'userdata_mini')
    os.makedirs(os.path.join(folder, 'users'))
    return folder


def populate(terminal):
    """Stocks of SH, SZ, BJ and 688, an ST stock, an ETF, two convertible bonds (one expired), two indexes."""
    for code, name, price, options in _securities():
        terminal.add_security(code, name, price, **options)
    terminal.market.set_weights('000300.SH', {'600000.SH': 60.5, '000001.SZ': 39.5})
    for account in (ACCOUNT, SECOND_ACCOUNT):
        terminal.exchange.add_account(account, 1000000.0)
    terminal.exchange.add_position(ACCOUNT, '600000.SH', 1000, 9.5)
    return terminal


def _securities():
    dividends = {DIVIDEND_DAY: {'interest': 0.41, 'bonus': 0.1}}
    return [('600000.SH', '浦发银行', 10.0, {'dividends': dividends}),
            ('000001.SZ', '平安银行', 12.0, {'suspended': [SUSPENDED_DAY]}), ('300750.SZ', '宁德时代', 260.0, {}),
            ('688981.SH', '中芯国际', 90.0, {'listed': '20200716'}),
            ('920047.BJ', '诺思兰德', 15.0, {'listed': '20201124'}), ('600234.SH', '*ST科新', 4.0, {}),
            ('510300.SH', '沪深300ETF', 4.0, {'listed': '20120528'}),
            ('113052.SH', '兴业转债', 110.0, {'listed': '20220114'}),
            ('123001.SZ', '蓝标转债', 120.0, {'listed': '20160108', 'expires': '20250331'}),
            ('000300.SH', '沪深300', 4000.0, {'listed': '20050408'}),
            ('399001.SZ', '深证成指', 11000.0, {'listed': '19940720'})]
