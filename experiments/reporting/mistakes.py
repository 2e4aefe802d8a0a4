"""The test slides that a model was most sure about, and wrong."""

import dataclasses

from experiments.reporting.record import Record

_MOST = 12


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A slide that was taken for another class."""

  slide: str
  case: str
  fold: int
  label: str
  pred: str
  prob_pred: float
  prob_label: float


def worst(record: Record) -> tuple[list[Mistake], int]:
  """Returns the mistakes of the highest probability, and how many there are."""
  found = []
  for fold, parts in record.folds.items():
    p = parts['test']
    for i, pred in enumerate(p.prob.argmax(1)):
      if pred == p.label[i]:
        continue
      found.append(
        Mistake(
          slide=str(p.slide[i]),
          case=str(p.case[i]),
          fold=fold,
          label=record.classes[p.label[i]],
          pred=record.classes[pred],
          prob_pred=float(p.prob[i, pred]),
          prob_label=float(p.prob[i, p.label[i]]),
        )
      )
  found.sort(key=lambda m: (-m.prob_pred, m.slide))
  return found[:_MOST], len(found)
