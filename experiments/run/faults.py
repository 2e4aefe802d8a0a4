"""What a machine does to a command: Ctrl-C, full disks, lost processes.

Each ends it with a line or two; what it has saved so far stays, and the same
command goes on from there.
"""

from collections.abc import Callable, Iterator
import ctypes
import errno
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
import time
from types import FrameType
from typing import Any

import jax

from kmil_jax import parallel

INTERRUPTED = 130  # The exit code, as that of a shell.
NO_FOLDER = (
  '{}: there is a file, or a link to nothing, where a folder is needed. Give'
  ' another folder.'
)
_PATIENCE = 5  # Seconds.
_FULL = [os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
_PATH = re.compile(r"""["'](/[^"']+)["']""")
# Of what tells one process that another one is not there.
_POD = re.compile('gloo|nccl|coordination|barrier', re.IGNORECASE)
_LOST = (
  'error: another process of this pod has ended. Give the same command to all'
  ' of them again: it goes on from what was saved.'
)
_ALONE = (
  'error: the processes of this pod did not find each other. Start all of them,'
  ' with one --coordinator and --num_processes and each with its --process_id.'
)


def prepare() -> None:
  """Readies the process of a command; it may begin anew, in UTF-8.

  Names of files are read in the locale's encoding: where that has few letters,
  those of others would not be found. Threads that fail as the command does are
  not shown beside it.
  """
  if sys.getfilesystemencoding() != 'utf-8' and not sys.flags.utf8_mode:
    os.environ['PYTHONUTF8'] = '1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  for stream in sys.stdout, sys.stderr:
    stream.reconfigure(errors='backslashreplace')
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _interrupt)
  for module, name in (threading, 'excepthook'), (sys, 'unraisablehook'):
    setattr(module, name, _without_echoes(getattr(module, name)))


def watch_pod() -> None:
  """Ends this process with a line when JAX misses another one of its pod.

  JAX aborts it, from any thread, after a log of native code. What such code
  writes to standard error is only shown if something else aborts the process.
  """
  shown = os.fdopen(os.dup(2), 'w', buffering=1, errors='backslashreplace')
  with tempfile.TemporaryFile() as hidden:
    os.dup2(hidden.fileno(), 2)
  sys.stderr = shown
  ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
  """Takes the place of an abort; when it returns, the process is aborted."""
  written = os.pread(2, 2**20, 0).decode(errors='replace')
  if not _POD.search(written):
    print(written, file=sys.stderr, flush=True)
    return
  time.sleep(_PATIENCE)  # The command may be about to say why it ends.
  message = _ALONE if 'RegisterTask' in written else _LOST
  print(message, file=sys.stderr, flush=True)
  os._exit(1)


def leave_pod(code: int, message: str) -> None:
  """Ends a process of a pod, which does not wait for those that wait for it."""
  if jax.distributed.is_initialized():
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def explained(
  error: BaseException, cache_dir: pathlib.Path
) -> tuple[int, str] | None:
  """Returns exit code and message; None for what is no fault of a machine.

  Args:
    error: what ends the command.
    cache_dir: if it cannot be used, the message says how to choose another.
  """
  if any(
    isinstance(e, KeyboardInterrupt) or 'KeyboardInterrupt' in str(e)
    for e in _chain(error)
  ):
    return INTERRUPTED, (
      'stopped. Nothing that was saved is lost: the same command goes on from'
      ' there.'
    )
  if full := _full(error):
    return 1, (
      f'error: {full}. Free some space, or give another folder. What was saved'
      ' before is intact: the same command goes on from there.'
    )
  if isinstance(error, MemoryError):
    too_little = 'error: this machine has too little memory for it.'
    return 1, f'{too_little} {error}'.rstrip()
  if isinstance(error, OSError) and str(cache_dir) in str(error):
    return 1, f'error: {error}. Give a folder that can be used: --cache_dir.'
  for e in _chain(error):
    if isinstance(e, FileExistsError | NotADirectoryError) and e.filename:
      return 1, 'error: ' + NO_FOLDER.format(e.filename)
  if isinstance(error, IsADirectoryError | PermissionError) and error.filename:
    what = 'you may not read or write there'
    if isinstance(error, IsADirectoryError):
      what = 'there is a folder, where a file is needed'
    return 1, f'error: {error.filename}: {what}. Give another path.'
  lost = any(_POD.search(str(e)) for e in _chain(error))
  if lost and jax.distributed.is_initialized():
    return 1, _LOST
  if isinstance(error, RuntimeError | AssertionError) and (
    fault := parallel.device_fault()
  ):
    return 1, f'error: {fault}'
  return None


def _interrupt(number: int, frame: FrameType | None) -> None:
  """Stops the command in order; at a second Ctrl-C, at once."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  raise KeyboardInterrupt


def _without_echoes(show: Callable[[Any], None]) -> Callable[[Any], None]:
  """Passes over faults of threads with which the command itself ends, too."""

  def hook(args):
    error = args.exc_value
    if not _full(error) and 'Event loop is closed' not in str(error):
      show(args)

  return hook


def _full(error: BaseException | None) -> str | None:
  """Returns the file, if known, that found no space, and what was said."""
  for e in _chain(error):
    for text in _FULL:
      if text in str(e):
        match = _PATH.search(str(e))
        return f'{match[1]}: {text}' if match else text
  return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  while error:
    yield error
    error = error.__cause__ or error.__context__
