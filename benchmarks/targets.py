"""The benchmark's networks, by the names of RESULTS.md. They are sized for a CPU."""

from dataclasses import replace
from pathlib import Path

from exhume.defence.training import TrainingConfig
from exhume.networks import NetworkConfig
from exhume.presets import TRAININGS
from exhume.problems import Selection
from exhume.runs.cells import Recipe

# as far in 10,000 epochs as plain descent at a rate of 0.5
DECAY = TrainingConfig(lr=0.05, momentum=0.9, epochs=10_000, weight_decay=2e-3)
NO_DECAY = TrainingConfig(lr=0.5, epochs=1000)
LONG = TrainingConfig(lr=0.5, lr_over_loss=1e-3, epochs=20_000, stop_loss=1e-12, evaluate_every=50)
ADAM = TrainingConfig(optimiser="adam", lr=1e-3, batch_size=32, epochs=500, evaluate_every=1, patience=10)
BATCHES = TrainingConfig(lr=0.1, batch_size=32, epochs=500, evaluate_every=1, patience=10)
SLOWER = replace(BATCHES, lr=0.03)
DEFAULT_INIT = NetworkConfig(init_scale=None)
BIASES = NetworkConfig(init_scale=None, bias="all")
CNN = NetworkConfig(kind="cnn", channels=(32, 64), widths=(1000,), init_scale=None)
CNN_BIASES = replace(CNN, bias="all")
DIGITS, PARITY, FACES = "mnist-digits", "mnist-odd-even", "faces"
PHOTOGRAPHS, ANIMALS = "cifar10-multiclass", "cifar10-vehicles-animals"
PUBLIC = str(Path(__file__).with_name("public_photographs.py"))
MANY = str(Path(__file__).with_name("many_photographs.py"))


def recipe(
    problem: str,
    per_class: int,
    training: TrainingConfig,
    network: NetworkConfig | None = None,
    *,
    classes: int | None = None,
    data_dir: str | None = None,
    initial: Recipe | None = None,
) -> Recipe:
    """A training on so many images of each class."""
    selection = Selection(per_class=per_class, classes=classes, data_dir=data_dir)
    return Recipe(problem=problem, selection=selection, training=training, network=network, initial=initial)


def known(problem: str, per_class: int, training: TrainingConfig, network: NetworkConfig = BIASES) -> Recipe:
    """An ordinary training whose fresh weights the attacker knows: those of its seed."""
    fresh = recipe(problem, per_class, replace(training, epochs=0), network)
    return recipe(problem, per_class, training, initial=fresh)


def preset(name: str, data_dir: str | None = None) -> Recipe:
    """A row of the library's TRAININGS."""
    row = TRAININGS[name]
    return recipe(row.problem, row.per_class, row.training, row.network, data_dir=data_dir)


PUBLIC_NETWORK = recipe(PUBLIC, 200, SLOWER, BIASES)
TARGETS = {
    "demo": preset("demo"),
    "b1": recipe(PARITY, 50, replace(DECAY, loss="mse", lr=0.02, epochs=50_000), DEFAULT_INIT),
    "b2": recipe(PARITY, 50, replace(LONG, lr=0.1)),
    "b3": recipe(DIGITS, 10, NO_DECAY),
    "b4": recipe(DIGITS, 10, DECAY),
    "b5": recipe(PHOTOGRAPHS, 10, replace(NO_DECAY, epochs=2000)),
    "b6": recipe(DIGITS, 50, LONG),
    "b6-decay": recipe(DIGITS, 50, DECAY),
    "b7": recipe(PHOTOGRAPHS, 50, LONG),
    "b8": recipe(ANIMALS, 250, replace(LONG, lr=0.1, lr_over_loss=3e-4)),
    "b8-decay": recipe(
        f"{ANIMALS}-regression", 250, replace(DECAY, lr=0.02, weight_decay=7.5e-4, epochs=50_000), DEFAULT_INIT
    ),
    "b9": recipe(FACES, 50, replace(DECAY, lr=0.02, epochs=20_000)),
    "b10": recipe(DIGITS, 10, ADAM, BIASES),
    "cnn": recipe(DIGITS, 10, DECAY, CNN),
    "cnn-photographs": recipe(PHOTOGRAPHS, 10, DECAY, CNN),
    "b10-known": known(DIGITS, 10, ADAM),
    "known": known(DIGITS, 10, BATCHES),
    "known-500": known(DIGITS, 50, BATCHES),
    "known-photographs": known(PHOTOGRAPHS, 50, SLOWER),
    "known-binary": known(ANIMALS, 250, SLOWER),
    "known-cnn": known(DIGITS, 10, BATCHES, CNN_BIASES),
    "known-cnn-photographs": known(PHOTOGRAPHS, 10, SLOWER, CNN_BIASES),
    "known-faces": known(FACES, 50, SLOWER, replace(CNN_BIASES, widths=(100,))),
    "tuned": recipe(PHOTOGRAPHS, 10, SLOWER, initial=PUBLIC_NETWORK),
    "tuned-adam": recipe(PHOTOGRAPHS, 10, ADAM, initial=PUBLIC_NETWORK),
}
