"""How many files of the library a training runs through to its first update."""

import json
import os
import subprocess
import sys

import feature_folder
import script_process

MOST_FILES = 16
# Runs a module, noting which functions of kmil_jax are called until the first
# epoch's updates are done; what runs while modules are imported does not count.
PROGRAM = """
import inspect, json, os, runpy, sys, threading
import kmil_jax
root = os.path.dirname(kmil_jax.__file__) + os.sep
called, importing, out = {}, {}, sys.argv.pop()
IMPORTS = '_find_and_load', '_handle_fromlist'

def note(frame, event, _):
  code, thread = frame.f_code, threading.get_ident()
  if code.co_name in IMPORTS and 'importlib' in code.co_filename:
    step = {'call': 1, 'return': -1}.get(event, 0)
    importing[thread] = importing.get(thread, 0) + step
  if not code.co_filename.startswith(root) or importing.get(thread):
    return
  if event == 'call' and code.co_name != '<module>':
    file = code.co_filename.removeprefix(root)
    called.setdefault(file, set()).add(code.co_qualname)
  if event == 'return' and code.co_qualname == 'Program.train':
    with open(out, 'w') as f:
      json.dump({file: sorted(names) for file, names in called.items()}, f)
    os._exit(0)

threading.setprofile(note)
sys.setprofile(note)
runpy.run_module('experiments.kmil', run_name='__main__', alter_sys=True)
"""


def test_few_files_run_before_the_first_update(tmp_path):
  flags = feature_folder.write(tmp_path, *feature_folder.planted(30))
  noted = tmp_path / 'called.json'
  done = subprocess.run(
    [
      *(sys.executable, '-c', PROGRAM, *flags),
      *('--fold=3', '--epochs=1', f'--results_dir={tmp_path / "results"}'),
      *(f'--cache_dir={tmp_path / "cache"}', str(noted)),
    ],
    cwd=script_process.ROOT,
    env=os.environ | {'PYTHONPATH': str(script_process.ROOT)},
    capture_output=True,
    text=True,
  )
  assert noted.exists(), done.stdout + done.stderr
  called = json.loads(noted.read_text())
  assert {'folds.py', 'models/abmil.py', 'train.py'} <= set(called)
  assert len(called) <= MOST_FILES, '\n'.join(sorted(called))
