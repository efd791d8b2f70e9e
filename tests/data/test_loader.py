"""The resident loader: order, sharding, resuming, augmentation."""

from __future__ import annotations

import pytest
import torch

from backdoor.data.loader import Chooses, ResidentLoader, mix
from backdoor.state import Split

CPU = torch.device("cpu")


@pytest.fixture
def split() -> Split:
    images = torch.arange(103, dtype=torch.uint8)[:, None, None, None].expand(103, 1, 2, 2).clone()
    return Split.of(images, torch.arange(103))


def rows(loader: ResidentLoader) -> list[int]:
    return torch.cat([batch.rows for batch in loader]).tolist()


def test_batches_hold_their_rows(split):
    loader = ResidentLoader(split, batch_size=10, device=CPU, seed=3)
    batches = list(loader)
    assert len(batches) == len(loader) == 11
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert torch.equal(batch.labels, batch.rows)
        assert torch.allclose(batch.images[:, 0, 0, 0] * 255, batch.rows.float())
    assert sorted(rows(loader)) == list(range(103))


def test_order_is_given_by_seed_and_epoch(split):
    orders = {
        (seed, epoch): rows(ResidentLoader(split, batch_size=10, device=CPU, seed=seed, epoch=epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    again = ResidentLoader(split, batch_size=10, device=CPU, seed=1, epoch=1)
    torch.rand(5)  # the global generator has no say
    assert rows(again) == orders[1, 1]


def test_drop_last_and_subset(split):
    chosen = torch.tensor([5, 7, 9, 11, 13])
    loader = ResidentLoader(split, batch_size=2, device=CPU, rows=chosen, drop_last=True)
    assert len(rows(loader)) == 4
    assert set(rows(loader)) <= set(chosen.tolist())
    tiny = ResidentLoader(split, batch_size=64, device=CPU, rows=chosen, drop_last=True)
    assert len(tiny) == 1
    assert sorted(rows(tiny)) == chosen.tolist()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_one_order(split, world, drop_last):
    shards = [
        ResidentLoader(split, batch_size=8, device=CPU, rank=rank, world=world, drop_last=drop_last)
        for rank in range(world)
    ]
    seen = [rows(shard) for shard in shards]
    assert len({len(shard) for shard in shards}) == 1
    assert [len(list(shard)) for shard in shards] == [len(shards[0])] * world
    assert len({len(part) for part in seen}) == 1  # collectives would hang otherwise
    everything = [row for part in seen for row in part]
    if drop_last:
        assert len(set(everything)) == len(everything)
    else:
        assert set(everything) == set(range(103))
        assert len(everything) - 103 < world


@pytest.mark.parametrize("world", [2, 4])
def test_batches_of_all_ranks_are_those_of_one_process(split, world):
    alone = [batch.rows.tolist() for batch in ResidentLoader(split, batch_size=8, device=CPU)]
    shards = [ResidentLoader(split, batch_size=8 // world, device=CPU, rank=rank, world=world) for rank in range(world)]
    together = [[row for batch in batches for row in batch.rows.tolist()] for batches in zip(*shards, strict=True)]
    assert len(together) == len(alone)
    for mine, theirs in zip(together[:-1], alone[:-1], strict=True):
        assert sorted(mine) == sorted(theirs)
    assert set(alone[-1]) <= set(together[-1])


class Pairs(Chooses):
    """A chooser: each batch is 6 labelled rows and 6 others."""

    steps, parts = 3, 2

    def batches(self, epoch):
        for step in range(self.steps):
            yield torch.cat([torch.arange(6) + step, 50 + torch.arange(6) + step])


def test_a_chooser_is_shared_part_by_part(split):
    shards = [ResidentLoader(split, batch_size=1, device=CPU, rank=rank, world=4, chooser=Pairs()) for rank in range(4)]
    batches = [[batch.rows.tolist() for batch in shard] for shard in shards]
    assert [len(shard) for shard in batches] == [3] * 4
    first = [shard[0] for shard in batches]
    assert first == [[0, 4, 50, 54], [1, 5, 51, 55], [2, 0, 52, 50], [3, 1, 53, 51]]  # padded from its own part


def test_fewer_rows_than_ranks_still_give_each_one(split):
    shards = [
        ResidentLoader(split, batch_size=4, device=CPU, rows=torch.tensor([7]), rank=rank, world=4) for rank in range(4)
    ]
    assert [rows(shard) for shard in shards] == [[7]] * 4


def test_augmentation_gets_a_seeded_generator(split):
    drawn = []

    def augment(images, generator):
        drawn.append(torch.rand(1, generator=generator).item())
        return 255 - images

    loader = ResidentLoader(split, batch_size=64, device=CPU, augment=augment, seed=2, epoch=4)
    first = next(iter(loader))
    next(iter(loader))
    assert drawn[0] == drawn[1]
    assert torch.allclose(first.images[:, 0, 0, 0] * 255, 255 - first.rows.float())


def test_mix_gives_distinct_seeds():
    seeds = {mix(a, b, c) for a in range(10) for b in range(20) for c in range(3)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)
