"""Every documented command on its smallest input, as a table."""

import golden_bags
import golden_systems
import golden_tools

CHAINS = (
  golden_tools.FROC,
  golden_tools.BAD_FROC,
  golden_tools.FAULTS,
  golden_bags.COHORT,
  golden_bags.VARIANTS,
  golden_bags.PAPER,
  golden_tools.SLIDES,
  golden_tools.SCALES,
  golden_tools.OUTLINES,
  golden_systems.TWO_STEP,
  golden_systems.TILES,
  golden_systems.HARD_NEGATIVES,
  golden_systems.CT_NODES,
  golden_systems.FEW_SHOT,
  golden_systems.PHANTOMS,
)
