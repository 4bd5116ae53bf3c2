"""Tables of exact sums and counts by key, the one form in which statistics are held and merged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask import partial_sum
from kldiv_dask.kernels.exact_sum import carry
from kldiv_dask.kernels.exact_values import add_runs

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Keys are joined to one integer: 2**22 groups, and below them 2**41 of what else there is.
WIDTH = 41


class KeyedSums(NamedTuple):
    """What is counted and summed for each key.

    `keys` are sorted and each is there once. `sums` has the shape ``(keys, sums, SIZE)``, a
    canonical partial for each, and `counts` the shape ``(keys, counts)``. The lower parts of the
    keys have been halved `halvings` times, which joins neighbors.
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
    """Join two parts of a key; the second must not be negative."""
    keys: Integers = (np.asarray(group, np.int64) << WIDTH) + rest
    return keys


def runs(keys: Integers) -> tuple[Any, Integers, Integers]:
    """Return what sorts keys, each key once, and where its run in the sorted keys ends."""
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
        Each as long: what to count. The first count is always that of the keys.
    sums : sequence of float64 arrays
        Each as long: what to sum exactly.
    """
    order, unique, ends = runs(keys)
    starts = np.append(0, ends[:-1])[: ends.size]
    counted = [ends - starts]
    counted += [np.add.reduceat(count[order], starts) for count in counts if ends.size]
    states = np.zeros((len(sums), unique.size, partial_sum.SIZE), np.int64)
    for state, values in zip(states, sums, strict=True):
        add_runs(state, values[order], ends)
    stacked = np.stack(counted, axis=-1) if ends.size else np.zeros((0, 1 + len(counts)), np.int64)
    return KeyedSums(unique, stacked, np.ascontiguousarray(states.swapaxes(0, 1)))


def merge(tables: Sequence[KeyedSums]) -> KeyedSums:
    """Add tables of equal columns, as often halved as any of them is."""
    if len(tables) == 1:
        return tables[0]
    halvings = max(table.halvings for table in tables)
    halved = [coarsen(table, halvings) for table in tables]
    keys = np.concatenate([table.keys for table in halved])
    counts = np.concatenate([table.counts for table in halved])
    sums = np.concatenate([table.sums for table in halved])
    return _rekeyed(KeyedSums(keys, counts, sums, halvings), keys)


def merge_groups(table: KeyedSums) -> KeyedSums:
    """Forget the upper part of the keys."""
    return _rekeyed(table, table.rest)


def regrouped(table: KeyedSums, places: Integers) -> KeyedSums:
    """Give each group another number; the numbers must be in the same order as before."""
    return table._replace(keys=key_of(places[table.groups], table.rest))


def coarsen(table: KeyedSums, halvings: int) -> KeyedSums:
    """Have the lower parts of the keys halved so often in all."""
    keys = key_of(table.groups, table.rest >> halvings - table.halvings)
    halved = table if halvings == table.halvings else _rekeyed(table, keys)
    return halved._replace(halvings=halvings)


def joined(table: KeyedSums, count: int) -> KeyedSums:
    """Join so many neighboring keys of each group to one."""
    return _rekeyed(table, key_of(table.groups, table.rest // count)) if count > 1 else table


def coarsen_to_limit(table: KeyedSums, most: int) -> KeyedSums:
    """Halve the lower parts of the keys until there are not too many.

    How often does not depend on the order in which tables are merged, if each is bounded.
    """
    # Groups without positions have no key, and which are known so far depends on the order.
    least = np.unique(table.groups).size
    while table.keys.size > max(most, least):
        table = coarsen(table, table.halvings + 1)
    return table


def _rekeyed(table: KeyedSums, keys: Integers) -> KeyedSums:
    """Give each row another key, and add the rows that then have the same."""
    order, unique, ends = runs(keys)
    if not keys.size:
        return table
    starts = np.append(0, ends[:-1])
    counts = np.add.reduceat(table.counts[order], starts, axis=0)
    sums = np.add.reduceat(table.sums[order], starts, axis=0)
    carry(np.moveaxis(sums, -1, 0))
    return KeyedSums(unique, counts, sums, table.halvings)
