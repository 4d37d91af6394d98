"""What the terminal answers to the requests of its clients: a desk for trading, a desk for data."""
from tests.terminal import bars
from tests.terminal.exchange import CANCELABLE
from tests.terminal.market import SECTOR_TABLE

NOT_CONNECTED = '与终端的连接已断开'


class Desk:
    """handle: carries a request out by the method of its name, underscore before it."""

    def __init__(self, terminal, world, faults):
        self.terminal, self.world, self.faults = terminal, world, faults

    def handle(self, link, token, name, args):
        getattr(self, '_' + name)(link, token, args)

    def fail(self, link, token):
        """What a client hears that is not connected."""
        link.fail(token, NOT_CONNECTED)

    def _reply(self, link, token, name, value):
        """An answer, unless it is lost on the way."""
        if not self.faults.silences(name, lambda: link.answer(token, value)):
            link.answer(token, value)


class TradeDesk(Desk):
    """args are the fields of the native request, by snake names."""

    def _connect(self, link, token, args):
        code = self._connect_code(link)
        if code == 0:
            link.online, link.blanks = True, dict(self.faults.blanks)
        self._reply(link, token, 'connect', {'code': code, 'missing': list(self.faults.missing_fields),
                                             'snake': self.faults.snake_names})

    def _connect_code(self, link):
        """-1: terminal down, another userdata path, or the session id is in use by a connected client."""
        if self.faults.connect_code:
            return self.faults.connect_code
        taken = self.terminal.sessions() + list(self.faults.taken_sessions)
        right_path = self.terminal.path in (None, link.hello['path'])
        return 0 if self.terminal.running and right_path and link.hello['session'] not in taken else -1

    def _subscribe(self, link, token, args):
        account = self.world.accounts.get(args['account_id'])
        good = account is not None and account.account_type == args['account_type'] and not account.status
        good = good and not self.faults.fails('subscribe')
        if good:
            link.accounts.add(account.account_id)
        self._reply(link, token, 'subscribe', 0 if good else -1)

    def _unsubscribe(self, link, token, args):
        link.accounts.discard(args['account_id'])
        self._reply(link, token, 'unsubscribe', 0)

    def _order(self, link, token, args):
        if not self.faults.delays('order', lambda: self._submit(link, token, args)):
            self._submit(link, token, args)

    def _submit(self, link, token, args):
        order_id, reason = self.world.submit(
            args['account_id'], args['stock_code'], args['order_type'], args['order_volume'], args['price_type'],
            args['price'], args['order_remark1'] or args['order_remark'], args['strategy_name'], token, link.number)
        shown = -1 if self.faults.denies('order') else order_id
        events = self.world.take_events()
        if self.faults.error_first:
            self.terminal.push_events([event for event in events if event[0] == 'order_error'])
            events = [event for event in events if event[0] != 'order_error']
        self._reply(link, token, 'order', _order_answer(args, shown, reason))
        self.terminal.push_events(events)

    def _cancel(self, link, token, args):
        result, reason = self.world.cancel(args['account_id'], args['order_id'], args['order_sysid'], link.number)
        self._reply(link, token, 'cancel', _cancel_answer(args, result, reason))

    def _asset(self, link, token, args):
        rows = [self.world.asset_row(args['account_id'])] if args['account_id'] in self.world.accounts else []
        blank = [dict(row, cash=0.0, frozen_cash=0.0, market_value=0.0, total_asset=0.0, fetch_balance=0.0)
                 for row in rows]
        self._show(link, token, 'asset', rows, blank)

    def _positions(self, link, token, args):
        rows = self.world.position_rows(args['account_id']) if args['account_id'] in self.world.accounts else []
        rows = [row for row in rows if args['stock_code'] in ('', row['stock_code'])]
        self._show(link, token, 'positions', rows, [])

    def _orders(self, link, token, args):
        rows = [row for row in self.world.order_rows(args['account_id'])
                if args['order_id'] in (0, row['order_id'])
                and (not args['can_cancel'] or row['order_status'] in CANCELABLE)]
        self._show(link, token, 'orders', rows, [])

    def _trades(self, link, token, args):
        self._show(link, token, 'trades', self.world.trade_rows(args['account_id']), [])

    def _infos(self, link, token, args):
        rows = [{'account_type': account.account_type, 'account_id': account.account_id,
                 'login_status': account.status} for account in self.world.accounts.values()]
        self._show(link, token, 'infos', rows, [])

    def _status(self, link, token, args):
        rows = [{'account_type': account.account_type, 'account_id': account.account_id,
                 'status': account.status} for account in self.world.accounts.values()]
        self._show(link, token, 'status', rows, [])

    def _show(self, link, token, name, rows, blank):
        """The rows, or nothing yet: right after connecting a terminal has not loaded everything."""
        if link.blanks.get(name, 0) > 0:
            link.blanks[name] -= 1
            rows = None if self.faults.blank_is_none else blank
        self._reply(link, token, name, rows)


