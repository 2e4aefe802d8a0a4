"""A cache's name follows the code that fills it."""

from experiments.run import phantoms as module


def test_it_follows_the_content_of_all_files(tmp_path, monkeypatch):
  monkeypatch.setattr(module, '_ROOT', tmp_path)
  (tmp_path / 'a.py').write_text('one')
  (tmp_path / 'b.py').write_text('two')

  def fresh(*patterns):
    module.code_hash.cache_clear()
    return module.code_hash(*patterns)

  first = fresh('*.py')
  assert len(first) == 8 and fresh('a.py', 'b.py') == first
  assert fresh('a.py') != first
  (tmp_path / 'b.py').write_text('three')
  assert module.code_hash('a.py') == fresh('a.py')  # Not its file.
  assert fresh('*.py') != first
  held = module.code_hash('*.py')
  (tmp_path / 'a.py').write_text('edited meanwhile')
  assert module.code_hash('*.py') == held  # What runs is the old code.
  module.code_hash.cache_clear()
