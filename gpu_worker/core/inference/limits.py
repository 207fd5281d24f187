"""
What stages send each other at most. One table: whoever sends holds itself to it, whoever receives refuses what is more.

Limits of a use case (how many sessions, pipelines, streams) stand with it, as they are an owner's to set.
"""

# Characters. A name is a session's, a request's or a pipeline's, which begins with the endpoint of its head.
NAME_CHARS_MAX = 320
TEXT_CHARS_MAX = 4_096
PASS_CHARS_MAX = 8_192
SCHEMA_CHARS_MAX = 1_048_576

# Parts of one message: runs, opens, closes, refills, tokens and so on, each.
PARTS_MAX = 4_096
# Stages of a route; no model that is known has more layers.
HOPS_MAX = 256
# Dtypes that a stage names.
DTYPES_MAX = 32
# Other tokens that are told of beside the one that was drawn.
TOP_MAX = 64
# Tokens that end an answer.
EOS_MAX = 64
# Tokens of a session so far.
HISTORY_MAX = 1_048_576
POSITIONS_MAX = 2**31 - 1
# No model has more tokens to choose from; how many this one has its engine knows.
TOKENS_MAX = 2**31

# Rows in one step, of all its sessions: a mask of attention has rows times positions.
ROWS_MAX = 2_048
MESSAGE_BYTES_MAX = 256 * 1024 * 1024
# Beside the rows: sessions' passes, schemas and tokens so far.
REST_BYTES = 8 * 1024 * 1024
