"""The numbers that Zheng et al. 2024 published, table by table.

Zheng et al., "A deep learning method for predicting the origins of cervical
lymph node metastatic cancer on digital pathological images", iScience 2024
(https://doi.org/10.1016/j.isci.2024.110645). Patients of one hospital in ten
folds, and 85 slides of another. What the paper draws without printing a number
(the baselines in Figure 2, external values in Figure 4) is not here.
"""

SOURCE = 'Zheng et al. 2024'

# The models by their names here, in the order of Table 1.
MODELS = {
  'abmil': 'ABMIL',
  'transmil': 'TransMIL',
  'dtfd': 'DTFD',
  'dsmil': 'DSMIL',
  'kmil': 'KMIL',
}
CLASSES = ('non-tumor', 'lymphoma', 'breast', 'squamous', 'thyroid')

# Table 1: per cent by class, in the order of CLASSES.
TABLE_1 = {
  'abmil': {
    'recall': (76.30, 79.86, 58.48, 98.74, 35.61),
    'precision': (71.89, 73.94, 80.25, 84.00, 39.09),
  },
  'transmil': {
    'recall': (70.52, 72.90, 58.64, 94.05, 79.24),
    'precision': (68.02, 69.32, 75.49, 93.99, 87.50),
  },
  'dtfd': {
    'recall': (79.14, 77.68, 84.85, 99.05, 97.26),
    'precision': (80.09, 79.84, 84.55, 99.41, 98.33),
  },
  'dsmil': {
    'recall': (80.33, 85.34, 83.33, 98.42, 97.27),
    'precision': (82.41, 80.12, 90.94, 99.39, 99.17),
  },
  'kmil': {
    'recall': (81.26, 85.44, 84.06, 99.68, 96.36),
    'precision': (83.98, 81.25, 91.17, 99.09, 99.09),
  },
}

# Text of the results, and Figure 2A: KMIL in ten folds.
INTERNAL = {'kmil': {'accuracy': 0.9018, 'f1_macro': 0.9013, 'auroc': 0.9802}}

# Table 2: the external cohort.
TABLE_2 = {
  'abmil': {'accuracy': 0.5494, 'f1_macro': 0.4239, 'auroc': 0.7926},
  'transmil': {'accuracy': 0.4871, 'f1_macro': 0.6273, 'auroc': 0.8130},
  'dtfd': {'accuracy': 0.5506, 'f1_macro': 0.4914, 'auroc': 0.8442},
  'dsmil': {'accuracy': 0.6918, 'f1_macro': 0.6273, 'auroc': 0.9346},
  'kmil': {'accuracy': 0.7341, 'f1_macro': 0.6766, 'auroc': 0.9400},
}

# Table 3: millions of operations, thousands of parameters, seconds.
TABLE_3 = {
  'abmil': (61.46, 530.2, 1.064),
  'transmil': (602.82, 2673.2, 3.282),
  'dtfd': (83.02, 726.7, 2.301),
  'dsmil': (114.38, 641.4, 2.892),
  'kmil': (116.53, 643.6, 2.916),
}

# Tables 4 and 5: KMIL by the threshold t.
TABLE_4 = {
  0: {'accuracy': 0.8932, 'f1_macro': 0.8928, 'auroc': 0.9775},
  0.1: {'accuracy': 0.9018, 'f1_macro': 0.9013, 'auroc': 0.9802},
  0.2: {'accuracy': 0.8930, 'f1_macro': 0.8920, 'auroc': 0.9801},
}
TABLE_5 = {
  0.8: {'accuracy': 0.8656, 'f1_macro': 0.8577, 'auroc': 0.9735},
  0.85: {'accuracy': 0.8646, 'f1_macro': 0.8519, 'auroc': 0.9755},
  0.9: {'accuracy': 0.8685, 'f1_macro': 0.8618, 'auroc': 0.9718},
  1: {'accuracy': 0.8932, 'f1_macro': 0.8928, 'auroc': 0.9775},
}

# Table 6: KMIL by task; the accuracy of a category is its recall.
TABLE_6 = {
  'a': {
    'recall': {'non-tumor': 0.8242, 'lymphoma': 0.8665, 'metastatic': 0.9649},
    'accuracy': 0.9087,
    'f1_macro': 0.8834,
    'auroc': 0.9704,
  },
  'b': {
    'recall': {'non-tumor': 0.8201, 'lymphoma': 0.8496},
    'accuracy': 0.8340,
    'f1_macro': 0.8322,
    'auroc': 0.8348,
  },
  'c': {
    'recall': {'lymphoma': 0.9313, 'metastatic': 0.9538},
    'accuracy': 0.9471,
    'f1_macro': 0.9378,
    'auroc': 0.9426,
  },
}
