"""How the images of ImageNet's encoders are normalised."""

# Of the red, green and blue of ImageNet, for values in 0..1, as used by every
# torchvision and timm encoder.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
