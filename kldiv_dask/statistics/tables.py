"""Tables of counts and exact sums by key: the form in which statistics are stored and merged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask import partial_sum
from kldiv_dask.kernels.exact_sum import carry
from kldiv_dask.kernels.exact_values import add_runs

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# A key is one integer: the group in the upper 22 bits, and the rest in the lower 41.
WIDTH = 41


class KeyedSums(NamedTuple):
    """Counts and exact sums for each key.

    `keys` are sorted and distinct. `counts` has the shape ``(keys, counts)``, and `sums` the shape
    ``(keys, sums, SIZE)``: a canonical partial for each sum. The lower parts of the keys have been
    halved `halvings` times, which joins neighbors.
    """

    keys: Integers
    counts: Integers
    sums: Integers
    halvings: int = 0

    @property
    def groups(self) -> Integers:
        """The upper part of each key."""
        return self.keys >> WIDTH

    @property
    def rest(self) -> Integers:
        """The lower part of each key."""
        return self.keys & ((1 << WIDTH) - 1)


def key_of(group: Any, rest: Any) -> Integers:
    """Join the upper and the lower part of a key; the lower must not be negative."""
    keys: Integers = (np.asarray(group, np.int64) << WIDTH) + rest
    return keys


def runs(keys: Integers) -> tuple[Any, Integers, Integers]:
    """Return the order that sorts keys, the distinct keys, and the end of each in that order."""
    order: Any = slice(None)
    if keys.size and (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
    last = np.append(np.flatnonzero(keys[1:] != keys[:-1]), keys.size - 1)[: keys.size]
    return order, keys[last], last + 1


def keyed_sums(keys: Integers, counts: Sequence[Integers], sums: Sequence[Floats]) -> KeyedSums:
    """Count and sum numbers by key.

    Parameters
    ----------
    keys : int64 array, 1-d
    counts : sequence of int64 arrays
        Of the same length: numbers to add up. The first count of the result is how often each key
        occurs.
    sums : sequence of float64 arrays
        Of the same length: numbers to sum exactly.
    """
    order, unique, ends = runs(keys)
    starts = np.append(0, ends[:-1])[: ends.size]
    columns = [ends - starts]
    columns += [np.add.reduceat(count[order], starts) for count in counts if ends.size]
    states = np.zeros((len(sums), unique.size, partial_sum.SIZE), np.int64)
    for state, values in zip(states, sums, strict=True):
        add_runs(state, values[order], ends)
    stacked = np.stack(columns, axis=-1) if ends.size else np.zeros((0, 1 + len(counts)), np.int64)
    return KeyedSums(unique, stacked, np.ascontiguousarray(states.swapaxes(0, 1)))


def merge(tables: Sequence[KeyedSums]) -> KeyedSums:
    """Add tables of equal columns; all are halved as often as the one that is halved most."""
    if len(tables) == 1:
        return tables[0]
    halvings = max(table.halvings for table in tables)
    halved = [coarsen(table, halvings) for table in tables]
    keys = np.concatenate([table.keys for table in halved])
    counts = np.concatenate([table.counts for table in halved])
    sums = np.concatenate([table.sums for table in halved])
    return _rekey(KeyedSums(keys, counts, sums, halvings), keys)


def merge_groups(table: KeyedSums) -> KeyedSums:
    """Add the rows of all groups."""
    return _rekey(table, table.rest)


def regroup(table: KeyedSums, codes: Integers) -> KeyedSums:
    """Give each group another number: group ``i`` becomes ``codes[i]``, which must ascend."""
    return table._replace(keys=key_of(codes[table.groups], table.rest))


def coarsen(table: KeyedSums, halvings: int) -> KeyedSums:
    """Halve the lower parts of the keys until they have been halved `halvings` times in all."""
    keys = key_of(table.groups, table.rest >> halvings - table.halvings)
    halved = table if halvings == table.halvings else _rekey(table, keys)
    return halved._replace(halvings=halvings)


def join_neighbors(table: KeyedSums, count: int) -> KeyedSums:
    """Join each `count` neighboring keys of a group to one."""
    return _rekey(table, key_of(table.groups, table.rest // count)) if count > 1 else table


def coarsen_to_limit(table: KeyedSums, limit: int) -> KeyedSums:
    """Halve the lower parts of the keys until at most `limit` keys, or one per group, are left.

    If this is done after each merge, the number of halvings does not depend on the order of merges.
    """
    # Only groups that have a key: which others exist depends on the order of merges.
    groups = np.unique(table.groups).size
    while table.keys.size > max(limit, groups):
        table = coarsen(table, table.halvings + 1)
    return table


def _rekey(table: KeyedSums, keys: Integers) -> KeyedSums:
    """Give each row another key, and add the rows with equal keys."""
    order, unique, ends = runs(keys)
    if not keys.size:
        return table
    starts = np.append(0, ends[:-1])
    counts = np.add.reduceat(table.counts[order], starts, axis=0)
    sums = np.add.reduceat(table.sums[order], starts, axis=0)
    carry(np.moveaxis(sums, -1, 0))
    return KeyedSums(unique, counts, sums, table.halvings)
