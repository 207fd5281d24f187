"""The cashier's hands: its tables in SQLite, a facilitator over HTTP, the chain, the codec of MPP."""
