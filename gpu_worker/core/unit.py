"""The systemd unit that keeps a worker running on its owner's machine, as that owner and nobody more."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """
    `command` is what starts the worker, its program an absolute path; `env_file` is read before it, if it is there.

    `user` None makes a unit of the user's own (`systemctl --user`); `stop_s` is how long it may drain.
    """

    command: Sequence[str]
    data: str
    env_file: str
    stop_s: int
    user: str | None = None


def systemd_unit(unit: Unit) -> str:
    """Return the text of the unit. Raises ValueError for a text that no unit can hold."""
    is_own = unit.user is None
    lines = [
        "[Unit]",
        "Description=Livery worker: rents this machine out by the job",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=300",
        "StartLimitBurst=5",
        "",
        "[Service]",
        "Type=exec",
        *([] if is_own else [f"User={_plain(str(unit.user))}"]),
        # Written with a dash: a file that is not there is no fault.
        f"EnvironmentFile=-{_plain(unit.env_file)}",
        f"ExecStart={' '.join(_word(word) for word in unit.command)}",
        f"WorkingDirectory={_plain(unit.data)}",
        "Restart=on-failure",
        "RestartSec=5",
        # SIGTERM lets it drain: the programs of the jobs are told by it, not by systemd.
        "KillMode=mixed",
        f"TimeoutStopSec={unit.stop_s + 15}",
        "UMask=0077",
        "NoNewPrivileges=yes",
        "PrivateTmp=yes",
        *([] if is_own else ["ProtectSystem=strict", f"ReadWritePaths={_word(unit.data)}"]),
        "",
        "[Install]",
        f"WantedBy={'default.target' if is_own else 'multi-user.target'}",
        "",
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return `text` as the rest of a line has it: a percent sign is doubled, a line end refused."""
    if not text.isprintable():
        raise ValueError(f"{text!r} cannot stand in a unit: it has a character that is not printable")
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """Return `text` as one word of a command line of a unit."""
    safe = _plain(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{safe}"' if not safe or any(letter.isspace() or letter in "\"'\\;" for letter in safe) else safe
