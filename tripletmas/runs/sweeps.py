"""Several values of some options: which runs that makes, and a guided choice of the next value by optuna."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import product

Chosen = dict[str, str]  # option, in dots -> value, as on the command line


def combinations(sweeps: Sequence[str]) -> list[Chosen]:
    """Every combination of the values of several sweeps, each written `option=value,value,...`.

    Commas inside brackets belong to a value: `model.hidden=[64,64],[128]` has two.

    Raises:
        ValueError: for a sweep of another form, an option that is swept twice, or a value given twice.

    >>> combinations(["strategy.strength=0.1,1"])
    [{'strategy.strength': '0.1'}, {'strategy.strength': '1'}]
    """
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        option, _, text = sweep.removeprefix("--").partition("=")
        values = [value.strip() for value in re.split(r",(?![^\[]*\])", text)]
        if not option or not all(values):
            raise ValueError(f"a sweep is written option=value,value such as strategy.strength=0.1,1; got {sweep!r}")
        if option in axes:
            raise ValueError(f"{option} is swept twice: give all its values in one --sweep")
        if len(set(values)) < len(values):
            raise ValueError(f"a value of the sweep of {option} is given twice: {text}")
        axes[option] = values
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def folder_of(chosen: Chosen) -> str:
    """The name of the folder of a run: `strength=0.1,lr=0.01`."""
    last = [option.rpartition(".")[2] for option in chosen]
    names = last if len(set(last)) == len(last) else list(chosen)
    text = ",".join(f"{name}={value}" for name, value in zip(names, chosen.values(), strict=True))
    return re.sub(r"[^\w.,=+\-\[\]]", "_", text)


def ranges(sweeps: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Option -> (lowest, highest) value, each sweep written `option=low..high`, both positive.

    Raises:
        ValueError: for a sweep of another form.
    """
    if not sweeps:
        raise ValueError("--trials needs a --sweep, such as --sweep strategy.strength=0.01..10")
    found = {}
    for sweep in sweeps:
        option, _, text = sweep.removeprefix("--").partition("=")
        try:
            low, high = map(float, text.split(".."))
        except ValueError:
            low = high = 0.0
        if not option or not 0 < low < high:
            raise ValueError(
                f"with --trials a sweep is written option=low..high, 0 < low < high, such as "
                f"strategy.strength=0.01..10; got {sweep!r}"
            )
        found[option] = (low, high)
    return found


def guided(sweeps: Sequence[str], trials: int, run: Callable[[Chosen, int], float]) -> tuple[Chosen, float]:
    """Let optuna choose the values of several options, on a logarithmic scale, to make a score large.

    Each choice follows from the scores before it, by optuna's TPE sampler with a fixed seed: the same scores give the
    same choices, so that a sweep that was interrupted goes on where it stopped.

    Args:
        run: (values, number of the trial) -> score.

    Returns: the best values and their score.

    Raises:
        ValueError: as `ranges`; where optuna is not installed.
    """
    axes = ranges(sweeps)
    if trials < 1:
        raise ValueError(f"--trials must be >= 1, got {trials}")
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError('--trials needs optuna: pip install "tripletmas[optuna]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        values = {name: f"{trial.suggest_float(name, *axis, log=True):.4g}" for name, axis in axes.items()}
        trial.set_user_attr("values", values)
        return run(values, trial.number)

    study.optimize(objective, n_trials=trials)
    return study.best_trial.user_attrs["values"], study.best_value
