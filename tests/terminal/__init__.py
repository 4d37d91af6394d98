"""A stand-in QMT terminal for tests: the vendor's own Python layer runs unmodified above fake native modules.

    terminal = Terminal(clock)          an exchange, market data and faults behind one lock
    install(terminal)                   the native modules of xtquant now speak to it; before the first import

structs     native records, typed as strictly as the real ones, with the gaps of older versions
ledger      money and shares of an account, with T+1
book        prices and depth, and what an order takes from them
exchange    orders: acceptance, matching, rejection, cancelling
bars        K lines: made, merged into longer periods, adjusted
calendar    the days on which Shanghai traded
rules       kinds, lots, limits, cage, fees and hours, all of its own
market      instruments, sectors, calendar, ticks, the local cache and downloads
faults      what goes wrong, on command
terminal    the above together, and the requests of the clients linked to it
native      the two native modules
wire        frames of JSON between processes
process     the terminal as a process of its own
remote      native modules that reach it from another process, and a client to control it
serve       bullet_qmt's server on a terminal in another process
scene       a small world to start from
"""
