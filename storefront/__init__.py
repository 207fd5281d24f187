"""The shop of everybody who sells jobs: the vendor API's routes, quotes, paid submissions, refunds, callbacks."""