def _order_answer(args, order_id, reason):
    return {'account_type': args.get('account_type', 0), 'account_id': args.get('account_id', ''),
            'order_id': order_id, 'error_msg': reason, 'strategy_name': args.get('strategy_name', ''),
            'order_remark': args.get('order_remark1', '')}


def _cancel_answer(args, result, reason):
    return {'account_type': args.get('account_type', 0), 'account_id': args.get('account_id', ''),
            'cancel_result': result, 'order_id': args.get('order_id', 0), 'error_msg': reason,
            'order_sysid': args.get('order_sysid', '')}


class DataDesk(Desk):
    """args are lists, as the vendor's layer passes them."""

    # Requests that only read: the market's method of that name with the arguments as they are.
    _READS = {'detail': 'detail', 'trading_dates': 'trading_dates', 'sectors': 'sector_list',
              'dividends': 'dividend_factors', 'weights': 'index_weights', 'stock_type': 'stock_type',
              'full_tick': 'full_tick', 'holidays': 'holidays', 'sector': 'sector'}

    def handle(self, link, token, name, args):
        if self.faults.no_service and name not in ('data_connect', 'sector', 'sectors', 'control'):
            if name == 'detail':
                return self._reply(link, token, name, None)
            return link.fail(token, 'ErrorID 200005 未找到订阅数据')
        if name in self._READS:
            self._reply(link, token, name, getattr(self.world, self._READS[name])(*args))
        else:
            super(DataDesk, self).handle(link, token, name, args)

    def _data_connect(self, link, token, args):
        link.online = self.terminal.running
        self._reply(link, token, 'data_connect', [0, ''] if link.online else [-1, 'connect failed'])

    def _history(self, link, token, args):
        codes, rest = args[0], args[1:]
        self._reply(link, token, 'history', {code: self.world.history(code, *rest) for code in codes})

    def _subscribe_quote(self, link, token, args):
        key, code, period = args
        self._subscribed(link, token, 'subscribe_quote', (key, [code], period, False))

    def _subscribe_whole(self, link, token, args):
        key, codes = args
        self._subscribed(link, token, 'subscribe_whole', (key, codes, 'tick', True))

    def _subscribed(self, link, token, name, what):
        seq = -1 if self.faults.fails('quotes') else self.world.subscribe(link.number, *what)
        self._reply(link, token, name, seq)

    def _unsubscribe_quote(self, link, token, args):
        self.world.unsubscribe(link.number, args[0])
        self._reply(link, token, 'unsubscribe_quote', None)

    def _control(self, link, token, args):
        """commonControl: the functions that the vendor's layer needs for what is simulated here."""
        function, version = args[0], self.world.download_version
        if function == 'downloadholidaydata':
            self.world.holidays_local = True
        known = {'getapiversion': {} if version is None else {'downloadversion': version}}
        self._reply(link, token, 'control', known.get(function, {}))

    def _fetch_weights(self, link, token, args):
        self.world.weights_local = True
        self._reply(link, token, 'fetch_weights', None)

    def _download(self, link, token, args):
        """One security; the call blocks until it is done."""
        code, period, start, end = args
        if self.faults.download_stop is None:
            if not self.faults.download_error:
                self.world.download([code], period, start, end)
            self._reply(link, token, 'download', True)

    def _download2(self, link, token, args):
        """Answers at once; progress comes in pushes."""
        self._reply(link, token, 'download2', False)
        if not self.faults.stops('download', lambda: self._progress(link, args)):
            self._progress(link, args)

    def _progress(self, link, args):
        key, codes, period, start, end, table = args
        if self.faults.download_error:
            return link.push('progress', [key, _step(0, -1, '', self.faults.download_error)])
        if table == SECTOR_TABLE:
            self.world.sectors_local = True
            return link.push('progress', [key, _step(1, 1, '')])
        for number, code in enumerate(codes[:self.faults.download_stop], 1):
            self.world.download([code], period, start, end)
            link.push('progress', [key, self._with_result(_step(number, len(codes), code), codes)])
        return None

    def _with_result(self, step, codes):
        """The vendor's second path gets the covered range with the last step."""
        if self.world.download_version is None or step['finished'] < step['total']:
            return step
        now = bars.epoch_ms(self.world.clock.now())
        return dict(step, result={code: {'start_time': bars.epoch_ms(self.world.first_day), 'end_time': now}
                                  for code in codes})


def _step(finished, total, code, message=''):
    return {'finished': finished, 'total': total, 'stockcode': code, 'message': message}
