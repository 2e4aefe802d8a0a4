"""Writes what the networks said of every slice, and the scores."""

from collections.abc import Sequence
import json
import pathlib

from data import splits
from experiments import ct_nodes_table, files
from experiments.ct_nodes_parts import Parts
from experiments.ct_nodes_table import Said


def write_predictions(
  path: pathlib.Path, parts: Parts, said: Sequence[Said]
) -> None:
  """Writes a row per slice: patient, volume, part, label, probabilities."""
  tiles, slices = parts.tiles, parts.slices
  header = ['patient_id', 'slice_id', 'image_path', 'z_mm', 'split', 'label']
  positive = tiles.classes[1]
  lines = [header + [f'prob_{positive}_{one.name}' for one in said]]
  for part in splits.PARTS:
    for i in parts.rows[part]:
      source = parts.source[i]
      lines.append(
        [
          tiles.group[i],
          tiles.id[i],
          slices.image[slices.node[source]],
          f'{slices.z[source]:.2f}',
          part,
          tiles.classes[tiles.label[i]],
          *(repr(float(one.prob[i, 1])) for one in said),
        ]
      )
  files.write_csv(path, lines)


def write_summary(
  path: pathlib.Path,
  parts: Parts,
  found: dict[str, dict],
  looks: dict[str, float | None],
) -> None:
  """Writes summary.json: the nodes, and the scores of every network."""
  summary = {
    'box_voxels': parts.side,
    'nodes': parts.fates,
    'slices': {part: len(rows) for part, rows in parts.rows.items()},
    'networks': {
      name: scores | {'grad_cam_in_node': looks[name]}
      for name, scores in found.items()
    },
    'test_auroc_of_area': ct_nodes_table.area_auroc(parts),
  }
  files.write_text(path, json.dumps(summary, indent=2, allow_nan=False) + '\n')
