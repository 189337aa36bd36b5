"""Language: causal models, multiple choice, sentence encoders."""
