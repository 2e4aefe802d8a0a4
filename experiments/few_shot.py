"""Detects tumour with few labelled patches (He and Li 2023, FW-RD).

  python -m experiments.few_shot              # on a phantom of CAMELYON16
  python -m experiments.few_shot --slides_dir=slides --annotations=outlines \\
      --lists_dir=lists --reference_csv=test_reference.csv \\
      --weights=wide_resnet50_2.pth
  python -m experiments.few_shot --patches_dir=patches

A teacher network, which knows photographs, stays as it is. A student learns to
reproduce the teacher's feature maps on normal patches, and not to on the few
labelled patches of tumour. How far the two differ on a new patch is its anomaly
score: high where there is tumour.

RD learns from normal patches alone, FW-RD from those of tumour, too: Table 2.
Table 3 has fewer and fewer patches of tumour, then follow ablations and, where
there are slides, their AUROC, FROC and maps of the score.

By default (on the phantom): lr 1e-05 (0.003), epochs 50 (3), batch_size 32,
width 64 (8), seeds 1 (3).
"""

from experiments.patches import study
from experiments.run import start
from experiments.run.start import Check, Machine, Output
from experiments.studies import few_shot, few_shot_data
from experiments.studies.few_shot_data import Data
from experiments.studies.few_shot_training import Students
from kmil_jax import parallel

PAPER = study.Paper(
  name='few_shot',
  about=__doc__,
  inputs={'patches_dir': 'patches'},
  source='He and Li, "Whole-slide-imaging cancer metastases detection and'
  ' localization with limited tumorous data", MIDL 2023',
  # The released code: a learning rate of 1e-6, 10 epochs.
  recipe={
    'students': Students(
      width=64, epochs=50, learning_rate=1e-5, batch=32, seeds=1
    )
  },
  # What a CPU trains in minutes: a teacher that knows nothing is imitated soon.
  phantom={
    'students': {'width': 8, 'epochs': 3, 'learning_rate': 3e-3, 'seeds': 3}
  },
)


def run(
  data: Data,
  students: Students,
  output: Output,
  machine: Machine,
  check: Check,
) -> start.Next:
  """Trains the students of all settings and tests them."""
  if data.is_phantom:
    parallel.use_cores()  # The phantom's networks are small.
  material = few_shot_data.open_material(data, output.seed, machine.cache_dir)
  # config.json holds the recipe as it is used.
  students = PAPER.here([students], data.is_phantom)['students']
  given = [data, students, output, machine, check]
  stages = lambda s: few_shot.stages(s, material)
  return study.run(PAPER, material, given, stages, check=check.check)


main = start.script(run)

if __name__ == '__main__':
  main()
