"""A model of your own: autotune run examples/own-task.yaml --task-file examples/own_task.py."""

from sklearn import datasets, neural_network
from torch import nn, tensor

from autotune import OutputKind, Split, register

IMAGES, DIGITS = (tensor(values).float() for values in datasets.load_digits(return_X_y=True))
TEST = {Split.EVALUATION: slice(1000, 1400), Split.HELD_OUT: slice(1400, None)}


@register("own-digits")
class OwnDigits:
    """A network trained elsewhere, here by scikit-learn, on images of digits; accuracy is top-1."""

    output_kind = OutputKind.LOGITS

    def build_model(self):
        trained = neural_network.MLPClassifier((256, 128), random_state=0).fit(IMAGES[:900], DIGITS[:900])
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
        for layer, weight, bias in zip(model[::2], trained.coefs_, trained.intercepts_, strict=True):
            layer.weight.data, layer.bias.data = tensor(weight.T).float(), tensor(bias).float()
        return model.eval()

    def calibration(self):
        return [IMAGES[900:1000]]

    def evaluation(self, split):
        return [IMAGES[TEST[split]]]

    def forward(self, model, batch):
        return model(batch)

    def accuracy(self, outputs, split):
        return (outputs.argmax(dim=1) == DIGITS[TEST[split]]).double().mean().item()

    def latency_batch(self, batch_size):
        return IMAGES[:batch_size]
