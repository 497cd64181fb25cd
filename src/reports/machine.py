"""Sections of a report about how an experiment ran: time, devices, versions and settings."""
import itertools
from pathlib import Path

from reports.experiments import Settings, read_seconds
from reports.html import table
from training.environment import read_starts
from training.options import make_parser
from utilities.formatting import clock


def machine_tables(exp_dir: Path) -> str:
    """Return time, devices and versions of the last start, and how the starts differ, as HTML."""
    seconds = read_seconds(exp_dir)
    facts = {}
    if seconds:
        facts['training and evaluation'] = f'{clock(seconds)}, all starts together'
    starts = read_starts(exp_dir)
    if not starts:
        return (table(['', ''], list(facts.items()))
                + '<p class="soft">Machine and versions are not known: there is no '
                  'environment.json.</p>\n')
    last = starts[-1]
    # How long each start took is not known, only the sum.
    if seconds and len({start['devices'] for start in starts}) == 1:
        hours = seconds / 3600 * last['devices']
        facts['device-hours'] = f'{hours:.2f} ({last["devices"]} × {last["device"]})'
    facts['starts'] = str(len(starts))
    for name, value in last.items():
        if value is not None:
            facts['last start' if name == 'time' else name] = str(value)
    return table(['', ''], list(facts.items())) + _starts_table(starts)


def _starts_table(starts):
    """Return what changed from each start to the next as an HTML table; '' for a single start."""
    if len(starts) < 2:
        return ''
    rows = [('1', starts[0]['time'], '')]
    for number, (before, start) in enumerate(itertools.pairwise(starts), 2):
        changes = [f'{name} {before.get(name)} → {value}' for name, value in start.items()
                   if name != 'time' and before.get(name) != value]
        rows.append((str(number), start['time'], ', '.join(changes)))
    return ('<h3>Starts</h3>\n'
            + table(['', 'time', 'what is different from the start before'], rows))


def settings_tables(settings: Settings) -> str:
    """Return the settings as HTML: first those that differ from the defaults of run.py."""
    default_of = make_parser().get_default
    given, same = [], []
    for name, value in settings.items():
        default = default_of(name)
        if value == default:
            same.append((f'--{name}', str(value)))
        else:
            given.append((f'--{name}', str(value), None if default is None else str(default)))
    return (f'<h3>Given</h3>{table(["", "", "default"], given)}'
            f'<h3>As run.py has them by default</h3>\n'
            f'<div class="settings">{table(["", ""], same)}</div>\n')
