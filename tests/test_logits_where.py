"""Divergences from logits at some positions: what a mask excludes counts nowhere."""

import itertools

import numpy as np
import pytest

from kldiv_dask import kl_div_with_logits, kl_div_with_logits_summary
from tests.helpers.cases import Shape, random_chunking
from tests.test_bits import LAYOUTS
from tests.test_logits import SORTS, TYPES, check, lazily, operands, positions
from tests.test_where import lazy_mask, mask_shapes, masks


@pytest.mark.parametrize(("types", "shapes"), [
    (TYPES[2], ((4, 3, 7), (4, 3, 7))), (TYPES[3], ((4, 3, 7), (3, 7))), (TYPES[3], ((7,), (7,))),
    (TYPES[3], ((5, 7), (7,))), (TYPES[3], ((0, 3, 7), (0, 3, 7))), (TYPES[3], ((3, 0, 7), (7,))),
])  # fmt: skip
def test_masks_of_every_shape(types: tuple[str, str], shapes: tuple[Shape, Shape]) -> None:
    rng = np.random.default_rng(3)
    sorts = itertools.cycle(SORTS)
    for own in dict.fromkeys(mask_shapes(np.broadcast_shapes(*shapes)[:-1])):
        for where in masks(rng, own):
            x, t = operands(next(sorts), shapes, types)
            values = positions(x, t)
            pair = lazily(x, t, random_chunking(rng, values.shape))
            check(values, x.dtype, *pair, where=lazy_mask(rng, where))


def test_masks_of_every_layout() -> None:
    x, t = operands("usual", ((6, 4, 7),) * 2, TYPES[2])
    values, where = positions(x, t), np.arange(24).reshape(6, 4) % 5 > 1
    for name in ("C", "Fortran", "strided", "reversed rows", "reversed columns", "read-only"):
        check(values, x.dtype, x, t, where=LAYOUTS[name](where))
    spread = np.repeat(where[:, 0], 2)
    check(values[:, 0], x.dtype, x[:, 0], t[:, 0], where=spread[::2])
    check(values[:, 0], x.dtype, x[:, 0], t[:, 0], where=[True])


def test_what_is_excluded_does_no_harm() -> None:
    rng = np.random.default_rng(4)
    x, t = operands("usual", ((6, 5, 7),) * 2, TYPES[2])
    where = rng.random((6, 5)) < 0.6
    where[2] = False
    pairs = [(x, t)]
    for spoilt in itertools.product((False, True), repeat=2):
        pair = [np.array(a) for a in (x, t)]
        for a in itertools.compress(pair, spoilt):
            a[~where] = rng.choice([np.nan, np.inf, -np.inf, 3e38], a[~where].shape)
        pairs.append((pair[0], pair[1]))
    for pair in pairs:
        check(positions(x, t), x.dtype, *lazily(*pair, ((4, 2), (3, 2))), where=where)
        split = lazily(*pair, ((4, 2), (3, 2)), 3)
        got = kl_div_with_logits(*split, where=where, reduction="none").compute()
        np.testing.assert_allclose(got, np.where(where, positions(x, t), 0), rtol=1e-6)
    summary = kl_div_with_logits_summary(*pairs[-1], where=where).compute()
    assert (summary.numel, summary.batch_size, summary.nan_count) == (where.sum(), 5, 0)
