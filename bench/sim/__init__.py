"""The whole agent in a world that one seed draws: virtual time, models of store, chain and vendors, faults, checks."""
