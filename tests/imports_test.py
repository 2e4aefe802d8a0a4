"""The house rules that imports and sizes of files can show."""

import ast
import graphlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ('data', 'experiments', 'kmil_jax')
FILES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob('*.py'))
MAX_LINES = 700

FORBIDDEN = {
  'kmil_jax': (
    'absl.flags',
    'data',
    'experiments',
    'openslide',
    'tensorflow',
    'tensorflow_datasets',
  ),
  'data': ('experiments', 'flax', 'jax', 'jaxlib', 'kmil_jax', 'optax'),
}
# What takes longer to import than all else that --help needs, JAX apart.
SLOW = (
  'matplotlib',
  'orbax',
  'scipy.ndimage',
  'scipy.optimize',
  'scipy.special',
  'scipy.stats',
  'sklearn',
  'tensorflow',
  'tensorflow_datasets',
  'tensorstore',
  'torch',
)
# Prints what is imported after --help of each script in turn.
HELP = """
import contextlib, importlib, json, sys
from experiments.__main__ import SCRIPTS
from jax._src import xla_bridge

modules = {}
for name in (name for some in SCRIPTS.values() for name in some):
  script = importlib.import_module(f'experiments.{name}')
  with contextlib.redirect_stdout(None), contextlib.suppress(SystemExit):
    script.main([name, '--help'])
  device = ['a device'] * xla_bridge.backends_are_initialized()
  modules[name] = [*sys.modules, *device]
print(json.dumps(modules))
"""


def name_of(path):
  """The dotted name of a module; a package's is that of its folder."""
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def tree_of(path):
  return ast.parse(path.read_text(encoding='utf-8'), str(path))


def imports(nodes):
  """Dotted names that import statements ask for, `from a import b` as a.b."""
  names = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'line {node.lineno}: a relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def within(name, package):
  return name == package or name.startswith(package + '.')


def offences(source, package):
  """Imports, at any depth, that are not allowed in a package."""
  found = imports(ast.walk(ast.parse(source)))
  return sorted(
    name
    for name in found
    if any(within(name, banned) for banned in FORBIDDEN[package])
  )


def is_script(path):
  return "\nif __name__ == '__main__'" in path.read_text(encoding='utf-8')


def test_the_rules_see_what_breaks_them():
  source = (
    'from absl import flags, logging\n'
    'import tensorflow as tf\n'
    'import database\n'
    'def f():\n'
    '  from data import slides\n'
    '  import jax.numpy\n'
  )
  assert offences(source, 'kmil_jax') == [
    'absl.flags',
    'data.slides',
    'tensorflow',
  ]
  assert offences(source, 'data') == ['jax.numpy']


@pytest.mark.parametrize('package', FORBIDDEN)
def test_packages_import_only_what_they_may(package):
  found = {
    name_of(path): offences(path.read_text(encoding='utf-8'), package)
    for path in (ROOT / package).rglob('*.py')
  }
  assert len(found) > 5
  assert {name: bad for name, bad in found.items() if bad} == {}


def test_scripts_never_import_each_other():
  scripts = {name_of(p) for p in FILES if is_script(p)}
  assert {'experiments.kmil', 'experiments.extract'} <= scripts
  assert all(name.startswith('experiments.') for name in scripts)
  users = {}
  for path in FILES:
    names = imports(ast.walk(tree_of(path)))
    bad = {s for s in scripts if any(within(name, s) for name in names)}
    if bad:
      users[name_of(path)] = bad
  assert users == {}


def test_any_module_can_be_imported_first():
  """No circle of imports at the top of modules."""
  modules = {name_of(p): p for p in FILES}
  edges = {}
  for name, path in modules.items():
    package = name if path.name == '__init__.py' else name.rpartition('.')[0]
    needed = set()
    for imported in imports(tree_of(path).body):
      while imported:
        # What holds both modules is being imported already.
        if imported in modules and not within(package, imported):
          needed.add(imported)
        imported = imported.rpartition('.')[0]
    edges[name] = needed - {name}
  assert 'kmil_jax.losses' in edges['kmil_jax.models']

  graphlib.TopologicalSorter(edges).prepare()  # Raises if there is a circle.


def test_help_imports_nothing_slow_and_starts_no_device(tmp_path):
  """In a folder with one called data, which is not the package."""
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data/__init__.py').write_text('raise SystemExit(9)')
  done = subprocess.run(
    [sys.executable, '-c', HELP],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    check=True,
    text=True,
  )
  modules = json.loads(done.stdout)
  scripts = {
    name_of(p).removeprefix('experiments.') for p in FILES if is_script(p)
  }
  assert modules.keys() == scripts - {'__main__'}
  for name, some in modules.items():
    assert not {*SLOW, 'a device'}.intersection(some), name


def test_files_are_short_and_say_what_they_are_for():
  faults = []
  for path in FILES + sorted((ROOT / 'tests').rglob('*.py')):
    text = path.read_text(encoding='utf-8')
    lines = len(text.splitlines())
    if lines > MAX_LINES:
      faults.append(f'{path.relative_to(ROOT)}: {lines} lines')
    if lines and path in FILES and not ast.get_docstring(ast.parse(text)):
      faults.append(f'{path.relative_to(ROOT)}: no docstring')
  assert faults == []
