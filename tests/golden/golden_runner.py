"""Runs chains of commands, each in a folder of its own, and records them."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

from golden_commands import Chain
import golden_reader
import xla_flags

_LIMIT = 900  # Seconds that a command may take.
_ADDRESS = re.compile(r'http://127\.0\.0\.1:\d+/\S*')


@dataclasses.dataclass(frozen=True)
class Done:
  """How a command ended, and what it printed."""

  exit: int
  out: str
  err: str


def environment(
  tree: pathlib.Path, folder: pathlib.Path, programs: pathlib.Path
) -> dict[str, str]:
  """Returns the variables of a command.

  Args:
    tree: the checkout to run.
    folder: where it runs; its cache lies below.
    programs: folder of compiled programs, which commands share.
  """
  return {
    'XLA_FLAGS': xla_flags.HASTY,
    **os.environ,
    'PYTHONPATH': str(tree),
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '1',
    'JAX_COMPILATION_CACHE_DIR': str(programs),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'OMP_NUM_THREADS': '1',
    'XDG_CACHE_HOME': str(folder / 'cache'),
    'COLUMNS': '80',
  }


def call(module, args, folder, variables) -> Done:
  """Runs `python -m <module> <args>` to its end."""
  try:
    done = subprocess.run(
      [sys.executable, '-m', module, *args],
      cwd=folder,
      env=variables,
      capture_output=True,
      text=True,
      errors='replace',
      stdin=subprocess.DEVNULL,
      timeout=_LIMIT,
    )
  except subprocess.TimeoutExpired:
    return Done(-1, '', f'stopped after {_LIMIT} s')
  return Done(done.returncode, done.stdout, done.stderr)


def serve(module, args, folder, variables) -> tuple[Done, dict]:
  """Starts a server, fetches its page, and ends it as Ctrl-C does."""
  process = subprocess.Popen(
    [sys.executable, '-m', module, *args],
    cwd=folder,
    env=variables,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    # A recorder in the background of a shell ignores it, and so would this.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )
  limit = threading.Timer(_LIMIT, process.kill)
  limit.start()
  output, page = '', {}
  for line in process.stdout:
    output += line
    if address := _ADDRESS.search(line):
      try:
        page = _fetch(address[0].partition('#')[0])
      except OSError as fault:
        page = {'fault': type(fault).__name__}
      process.send_signal(signal.SIGINT)
  code = process.wait()
  limit.cancel()
  return Done(code, output, ''), page


def _fetch(address: str) -> dict:
  """Returns status and type of a page, and the files that it names."""
  with urllib.request.urlopen(address, timeout=30) as answer:
    text = answer.read().decode('utf-8')
    kind = answer.headers.get_content_type()
    links = sorted(set(re.findall(r'(?:src|href)="([^"]+)"', text)))
    return {'status': answer.status, 'type': kind, 'links': links}


def record_chain(
  chain: Chain,
  tree: pathlib.Path,
  folder: pathlib.Path,
  programs: pathlib.Path,
  *,
  call=call,
  report=lambda line: None,
) -> dict[str, dict]:
  """Lays out the inputs of a chain, runs its commands, and records each.

  Args:
    chain: what to run.
    tree: the checkout to run.
    folder: a new folder to run in.
    programs: folder of compiled programs.
    call: runs a command.
    report: is told of each command as it ends.

  Returns:
    The records by the commands' names.
  """
  folder.mkdir(parents=True)
  folder = folder.resolve()
  chain.inputs(folder)
  variables = environment(tree, folder, programs)
  records = {}
  for command in chain.commands:
    before = golden_reader.snapshot(folder)
    began = time.monotonic()
    page = None
    if command.serves:
      done, page = serve(command.module, command.args, folder, variables)
    else:
      done = call(command.module, command.args, folder, variables)
    records[command.name] = _record(command, done, page, folder, before)
    (folder / 'cache').mkdir(exist_ok=True)
    log = folder / 'cache' / f'{command.name}.log'
    log.write_text(done.out + done.err, encoding='utf-8')
    seconds = time.monotonic() - began
    report(f'{chain.name}/{command.name}: exit {done.exit}, {seconds:.1f} s')
  return records


def _record(command, done, page, folder, before) -> dict:
  output = done.out + done.err
  record = {'exit': done.exit}
  if names := command.fails or command.names:
    record['names'] = {name: name in output for name in names}
  if command.printed:
    record['printed'] = golden_reader.printed(done.out, folder)
  if page is not None:
    record['page'] = page
  record['files'] = golden_reader.changed(folder, before)
  return record


def unexpected(command, record: dict) -> list[str]:
  """Returns where a record is not what the table of commands says."""
  faults = []
  if record['exit'] != command.exit:
    faults.append(f'exit {record["exit"]}, not {command.exit}')
  for name, seen in record.get('names', {}).items():
    if not seen:
      faults.append(f'{name!r} is not named')
  return faults
