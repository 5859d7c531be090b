"""Maps between any two models, and maps that are kept: against literal twins, and the same bytes whenever applied."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import oracles
import pytest
import torch
from torch.nn.functional import normalize

from tripletmas.index import drift
from tripletmas.index.choice import choose_map
from tripletmas.index.drift import fit_drift
from tripletmas.index.fitting import fit_map, maps_between
from tripletmas.index.maps import FittedMap

ALL = [(kind, new) for new in (6, 4, 9) for kind in maps_between(6, new)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs(new: int, size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    before = normalize(random(size, 6), dim=1)
    return before, normalize(before @ random(6, new, seed=1) + 0.1 * random(size, new, seed=2), dim=1)


def test_between_two_dimensions_there_is_no_identity():
    assert maps_between(6, 6) == ("none", "procrustes", "shrunk", "linear", "ridge", "mlp")
    assert maps_between(6, 4) == maps_between(4, 6) == ("procrustes", "linear", "ridge", "mlp")


@pytest.mark.parametrize("size", [5, 40])
@pytest.mark.parametrize("new", [4, 6, 9])
def test_ridge_equals_its_twin(size: int, new: int):
    before, after = (each.double() for each in pairs(new, size))
    ridge = drift._best_ridge(before, after) if size > 5 else drift._RIDGES[-1]
    vectors, nothing = random(7, 6, seed=3).double(), torch.zeros(6, new).double()
    found = fit_map("ridge", before, after)(vectors)
    torch.testing.assert_close(found, oracles.ridge_map(before, after, vectors, ridge, nothing))


@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize("new", [4, 9])
def test_procrustes_between_dimensions_equals_its_twin(size: int, new: int):
    """Also where there are fewer pairs than dimensions, and some directions are not shown."""
    before, after = (each.double() for each in pairs(new, size))
    vectors = random(7, 6, seed=3).double()
    rotation, start = drift._rotation(before, after, shift=False)
    torch.testing.assert_close(vectors @ rotation, oracles.rotated_between(before, after, vectors))
    assert not start.any()
    values = torch.linalg.svdvals(rotation)  # lengths stay, or are dropped
    assert torch.minimum(values, (values - 1).abs()).max() < 1e-12


@pytest.mark.parametrize("new", [4, 9])
def test_linear_between_dimensions_is_drawn_to_the_rotation(new: int):
    before, after = (each.double() for each in pairs(new))
    vectors = random(7, 6, seed=3).double()

    def toward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return drift._rotation(x, y, shift=False)[0]

    ridge = drift._best_ridge(before, after, toward)
    found = fit_map("linear", before, after)(vectors)
    torch.testing.assert_close(found, oracles.ridge_map(before, after, vectors, ridge, toward(before, after)))


@pytest.mark.parametrize("kind", ["none", "procrustes", "shrunk", "linear"])
def test_within_one_dimension_they_are_the_drift_maps(kind: str):
    before, after = pairs(6)
    vectors = random(7, 6, seed=3)
    assert torch.equal(fit_map(kind, before, after)(vectors), fit_drift(kind, before, after)(vectors))


@pytest.mark.slow
def test_a_network_learns_what_a_ridge_leaves():
    """|x|, which no affine map knows: for x of either sign the best one has a slope of 0, and errs by about 0.6."""
    before = random(2000, 1)
    after = torch.cat([before.abs(), 2 * before.abs()], dim=1)
    vectors = torch.tensor([[-1.0], [0.5], [1.5]])
    wanted = torch.cat([vectors.abs(), 2 * vectors.abs()], dim=1)
    errors = [float((fit_map(kind, before, after)(vectors) - wanted).norm()) for kind in ("ridge", "mlp")]
    assert errors[1] < 0.2 < errors[0]


@pytest.mark.parametrize(("kind", "new"), ALL)
def test_unit_vectors_stay_so(kind: str, new: int):
    found = fit_map(kind, *pairs(new))
    vectors = 5 * random(7, 6, seed=3)
    moved = found.apply(vectors)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(moved, normalize(found(normalize(vectors, dim=1)), dim=1), atol=1e-6, rtol=0)


def test_raw_vectors_are_moved_as_they_are():
    before, after = 3 * random(40, 6), random(40, 4, seed=1)
    found = fit_map("ridge", before, after, normalize=False)
    vectors = 5 * random(7, 6, seed=3)
    torch.testing.assert_close(found.apply(vectors), found(vectors))


@pytest.mark.parametrize("kind", ["none", "ridge", "mlp"])
def test_rows_without_a_vector_or_a_direction(kind: str):
    vectors = random(5, 6, seed=3)
    vectors[1], vectors[3] = torch.nan, 0
    moved = fit_map(kind, *pairs(6)).apply(vectors)
    assert moved[1].isnan().all()
    assert not moved[3].any()
    assert moved[[0, 2, 4]].isfinite().all()


@pytest.mark.parametrize(("kind", "new"), ALL)
def test_what_is_kept_is_what_was_fitted(kind: str, new: int, tmp_path: Path):
    found = fit_map(kind, *pairs(new))
    found.save(tmp_path / "map.safetensors")
    again = FittedMap.open(tmp_path / "map.safetensors")
    vectors = random(7, 6, seed=3)
    assert torch.equal(again.apply(vectors), found.apply(vectors))
    assert (again.kind, again.dim, again.new_dim, again.normalize) == (kind, 6, new, True)
    assert again.identity == found.identity
    other = fit_map(kind, *pairs(new), normalize=False)
    assert other.identity != found.identity


@pytest.mark.slow
def test_equal_blocks_give_equal_bytes(monkeypatch: pytest.MonkeyPatch):
    """Also where a block begins elsewhere, lies elsewhere in memory, or is a single row."""
    found = fit_map("mlp", normalize(random(60, 33), dim=1), normalize(random(60, 21, seed=1), dim=1))
    vectors = random(9000, 33, seed=2)
    whole = found.apply(vectors)
    for start, end in ((0, 9000), (1, 4097), (4095, 8200), (77, 78), (8999, 9000)):
        assert torch.equal(found.apply(vectors[start:end]), whole[start:end])
    assert torch.equal(found.apply(vectors.double()), whole)


@pytest.mark.slow
def test_another_process_and_number_of_threads_give_equal_bytes(tmp_path: Path):
    found = fit_map("ridge", normalize(random(60, 129), dim=1), normalize(random(60, 65, seed=1), dim=1))
    found.save(tmp_path / "map.safetensors")
    code = (
        "import sys, torch; from tripletmas.index.maps import FittedMap; torch.set_num_threads(int(sys.argv[2]));"
        "v = torch.randn(5000, 129, generator=torch.Generator().manual_seed(2));"
        "sys.stdout.buffer.write(FittedMap.open(sys.argv[1]).apply(v).numpy().tobytes())"
    )
    expected = found.apply(random(5000, 129, seed=2)).numpy().tobytes()
    for threads in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path / "map.safetensors"), threads]
        assert subprocess.run(command, capture_output=True, check=True).stdout == expected


def test_a_map_that_cannot_be_read(tmp_path: Path):
    file = tmp_path / "map.safetensors"
    with pytest.raises(ValueError, match=r"map\.safetensors cannot be read.*fit the map anew, by tripletmas upgrade"):
        FittedMap.open(file)
    FittedMap("ridge", 3, 2, {"matrix": torch.zeros(3, 3)}).save(file)
    with pytest.raises(ValueError, match=r"it holds no map: matrix of shape \(3, 3\), not \(3, 2\)"):
        FittedMap.open(file)
    FittedMap("linear", 3, 2, {"start": torch.zeros(2)}).save(file)
    with pytest.raises(ValueError, match="no matrix from 3 to 2"):
        FittedMap.open(file)
    FittedMap("ridge", 3, 2, {"matrix": torch.full((3, 2), torch.nan)}).save(file)
    with pytest.raises(ValueError, match="matrix holds NaN"):
        FittedMap.open(file)


def test_what_no_map_is_fitted_on_or_applied_to():
    with pytest.raises(ValueError, match="there is no map 'none' from 6 to 4 dimensions, only procrustes, linear"):
        fit_map("none", *pairs(4))
    with pytest.raises(ValueError, match=r"same n >= 1 samples, got \(3, 6\) and \(2, 4\)"):
        fit_map("ridge", random(3, 6), random(2, 4))
    with pytest.raises(ValueError, match="must be finite"):
        fit_map("ridge", random(3, 6), random(3, 4) * torch.nan)
    with pytest.raises(ValueError, match=r"vectors must have shape \(n, 6\), got \(2, 4\)"):
        fit_map("ridge", *pairs(4)).apply(random(2, 4))


@pytest.mark.parametrize("new", [4, 6])
def test_the_scores_are_those_of_held_out_pairs(new: int):
    before, after = pairs(new)
    kinds = ("procrustes", "ridge")
    choice = choose_map(before, after, kinds=kinds)
    shift = drift.shift_pays(before, after)
    for kind in kinds:
        expected = oracles.held_out_cosine(before, after, lambda x, y, kind=kind: fit_map(kind, x, y, shift=shift))
        assert choice.scores[kind] == pytest.approx(expected, abs=1e-5)
    assert choice.name == max(choice.scores, key=lambda kind: choice.scores[kind])
    assert choice.num_pairs == 40


def test_what_is_chosen():
    before, _ = pairs(6, 200)
    turn = torch.linalg.qr(random(6, 6, seed=4))[0]
    kinds = ("none", "procrustes", "shrunk", "linear", "ridge")
    assert choose_map(before, before, kinds=kinds).name == "none"
    assert choose_map(before, before @ turn, kinds=kinds).name == "procrustes"
    assert choose_map(*pairs(6, 200), kinds=kinds).name in ("shrunk", "linear", "ridge")
    moved = 3 * before @ turn + 1
    assert choose_map(2 * before, moved, normalize=False, kinds=("procrustes", "ridge")).name == "ridge"
    with pytest.raises(ValueError, match="of two at least, got 1"):
        choose_map(before[:1], before[:1])
