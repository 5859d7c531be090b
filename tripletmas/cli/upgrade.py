"""The command that brings a store from one model to another: first the plan, which changes nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from tripletmas.cli.console import console, make_parser, make_table
from tripletmas.cli.items import items_of
from tripletmas.runs import trust
from tripletmas.runs.deployed import load_deployed
from tripletmas.runs.directory import RunDirectory, is_run
from tripletmas.runs.models import RunModel
from tripletmas.runs.upgrades.expected import Expected
from tripletmas.runs.upgrades.kept import Plan, Way, has_plan
from tripletmas.runs.upgrades.plan import make_plan
from tripletmas.runs.upgrades.shown import Items, absolute
from tripletmas.stores.identity import Identity, read_notes
from tripletmas.stores.opening import opened
from tripletmas.stores.place import read_place
from tripletmas.stores.store import field_of

STEPS = ("apply", "reembed", "switch", "rollback", "drop_old")


def upgrade(arguments: Sequence[str]) -> dict[str, Any]:
    """Bring a store from one model to another, reading few of its pictures or none. Without a step, tell what that
    keeps and costs, by a sample that both models embed: nothing in the store is changed, and the map is kept in a
    folder. Then --apply, --reembed SHARE, --switch, and --drop-old; until then --rollback."""
    parser = make_parser("upgrade", upgrade.__doc__, "--device", "--invert", "--trust-code")
    parser.add_argument("store", type=str, help="an index file, or SCHEME://WHERE#COLLECTION")
    add_models(parser)
    add_sample(parser)
    parser.add_argument("--out", type=str, default=None, metavar="DIR", help="where the plan is kept")
    add_steps(parser)
    options = parser.parse_args(arguments)
    _check_steps(options)
    plan, folder = plan_of(options) if _wants_plan(options) else (None, None)
    if is_step(options):
        from tripletmas.cli.upgrade_steps import take_steps  # with what embeds anew, which a plan does not need

        return take_steps(options, folder, model_of)
    return {**plan.to_json(), "folder": str(folder)} if plan else {}


def _check_steps(options: Namespace) -> None:
    """Whether what is asked for can be done in one go."""
    asked = [name for name in STEPS if options[name]]
    for back in ("rollback", "drop_old"):
        if back in asked and len(asked) > 1:
            raise ValueError(f"--{back.replace('_', '-')} stands alone: give the other steps before it, or none")


def _wants_plan(options: Namespace) -> bool:
    """Whether a plan is to be made: not where steps follow one that is there."""
    if not is_step(options):
        for name in ("old", "new"):
            if options[name] is None:
                raise ValueError(f"--{name} MODEL is needed for a plan: a run, a folder, timm:NAME")
        return True
    return bool(options.apply and options.old and options.new and not _has_begun(options))


def _has_begun(options: Namespace) -> bool:
    if options.out and has_plan(options.out):
        return True
    with opened(options.store) as store:
        return read_notes(store).upgrade is not None


def add_models(parser: ArgumentParser) -> None:
    """The options that name the two models."""
    for name, what in (("old", "that made the vectors"), ("new", "to which the store is brought")):
        parser.add_argument(
            f"--{name}", type=str, default=None, metavar="MODEL", help=f"the model {what}: a run, a folder, timm:NAME"
        )
        parser.add_argument(f"--{name}-after", type=int, default=None, help="of a run, after which task, from 0")
        parser.add_argument(f"--{name}-weights", type=str, default=None, metavar="FILE", help="of timm: or torchvision")
        parser.add_argument(f"--{name}-size", type=str, default=None, help="of its images, for the same: 224, 224x160")


def add_sample(parser: ArgumentParser) -> None:
    """The options that say what both models embed."""
    parser.add_argument("--sample", type=int, default=1000, help="points that both models embed")
    parser.add_argument("--seed", type=int, default=0, help="by which they are drawn")
    parser.add_argument(
        "--images", type=str, default=None, help="a folder or archive of pictures that are in the store"
    )
    parser.add_argument("--csv", type=str, default=None, help="a CSV file of texts in the store")
    parser.add_argument("--text", type=str, default=None, help="the column of the texts in it")
    parser.add_argument("--label", type=str, default=None, help="the column of their classes (default: none)")
    parser.add_argument(
        "--shares", type=str, default="10,25,50", help="percent of the points that may be embedded anew after the map"
    )
    parser.add_argument(
        "--leave-unusable", action="store_true", help="leave points whose vector is zero, or holds NaN, as they are"
    )


def add_steps(parser: ArgumentParser) -> None:
    """The options that carry an upgrade out."""
    parser.add_argument(
        "--apply", action="store_true", help="write the new vectors beside the old ones; killed, call it again"
    )
    parser.add_argument(
        "--reembed",
        type=str,
        default=None,
        metavar="SHARE",
        help="after that, embed so many percent of the points by the new model: those of which the map is least sure",
    )
    parser.add_argument("--switch", action="store_true", help="let those who search the store find the new vectors")
    parser.add_argument("--rollback", action="store_true", help="bring the store to where it was before --apply")
    parser.add_argument("--drop-old", action="store_true", help="after the switch: let the old vectors go, for good")
    parser.add_argument(
        "--force", action="store_true", help="of --rollback: although points came after the switch, without old vectors"
    )


def is_step(options: Namespace) -> bool:
    """Whether the options ask for more than a plan."""
    return any(options[name] for name in STEPS)


def plan_of(options: Namespace) -> tuple[Plan, Path]:
    """Make the plan that the options ask for, print it, and keep it; the folder that it is in."""
    old, new = (model_of(options, name) for name in ("old", "new"))
    given = _given(options)
    with opened(options.store) as store:
        if (begun := read_notes(store).upgrade) is not None:
            raise ValueError(
                f"{store.place} has an upgrade under way, {begun.stage}, whose plan is in {begun.directory}: finish it "
                "(--switch, then --drop-old), or take it back (--rollback), before another is planned"
            )
        plan = make_plan(
            store,
            field_of(store),
            old,
            new,
            sample=options.sample,
            shares=_shares(options.shares),
            given=given,
            seed=options.seed,
            invert=options.invert,
            leave_unusable=options.leave_unusable,
        )
    folder = Path(options.out or Path("upgrades") / f"{read_place(options.store).slug}-{plan.name[:17]}")
    plan.save(folder)
    _print(plan, folder, goes_on=options.apply)
    return plan, folder


def model_of(options: Namespace, name: str) -> RunModel:
    """The model that --old or --new names."""
    given = {key: getattr(options, f"{name}_{key}") for key in ("after", "weights", "size")}
    named = getattr(options, name)
    if options.trust_code and is_run(Path(named)):
        trust.accept(RunDirectory.open(named).config().get("code"), unseen=True)
    return load_deployed(named, **given, device=options.device, option=f"--{name}-")


def _given(options: Namespace) -> Items | None:
    """The pictures or texts that are named, if any are."""
    if not (options.images or options.csv):
        return None
    options.vectors = None
    items = items_of(options)
    names = items.texts or absolute(items.names, items.root)
    return Items(tuple(names), tuple(items.classes), bool(items.texts))


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = sorted({float(each.strip().removesuffix("%")) / 100 for each in text.split(",") if each.strip()})
    except ValueError:
        shares = [math.nan]
    if any(not 0 < share < 1 for share in shares):
        raise ValueError(f"--shares must be percents between 0 and 100 with commas between them, got {text!r}")
    return tuple(shares)


def _print(plan: Plan, folder: Path, *, goes_on: bool) -> None:
    bare = f"; {plan.without} more have none that is of use" if plan.without else ""
    gone = f"; {plan.missing} more could not be read, or have changed" if plan.missing else ""
    print(
        f"{plan.place}: {plan.points} vectors {plan.field!r} of dim {plan.was.dim} by {_named(plan.was)}{bare}; "
        f"{_named(plan.becomes)} gives dim {plan.becomes.dim}"
    )
    print(f"sample: {plan.sample} {plan.what}, cosine {plan.cosine:.3f} of the old model to what is stored{gone}")
    print(f"map: {plan.fitted.choice.sentence()}")
    console().print(_table(plan))
    if not plan.whole_recall and not math.isnan(plan.ways[0].recall.middle):
        print(
            f"recall@1 is that in a gallery of {plan.sample - plan.sample // 2}, for the store names no classes "
            "(?label=COLUMN); in the whole store it is another"
        )
    print(f"{'' if goes_on else 'nothing in the store was changed; '}the plan and its map are in {folder}")


def _named(identity: Identity) -> str:
    """The model as a user named it; a path as it is seen from here, where it lies below."""
    source, here = identity.source, os.path.join(os.getcwd(), "")
    return source.removeprefix(here) + (f" after task {identity.after_task}" if identity.after_task >= 0 else "")


def _table(plan: Plan) -> Table:
    heads = ("", ">recall@1", ">of the 10 nearest, as embedded anew", ">seconds", ">vectors", ">bytes", f">{plan.what}")
    table = make_table("expected, with intervals of 95 %", *heads)
    for way in plan.ways:
        table.add_row(way.name, _shown(way.recall), _shown(way.overlap), *_costs(way))
    return table


def _shown(expected: Expected) -> str:
    if math.isnan(expected.middle):
        return "no classes"
    if expected.low == expected.high:
        return f"{expected.middle:.0%}"
    return f"{expected.middle:.1%} ({expected.low:.1%} to {expected.high:.1%})"


def _costs(way: Way) -> tuple[str, ...]:
    return f"{way.seconds:,.1f}", f"{way.vectors:,}", f"{way.bytes:,}", f"{way.pictures:,}"
