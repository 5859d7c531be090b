"""How the records and the JSON files of a run are made, as of `check_shape`; what is not named is free."""

from __future__ import annotations

from typing import Any

from tripletmas.basics.shape import NUMBER

SCORES = {"task_names": [str], "matrices": {str: {str: [[NUMBER]]}}, "baseline?": {str: {str: [NUMBER]}}}
CLASSES = {"class_names": [str], "tasks": [[int]]}
COMPATIBILITY = {"metric": str, "matrix": [[NUMBER]]}
FORECASTS = [{"after": int, "recall": {str: [NUMBER]}, **dict.fromkeys(("cosine", "nine_in_ten", "between"), NUMBER)}]
_OF_TASKS = {str: {str: [NUMBER]}}  # gallery -> metric -> a score for each task
_JUDGED = {"embedding?": {str: NUMBER}, "collapse?": {str: str}}
RECORDS: dict[str, Any] = {
    "epoch": {
        "task?": int,
        "epoch?": int,
        "name?": str,
        "seconds?": NUMBER,
        "loss?": NUMBER,
        "penalty?": NUMBER,
        **_JUDGED,
    },
    "task": {
        **_JUDGED,
        "guess?": {"metric": str, "queries": int, **dict.fromkeys(("score", "chance"), NUMBER)},
        "task?": int,
        "name?": str,
        "scores?": _OF_TASKS,
        "seconds?": NUMBER,
        "drift?": [[NUMBER]],
        "unseen?": {str: NUMBER},
        "brightness?": NUMBER,
        "unprotected?": {"layers?": {str: [int]}},
        "reembed?": {"images": int, "seconds": NUMBER},
        "compensated_by?": {"map": str, "held_out_cosine": {str: NUMBER}},
        "changed_responses?": {str: NUMBER},
    },
    "ahead": {"task": int, "scores": _OF_TASKS},
    "search": {
        "task": int,
        "name?": str,
        **dict.fromkeys(("chance", "finetune", "floor", "search_seconds"), NUMBER),
        "strength": (float, int),
        "trials": [{"strength": (float, int), "score": NUMBER}],
    },
    "precision": {"precision": str, "seconds?": {str: NUMBER}},
    "importance": {"samples?": int, "weight?": (float, int)},
    "undone": {},
}
