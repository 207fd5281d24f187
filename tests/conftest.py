"""What every test shares: fixtures of the outside world, a clean environment, one profile of hypothesis."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# What a developer's shell may say to the tests; everything else that Livery reads is taken away.
_KEPT = {"ANVIL_BIN", "MONGODB_TEST_URI"}

_FIXTURES = (
    "tests.fixtures.chain",
    "tests.fixtures.llm",
    "tests.fixtures.mongod",
    "tests.fixtures.tiny",
    "tests.fixtures.tiny_families",
    "tests.fixtures.tiny_gguf",
    "tests.fixtures.tiny_words",
    "tests.fixtures.world",
)

pytest_plugins = list(_FIXTURES)

settings.register_profile(
    "house",
    deadline=None,  # the machine may be busy; time is not what properties are about
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("house")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in the background deaf to ^C, and programs started here would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    from docs.generate import settings_classes, variables

    for _, room_settings in settings_classes():
        for variable in variables(room_settings):
            for name in set(variable.names) - _KEPT:
                os.environ.pop(name, None)
