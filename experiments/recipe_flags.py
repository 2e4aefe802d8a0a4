"""Flags that change single values of any recipe, of bags or of patches."""

from absl import flags

EPOCHS = flags.DEFINE_integer(
  'epochs',
  None,
  "Epochs, by default the recipe's (bags: 400); KMIL's first stage takes 100"
  ' at most.',
  1,
)
LR = flags.DEFINE_float(
  'lr', None, "Initial learning rate, by default the recipe's (bags: 2e-4).", 0
)
WEIGHT_DECAY = flags.DEFINE_float(
  'weight_decay',
  None,
  "Weight decay, by default the recipe's (bags: 1e-5, in the gradient).",
  0,
)
SELECT = flags.DEFINE_enum(
  'select',
  None,
  ['f1_macro', 'loss', 'accuracy', 'auroc', 'last'],
  'The epoch kept: of the best validation macro-F1 (bags), loss, accuracy or'
  ' AUROC, or the last, where validation parts are too small to choose by.',
)
TENSORBOARD = flags.DEFINE_bool(
  'tensorboard',
  False,
  'Also write what metrics.jsonl holds as TensorBoard event files beside it.',
)
PRECISION = flags.DEFINE_enum(
  'precision', 'float32', ['float32', 'bfloat16'], 'Of features and products.'
)
