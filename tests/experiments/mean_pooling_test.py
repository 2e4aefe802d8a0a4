"""The floor finds what the mean shows, and nothing in shuffled labels."""

import json

import feature_folder
import numpy as np
import pytest

from experiments import mean_pooling


@pytest.mark.parametrize('shuffled', [False, True])
def test_the_mean_of_shifted_bags_is_told_apart(tmp_path, shuffled):
  rng = np.random.default_rng(0)
  labels = np.arange(90) % 3
  bags = [rng.normal(size=(5, 8)) for _ in labels]
  for bag, label in zip(bags, labels, strict=True):
    bag[:, label] += 3
  args = feature_folder.write(tmp_path, bags, labels)
  args += [f'--results_dir={tmp_path}', f'--shuffle_labels={shuffled}']
  mean_pooling.main(['mean_pooling', *args])
  path = tmp_path / 'mean_pooling_origin_s2023' / 'summary.json'
  summary = json.loads(path.read_text())
  assert np.sum(summary['confusion']) == 90
  auroc = summary['metrics']['auroc']['pooled']
  report = path.with_name('report.html').read_text(encoding='utf-8')
  assert f'<strong>{auroc:.3f}</strong>' in report
  if shuffled:
    # The standard error of an AUROC of 0.5 is about 0.07 here.
    assert abs(auroc - 0.5) < 0.15
  else:
    assert auroc > 0.99
