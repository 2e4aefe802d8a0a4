"""How torch computes in tests that compare with it."""

import pytest


@pytest.fixture
def one_thread():
  """Among the threads of a busy machine, torch's wait for each other."""
  import torch

  before = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(before)
