"""Images: a small convolutional network reads handwritten digits, 8 x 8 pixels each, one image an event."""

from collections.abc import Mapping

from torch import Tensor, nn

from examples.digits import COLUMNS, ROWS
from examples.stream import Example, Predict, accuracy, main
from pipeline.task import Multiclass

LEARNED, UNSEEN = ROWS[:1500], ROWS[1500:]


class Convolutions(nn.Module):
    """Pixels [N, 64] from 0 to 16, to logits [N, K]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, classes),
        )

    def forward(self, features_NC: Tensor) -> Tensor:
        return self.layers(features_NC.view(-1, 1, 8, 8) / 16)


class ImageTask(Multiclass):
    def module(self) -> nn.Module:
        return Convolutions(self.outputs)


def report(predict: Predict) -> Mapping[str, float]:
    return {"accuracy on 297 images that never came": accuracy(predict(UNSEEN), UNSEEN)}


EXAMPLE = Example(
    name="images",
    stages=[LEARNED],
    features={"numeric": COLUMNS},
    learner={
        "task": "examples.images:ImageTask",
        "classes": 10,
        "learning_rate": 0.003,
        "batch_size": 32,
        "epochs": 12,
        "replay": 500,
        "average": 0.9,
    },
    report=report,
)

if __name__ == "__main__":
    main(EXAMPLE)
