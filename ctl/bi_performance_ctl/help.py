"""The overviews that `bi-performance --help` and `bi-performance cache --help` print, from the
table."""

from __future__ import annotations

from bi_performance_ctl.catalog import LOCAL
from bi_performance_wire.commands import COMMANDS


def group(word: str) -> str | None:
    """What follows a word that begins several commands and is none; None for any other."""
    rows = [(row.cli, row) for row in COMMANDS if row.cli and row.cli.split()[0] == word]
    if not rows or any(words == word for words, _ in rows):
        return None
    width = max(len(words) for words, _ in rows)
    commands = "\n".join(f"  {words:{width}}  {row.summary}" for words, row in sorted(rows))
    lines = [line for _, row in rows if row.example for line in row.example.splitlines()]
    examples = "\n".join(f"  {line}" for line in lines)
    return f"""\
usage: bi-performance {word} COMMAND [arguments]

commands:
{commands}

bi-performance {word} COMMAND --help says what it takes; bi-performance --help has the options of
every command.

examples:
{examples}
"""


def overview() -> str:
    """All commands, the options, exit statuses and examples."""
    rows = sorted(
        [(row.cli, row.summary) for row in COMMANDS if row.cli]
        + [(row.words, row.summary) for row in LOCAL]
    )
    width = max(len(words) for words, _ in rows)
    commands = "\n".join(f"  {words:{width}}  {summary}" for words, summary in rows)
    return f"""\
usage: bi-performance [options] COMMAND [arguments]

Commands the performance sidecar of this host, bi-performanced, over its control socket.

commands:
{commands}

options, before or after the command:
  --socket PATH      the daemon's control socket; else BI_PERFORMANCE_SOCKET, else the first of
                     /run/user/UID/bi-performance, /tmp/bi-performance-UID, /run/bi-performance
  --json-output      print one JSON document, for scripts
  --timeout SECONDS  for the daemon's answer (10)
  --no-color         no colors; so does NO_COLOR in the environment, or output that is no terminal
  --version          print the version
  --help             after a command: what it takes

exit status:
  0  done     1  the daemon answered with an error     2  usage     3  no daemon reachable

examples:
  bi-performance status
  bi-performance monitor
  bi-performance recommendations
  bi-performance optimize performance_focused
  bi-performance clear-cache --pattern analytics
  bi-performance benchmark --iterations 100
  bi-performance cache stats --json-output | jq .hit_rate
"""
