"""The systemd unit: what systemd itself thinks of it, and what stands in it."""

import os
import subprocess
from pathlib import Path

import pytest

from gpu_worker.core.unit import Unit, systemd_unit

UNIT = Unit(command=("/bin/echo", "worker", "start"), data="/var/lib/livery", env_file="/etc/livery.env", stop_s=30)


@pytest.mark.parametrize("user", [None, "daemon"])
@pytest.mark.parametrize("data", ["/tmp", "/tmp/a folder 100%"])  # noqa: S108
def test_systemd_finds_nothing_wrong_with_it(user: str | None, data: str, tmp_path: Path) -> None:
    unit = tmp_path / "livery-worker.service"
    unit.write_text(systemd_unit(Unit(command=UNIT.command, data=data, env_file=data, stop_s=30, user=user)))
    scope = ["--user"] if user is None else []
    own = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    said = subprocess.run(["systemd-analyze", *scope, "verify", str(unit)], capture_output=True, text=True, env=own)
    assert (said.returncode, [line for line in said.stderr.splitlines() if unit.name in line]) == (0, [])


def test_it_drains_on_the_signal_and_starts_again_after_a_crash() -> None:
    lines = systemd_unit(UNIT).splitlines()
    assert "KillMode=mixed" in lines
    assert "TimeoutStopSec=45" in lines
    assert "Restart=on-failure" in lines
    assert "ExecStart=/bin/echo worker start" in lines
    assert "EnvironmentFile=-/etc/livery.env" in lines
    assert "WantedBy=default.target" in lines


def test_no_key_stands_in_it_and_no_line_can_be_smuggled_into_it() -> None:
    odd = Unit(command=("/opt/my livery", 'say "x" $HOME 50%'), data="/d", env_file="/e", stop_s=1)
    assert 'ExecStart="/opt/my livery" "say \\"x\\" $$HOME 50%%"' in systemd_unit(odd)
    with pytest.raises(ValueError, match="cannot stand in a unit"):
        systemd_unit(Unit(command=("/bin/x",), data="/d\nExecStartPre=/bin/evil", env_file="/e", stop_s=1))
