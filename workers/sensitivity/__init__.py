"""How much the quantization error of each layer alone moves the model's outputs, without a map a layer."""
