"""Networks in torch that ours are compared with; torchvision names."""
