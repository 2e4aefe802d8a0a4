"""Reverse distillation against torch: maps both ways, one training step."""

import functools

import jax
import numpy as np
import pytest

from kmil_jax import port, programs, train
from kmil_jax.models import reverse_distillation
from kmil_jax.models.reverse_distillation import Student, Teacher
from kmil_jax.tasks.distill import DistillTask, Patches, Setting, runs_of

torch = pytest.importorskip('torch')
twins = pytest.importorskip('torch_modules')
twin = pytest.importorskip('torch_networks.reverse_distillation')

pytestmark = pytest.mark.usefixtures('one_thread')

WIDTH, SHORTCUT, SIZE = 4, 3, 64
SHALLOW = (1, 1, 1)
hastily = functools.partial(
  jax.jit,
  compiler_options={
    'xla_backend_optimization_level': 0,
    'xla_cpu_use_fusion_emitters': False,
  },
)


def load(module, state):
  tensors = {n: torch.tensor(v) for n, v in state.items()}
  missing, unexpected = module.load_state_dict(tensors, strict=False)
  assert not unexpected
  idle = ('num_batches_tracked', 'bn.conv4', 'bn.bn4')
  assert all(any(part in n for part in idle) for n in missing)


def scaled(variables):
  """Other variables: each number times one between 0.8 and 1.2."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: leaf * rng.uniform(0.8, 1.2, leaf.shape).astype('f4'),
    variables,
  )


def assert_maps_close(got, want):
  for a, b in zip(got, want, strict=True):
    b = b.detach().numpy().transpose(0, 2, 3, 1)
    assert b.std() > 1e-2
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * b.std())


def test_maps_equal_torchs_whichever_way_weights_go():
  torch.manual_seed(0)
  theirs = [
    twins.randomized(module).eval()
    for module in (twin.Teacher(WIDTH), twin.Student(WIDTH, SHORTCUT))
  ]
  known = port.from_torch('teacher', twins.state_of(theirs[0]))
  guess = port.from_torch('student', twins.state_of(theirs[1]))
  x = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype('f4')

  @hastily
  def ours(known, guess, x):
    maps = Teacher(WIDTH).apply(known, x)
    return maps, Student(WIDTH, SHORTCUT).apply(guess, maps)

  for _ in range(2):
    maps, guesses = ours(known, guess, x)
    with torch.no_grad():
      want = theirs[0](twins.to_torch(x))
      assert_maps_close(maps, want)
      assert_maps_close(guesses, theirs[1](want))
    # Now to torch, other weights.
    guess = scaled(guess)
    load(theirs[1], port.to_torch('student', guess))


@functools.cache
def shallow_step(per):
  task = DistillTask(WIDTH, SHORTCUT, per=per)
  return task, hastily(programs.chunk_functions(task, None, (None,))[0])


@pytest.mark.parametrize('per,alpha,labels', [
  ('location', 0.1, [1, 0, 1, 1, 0, 0]),
  ('map', 0.3, [1, 0, 1, 1, 0, 0]),
  ('map', 0.0, [1] * 6),
])  # fmt: skip
def test_a_step_its_gradients_and_statistics_equal_torchs(
  monkeypatch, per, alpha, labels
):
  monkeypatch.setattr(reverse_distillation, 'STAGES', SHALLOW)
  torch.manual_seed(0)
  teacher = twins.randomized(twin.Teacher(WIDTH, SHALLOW)).eval()
  student = twins.randomized(twin.Student(WIDTH, SHORTCUT, SHALLOW))
  known = port.from_torch('teacher', twins.state_of(teacher))
  guess = port.from_torch('student', twins.state_of(student))
  label, rate = np.array(labels), 1e-4
  image = np.random.default_rng(0).integers(
    0, 256, (len(label), SIZE, SIZE, 3), np.uint8
  )

  task, step = shallow_step(per)
  setting = Setting(np.arange(len(label)), 0, alpha, gamma=2)
  state = train.init(
    task, runs_of([setting], label), jax.tree.map(lambda x: x[None], guess)
  )
  state, sums = step(
    state.replace(learning_rate=np.float32([rate])),
    Patches(teacher=known, image=image, label=label),
    (np.zeros(1, np.int32), np.arange(len(label))[None, None]),
  )
  state = jax.tree.map(lambda x: x[0], state)

  teacher, student = teacher.double(), student.train().double()
  mean = np.array([0.485, 0.456, 0.406])
  std = np.array([0.229, 0.224, 0.225])
  with torch.no_grad():
    f = teacher(twins.to_torch((image / 255 - mean) / std))
  g = student(f)
  loss = (
    twin.focal_loss(f, g, torch.tensor(label), alpha, 2, per)
    if alpha
    else twin.rd_loss(f, g, per)
  )
  adam = torch.optim.Adam(student.parameters(), rate, (0.5, 0.999))
  loss.backward()
  adam.step()
  mean_loss = sums['loss'][0] / sums['weight'][0]
  np.testing.assert_allclose(mean_loss, loss.item(), rtol=1e-4)

  # After one step the first moment is half of the gradient.
  (moments,) = (s for s in state.opt_state if hasattr(s, 'mu'))
  ours = port.to_torch(
    'student',
    {
      'params': jax.tree.map(lambda m: 2 * m, moments.mu),
      'batch_stats': state.batch_stats,
    },
  )
  moved = port.to_torch('student', state.variables)
  after = twins.state_of(student)
  for name, parameter in student.named_parameters():
    if name.startswith(('bn.conv4.', 'bn.bn4.')):
      assert parameter.grad is None
      continue
    gradient = parameter.grad.numpy()
    top = np.abs(gradient).max()
    assert top > 0
    np.testing.assert_allclose(
      ours[name], gradient, atol=1e-3 * top, err_msg=name
    )
    # Adam's first step is a sign: not that of noise.
    sure = np.abs(gradient) > 1e-2 * top
    np.testing.assert_allclose(
      moved[name][sure], after[name][sure], atol=2e-6, err_msg=name
    )
  for name in set(ours) - {n for n, _ in student.named_parameters()}:
    np.testing.assert_allclose(
      ours[name], after[name], rtol=1e-4, atol=1e-4, err_msg=name
    )
