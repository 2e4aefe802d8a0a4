"""What He and Li published of FW-RD: protocol, recipe and numbers.

He and Li, "Whole-slide-imaging cancer metastases detection and localization
with limited tumorous data", MIDL 2023 (https://github.com/wollf2008/FW-RD).
"""

SOURCE = 'He and Li 2023 (CAMELYON16)'

WIDTH = 64  # Channels of the stem of WideResNet-50-2.
NORMAL, TUMOUR = 5000, 500  # Training patches.
COUNTS = (0, 5, 10, 50, 100, 500, 1000)  # Tumour patches of Table 3.
ALPHA, GAMMA = 0.1, 2.0
LEARNING_RATE = 1e-5  # The released code: 1e-6.
EPOCHS = 50  # The released code: 10.
BATCH = 32
THRESHOLD = 2.0  # Score from which on a patch is called tumour.

# Accuracy of patches.
TABLE_2 = {'RD': 0.652, 'FW-RD': 0.881}
TABLE_2_OTHERS = {'HMS&MIT': 0.984, 'SLFCD': 0.933, 'TCBB': 0.876}
TABLE_3 = dict(
  zip(COUNTS, (0.646, 0.759, 0.784, 0.812, 0.843, 0.881, 0.879), strict=True)
)
UNWEIGHTED = 0.838
BALANCED = 0.869  # 500 patches of each kind.
SUPERVISED = 0.930  # 100,000 patches of each kind.
SLIDE_AUROC = 0.9036
