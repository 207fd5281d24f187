"""Plumbing for stores: connections, transactions, migrations with a version. No word of any domain in it."""
