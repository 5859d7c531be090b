"""What follows the plan of an upgrade: applied, embedded anew in part, switched to, taken back, finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from tripletmas.runs.deployed import load_deployed
from tripletmas.runs.directory import is_run
from tripletmas.runs.models import RunModel
from tripletmas.runs.upgrades.kept import Plan
from tripletmas.runs.upgrades.reembed import embed_anew
from tripletmas.stores.identity import Identity, Upgrade, read_notes
from tripletmas.stores.opening import opened
from tripletmas.stores.store import Store
from tripletmas.stores.upgrading import (
    APPLIED,
    apply_move,
    begin,
    changing,
    drop_old,
    embedded_anew,
    rollback,
    switch,
    upgrade_of,
)

ModelOf = Callable[[Namespace, str], RunModel]  # the options, "old" or "new" -> the model that is named


def take_steps(options: Namespace, folder: Path | None, model_of: ModelOf) -> dict[str, Any]:
    """Do what the options ask for; what was done, step by step.

    Args:
        folder: of a plan that was just made; None: the one that --out names, or that has begun.
        model_of: what loads the model that --old or --new names.
    """
    share, did = _share(options.reembed), {}
    with opened(options.store) as store:
        is_new, folder = folder is not None, _folder(store, folder, options)
        with changing(store, folder):
            if options.rollback or options.drop_old:
                return {"store": str(store.place), **_back(store, options)}
            if not is_new and (options.old or options.new):
                _check_models(Plan.open(folder), folder, options, model_of)
            if options.apply:
                did["apply"] = _apply(store, Plan.open(folder), folder, options)
            if share is not None:
                did["reembed"] = _reembed(store, share, options)
            if options.switch:
                done = switch(store)
                did["switch"] = {"active": done.active, "kept": done.kept}
                print(
                    f"{store.place}: the new vectors are {done.active!r} now, the old ones are kept as {done.kept!r}: "
                    "--rollback goes back, --drop-old lets them go"
                )
            return {"store": str(store.place), **did}


def _folder(store: Store, planned: Path | None, options: Namespace) -> Path:
    """The folder of the upgrade that has begun, or of the plan."""
    begun = read_notes(store).upgrade
    if begun is not None:
        return Path(options.out or begun.directory)
    if planned is None and options.out is None:
        what = "there is no upgrade under way" if not options.apply else "it needs a plan"
        raise ValueError(f"{store.place}: {what}: --old MODEL --new MODEL makes one, --out DIR names one that is made")
    return planned or Path(options.out)


def _check_models(plan: Plan, folder: Path, options: Namespace, model_of: ModelOf) -> None:
    """Raises ValueError where --old or --new name other models than the plan that is gone on with."""
    for name, planned in (("old", plan.was), ("new", plan.becomes)):
        if options[name] is not None and (model := _named(options, name, planned, model_of)).hash != planned.model:
            raise ValueError(
                f"--{name} {options[name]} is the model {model.hash[:12]}, and the plan in {folder} is "
                f"{'from' if name == 'old' else 'to'} {planned.model[:12]} ({planned.source}): leave --old and "
                "--new out to go on with that one, or take it back by --rollback, or name another folder by --out"
            )


def _apply(store: Store, plan: Plan, folder: Path, options: Namespace) -> dict[str, Any]:
    if plan.place != str(store.place):
        raise ValueError(f"the plan in {folder} is of {plan.place}, not of {store.place}")
    becomes = replace(plan.becomes, embedded_by=plan.was.model)
    upgrade = begin(store, plan.name, old=plan.field, was=plan.was, becomes=becomes, directory=folder)
    done = apply_move(store, plan.fitted.map, leave_unusable=options.leave_unusable)
    bare = done.without + done.unusable
    parts = [f"{done.written} written", *([f"{done.found} of them found by a second look"] if done.found else [])]
    parts += [f"{bare} points have none that could be moved"] if bare else []
    rate = done.written / max(done.seconds, 1e-9)
    print(
        f"{store.place}: {done.points} points have their new vector {upgrade.new!r} ({', '.join(parts)}; "
        f"{done.seconds:.1f} s, {rate:,.0f} a second); --switch lets them be found, --rollback takes them back"
    )
    return {"points": done.points, "written": done.written, "without": bare, "field": upgrade.new}


def _reembed(store: Store, share: float, options: Namespace) -> dict[str, Any]:
    _, upgrade = upgrade_of(store)
    if upgrade.stage != APPLIED:
        stage = f"the upgrade of {store.place} is {upgrade.stage}"
        raise ValueError(f"{stage}: --reembed comes after --apply and before --switch")
    plan = Plan.open(_directory(upgrade, options))
    given = {"weights": options.new_weights, "size": options.new_size, "device": options.device, "option": "--new-"}
    model = load_deployed(options.new or plan.becomes.source, after=_after(plan, options), **given)
    if model.hash != plan.becomes.model:
        raise ValueError(f"{model.run} is the model {model.hash[:12]}, and the plan is to {plan.becomes.model[:12]}")
    count = round(share * len(store))
    done, missing = embed_anew(store, upgrade, plan, model, count)
    there = len(embedded_anew(upgrade))
    gone = f"; {missing} could not be read and stay as they were moved" if missing else ""
    print(f"{store.place}: {there} of {len(store)} points are embedded anew, {done} now{gone}")
    return {"embedded_anew": there, "now": done, "missing": missing}


def _directory(upgrade: Upgrade, options: Namespace) -> Path:
    return Path(options.out or upgrade.directory)


def _named(options: Namespace, name: str, planned: Identity, model_of: ModelOf) -> RunModel:
    """The model that --old or --new names; of a run the one of the task of the plan, where no other is asked for."""
    if options[f"{name}_after"] is None and is_run(Path(options[name])):
        options[f"{name}_after"] = planned.after_task if planned.after_task >= 0 else None
    return model_of(options, name)


def _after(plan: Plan, options: Namespace) -> int | None:
    if options.new_after is not None:
        return options.new_after
    return plan.becomes.after_task if plan.becomes.after_task >= 0 else None


def _back(store: Store, options: Namespace) -> dict[str, Any]:
    if options.drop_old:
        gone = drop_old(store)
        print(f"{store.place}: the old vectors {gone.kept!r} are gone, and {gone.active!r} are those of the new model")
        return {"drop_old": {"active": gone.active, "gone": gone.kept}}
    lost = rollback(store, force=options.force)
    print(f"{store.place} is as it was before{f'; {lost} points have no old vector' if lost else ''}")
    return {"rollback": {"without_old": lost}}


def _share(text: str | None) -> float | None:
    """0.1 of 10%, or of 10."""
    if text is None:
        return None
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ValueError(f"--reembed must be a percentage between 0 and 100, as 10%, got {text!r}")
    return share
